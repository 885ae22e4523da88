"""The small world that Mini-P3's texts speak of: its people, things, facts and ways to say them.

Everything is a constant or a pure function of a `random.Random`, so that the same seed gives the
same text on every machine. Names of lands and towns are invented: their facts can be learned from
the benchmark only.
"""

from random import Random

WOMEN = ("Anna", "Emma", "Julia", "Clara", "Nina", "Maria", "Lucy", "Ruth", "Sara", "Kate")
MEN = ("Tom", "Ben", "Max", "Paul", "Leo", "Sam", "Hugo", "Karl", "Adam", "Jack")
PEOPLE = WOMEN + MEN
THINGS = (
    "ball", "book", "lamp", "cup", "bag", "hat", "chair", "clock", "kite", "box", "drum", "ring",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
PLACES = (
    "park", "school", "garden", "library", "market", "church", "museum", "yard", "forest",
    "office", "hotel", "kitchen",
)  # fmt: skip
TOWNS = ("Velm", "Norby", "Tarrow", "Ossel", "Pinmoor", "Galt", "Dunby", "Lorvik")
LANDS = ("Norland", "Tavia", "Orsia", "Belmark", "Quenia", "Zandia", "Ulmia", "Ristan")
TIMES = ("noon", "six", "seven", "eight", "nine", "ten")
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")

# State of a person -> what a person in that state does, as a past-tense phrase.
REACTIONS = {
    "hungry": ("ate some bread", "ate an orange", "cooked some rice"),
    "thirsty": ("drank some water", "asked for some juice", "made a pot of tea"),
    "tired": ("went to bed", "lay down on the sofa", "slept until noon"),
    "cold": ("put on a coat", "lit a fire", "closed the window"),
    "hot": ("opened the window", "took off the coat", "swam in the lake"),
    "ill": ("called the doctor", "took some medicine", "stayed in the hospital"),
    "dirty": ("took a bath", "washed with soap", "cleaned the shoes"),
    "bored": ("played a game", "watched a film", "told a joke"),
    "lost": ("looked at a map", "asked for the way", "followed the signs"),
    "late": ("ran to the bus", "called a taxi", "took the fast train"),
    "sad": ("cried for an hour", "hugged a friend", "wiped the tears away"),
    "happy": ("smiled at everyone", "sang a song", "danced all night"),
}

# Animal -> group, food, home.
ANIMALS = {
    "dog": ("mammal", "meat", "house"),
    "cow": ("mammal", "grass", "field"),
    "bat": ("mammal", "fruit", "cave"),
    "horse": ("mammal", "grass", "stable"),
    "lion": ("mammal", "meat", "desert"),
    "goose": ("bird", "grass", "pond"),
    "eagle": ("bird", "meat", "mountain"),
    "parrot": ("bird", "fruit", "jungle"),
    "pigeon": ("bird", "seeds", "city"),
    "shark": ("fish", "meat", "sea"),
    "trout": ("fish", "worms", "river"),
    "bee": ("insect", "honey", "hive"),
    "ant": ("insect", "seeds", "nest"),
}
# Profession -> place of work, what it works with.
JOBS = {
    "teacher": ("school", "children"),
    "baker": ("bakery", "flour"),
    "doctor": ("hospital", "patients"),
    "farmer": ("farm", "cows"),
    "pilot": ("airport", "planes"),
    "waiter": ("restaurant", "plates"),
    "painter": ("studio", "colours"),
    "sailor": ("harbour", "ships"),
    "judge": ("court", "laws"),
    "actor": ("theatre", "plays"),
    "banker": ("bank", "money"),
    "guard": ("museum", "keys"),
}
CAPITALS = dict(zip(LANDS, TOWNS, strict=True))
NATURAL_COLOURS = {
    "grass": "green", "snow": "white", "the sky": "blue", "blood": "red", "coal": "black",
    "butter": "yellow", "mud": "brown", "a pig": "pink",
    "a carrot": "orange",
}  # fmt: skip
OPPOSITES = {
    "big": "small", "hot": "cold", "happy": "sad", "early": "late", "new": "old", "fast": "slow",
    "clean": "dirty", "good": "bad", "light": "heavy",
}  # fmt: skip

# One happening told in several ways that mean the same. Slots: two people {a} {b}, a thing {x}
# ("red ball"), a place {p}.
HAPPENINGS = {
    "give": (
        "{a} gave the {x} to {b}.",
        "{b} got the {x} from {a}.",
        "The {x} was given to {b} by {a}.",
    ),
    "sell": (
        "{a} sold the {x} to {b}.",
        "{b} bought the {x} from {a}.",
        "The {x} was sold to {b} by {a}.",
    ),
    "find": (
        "{a} found the {x} in the {p}.",
        "In the {p}, {a} found the {x}.",
        "The {x} was found in the {p} by {a}.",
    ),
    "lose": (
        "{a} lost the {x} in the {p}.",
        "In the {p}, {a} lost the {x}.",
        "The {x} was lost in the {p} by {a}.",
    ),
    "help": (
        "{a} helped {b} in the {p}.",
        "{b} was helped by {a} in the {p}.",
        "In the {p}, {b} got help from {a}.",
    ),
    "thank": (
        "{a} thanked {b} for the {x}.",
        "{b} was thanked by {a} for the {x}.",
        "For the {x}, {a} thanked {b}.",
    ),
    "meet": (
        "{a} and {b} met in the {p}.",
        "{b} met {a} in the {p}.",
        "In the {p}, {a} met {b}.",
    ),
    "taller": ("{a} is taller than {b}.", "{b} is shorter than {a}."),
    "older": ("{a} is older than {b}.", "{b} is younger than {a}."),
}
# Happenings in which the two people cannot change places without changing what is said.
DIRECTED = ("give", "sell", "help", "thank", "taller", "older")

# Word -> two senses, each a list of sentences that use the word in it.
SENSES = {
    "bat": (
        ("The bat slept at night.", "A bat is a mammal.", "{a} saw a bat in the cave."),
        ("{a} hit the ball with a bat.", "The team bought a new bat.", "The coach lost a bat."),
    ),
    "bank": (
        ("{a} has money in the bank.", "The bank sold its shares.", "{a} works in a bank."),
        ("{a} sat on the bank of the river.", "The trout swam near the bank.",
         "The grass on the bank is green."),
    ),
    "match": (
        ("The team won the match.", "{a} watched the match.", "The players lost the match on {d}."),
        ("{a} lit the fire with a match.", "The match was in a box.", "{a} has one match."),
    ),
    "star": (
        ("{a} saw a star in the sky.", "The light of the star is old.", "Scientists found a star."),
        ("The star of the film was great.", "{a} met a star in the theatre.",
         "The star sang a song."),
    ),
    "plant": (
        ("The plant is green.", "The plant needs no water.", "A plant grew in the mud."),
        ("The shop chain sold a plant.", "The company closed its plant.",
         "{a} works in the plant."),
    ),
    "ring": (
        ("{a} lost a red ring.", "The ring was too small.", "{a} bought a ring."),
        ("{a} hated the ring of the phone.", "The ring of the clock was late.",
         "The ring of the phone was awful."),
    ),
    "orange": (
        ("{a} ate an orange.", "The juice of the orange was good.", "{a} bought an orange."),
        ("The colour of the hat is orange.", "The sky was orange at six.", "The lamp is orange."),
    ),
    "light": (
        ("The bag was light.", "The box is not heavy but light.", "The chair is light and small."),
        ("{a} saw a light in the window.", "The light of the lamp was red.",
         "The light was on all night."),
    ),
}  # fmt: skip


def pronoun(name: str) -> str:
    """'she' or 'he'; every name in this world belongs to one of the two."""
    return "she" if name in WOMEN else "he"


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def capitalised(text: str) -> str:
    """`text` with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]


def other(rng: Random, values: tuple[str, ...], *taken: str) -> str:
    """A value that is none of `taken`."""
    return rng.choice([value for value in values if value not in taken])


def couple(rng: Random) -> tuple[str, str]:
    """A woman and a man, in either order: a pronoun tells them apart."""
    pair = (rng.choice(WOMEN), rng.choice(MEN))
    return pair if rng.random() < 0.5 else pair[::-1]


def coloured_thing(rng: Random, unlike: str = " ") -> str:
    """For instance 'red ball'; of another colour and another kind than `unlike`."""
    colour, thing = unlike.split(" ")
    return f"{other(rng, COLOURS, colour)} {other(rng, THINGS, thing)}"


def slots_in(form: str) -> list[str]:
    """The slots that a form of HAPPENINGS fills."""
    return [slot for slot in "abxp" if f"{{{slot}}}" in form]


def draw_slots(rng: Random) -> dict[str, str]:
    """Fillers for HAPPENINGS: two people, a thing and a place."""
    a, b = rng.sample(PEOPLE, 2)
    return {"a": a, "b": b, "x": coloured_thing(rng), "p": rng.choice(PLACES)}


def change_slots(rng: Random, slots: dict[str, str], used: list[str], count: int) -> dict[str, str]:
    """Copy of `slots` with `count` of the `used` ones filled otherwise."""
    changed = dict(slots)
    for slot in rng.sample(used, count):
        if slot in "ab":
            changed[slot] = other(rng, PEOPLE, slots["a"], slots["b"])
        elif slot == "x":
            colour, thing = slots["x"].split()
            if rng.random() < 0.5:
                colour = other(rng, COLOURS, colour)
            else:
                thing = other(rng, THINGS, thing)
            changed["x"] = f"{colour} {thing}"
        else:
            changed["p"] = other(rng, PLACES, slots["p"])
    if changed["a"] == changed["b"]:
        changed["b"] = other(rng, PEOPLE, changed["a"], slots["a"], slots["b"])
    return changed
