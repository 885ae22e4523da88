"""Mini-P3's four held-out datasets: one function a dataset, as in `mini_training`.

They speak of the same world, so that what the training tasks teach can be of use, but ask of it
what no training task asks.
"""

from random import Random

from t0x.tasks.mini import world
from t0x.tasks.mini.training import Row, add_detail, add_lead, place_choice

# Natural language inference --------------------------------------------------------


def draw_entailment(rng: Random, label: int) -> Row:
    """{premise, hypothesis, label}: 0 the hypothesis follows, 1 it does not.

    The premise tells a happening and when it was, in half of the rows another happening too (and
    always next to a comparison of people). The hypothesis retells the first; where it does not
    follow, one or two of its words are changed.
    """
    kind, slots = rng.choice(tuple(world.HAPPENINGS)), world.draw_slots(rng)
    told = world.HAPPENINGS[kind]
    premise = add_detail(rng, rng.choice(told).format(**slots))
    if rng.random() < 0.5 and " than " not in premise:
        premise = add_lead(rng, premise)
    else:
        second = rng.choice([other for other in world.HAPPENINGS if other != kind])
        another = rng.choice(world.HAPPENINGS[second]).format(**world.draw_slots(rng))
        premise = " ".join(rng.sample((premise, another), 2))
    form = rng.choice(told)
    if label:
        used = world.slots_in(form)
        slots = world.change_slots(rng, slots, used, rng.randint(1, min(2, len(used))))
    return {"premise": premise, "hypothesis": form.format(**slots), "label": label}


# Coreference -----------------------------------------------------------------------

BONDS = ("{a} thanked {b} because {who} {why}.", "{a} helped {b} when {who} {why}.",
         "{a} met {b} in the {p} and {who} {why}.", "{a} called {b} because {who} {why}.",
         "{a} saw {b} in the {p} before {who} {why}.")  # fmt: skip


def draw_pronoun(rng: Random, label: int) -> Row:
    """{text, pronoun, option1, option2, answer}: answer is '1' or '2'."""
    a, b = world.couple(rng)
    meant = (a, b)[label]
    thing, place = world.coloured_thing(rng), rng.choice(world.PLACES)
    why = rng.choice(
        (
            f"was {rng.choice(tuple(world.REACTIONS))}",
            f"had a {thing}",
            f"lost a {thing}",
            f"bought the {thing}",
            rng.choice(world.REACTIONS[rng.choice(tuple(world.REACTIONS))]),
        )
    )
    who = world.pronoun(meant)
    options = rng.sample((a, b), 2)
    return {
        "text": rng.choice(BONDS).format(a=a, b=b, who=who, why=why, p=place),
        "pronoun": who,
        "option1": options[0],
        "option2": options[1],
        "answer": str(1 + options.index(meant)),
    }


# Sentence completion ---------------------------------------------------------------


def draw_ending(rng: Random, label: int) -> Row:
    """{context, endings, label}: four ends of an unfinished sentence."""
    person = rng.choice(world.PEOPLE)
    who = world.pronoun(person)
    states = rng.sample(tuple(world.REACTIONS), 4)
    place, time = rng.choice(world.PLACES), rng.choice(world.TIMES)
    if rng.random() < 0.6:
        context = rng.choice(
            (
                f"{person} was {states[0]} in the {place} at {time}, so {who}",
                f"At {time} {person} was {states[0]}. In the {place} {who}",
                f"{person} was {states[0]} all day. Then in the {place} {who}",
            )
        )
        endings = [rng.choice(world.REACTIONS[state]) for state in states]
    else:
        deed = rng.choice(world.REACTIONS[states[0]])
        context = rng.choice(
            (
                f"In the {place} {person} {deed} because {who} was",
                f"{person} {deed} at {time} in the {place} because {who} was",
            )
        )
        endings = states
    endings = [f"{ending}." for ending in endings]
    return {
        "context": context,
        "endings": place_choice(rng, endings[0], endings[1:], label),
        "label": label,
    }


# Word sense ------------------------------------------------------------------------


def draw_sense(rng: Random, label: int) -> Row:
    """{word, sentence1, sentence2, label}: 1 when the word has the same sense in both."""
    word = rng.choice(tuple(world.SENSES))
    senses = world.SENSES[word]
    sense = rng.randrange(2)
    if label:
        sentences = rng.sample(senses[sense], 2)
    else:
        sentences = [rng.choice(senses[sense]), rng.choice(senses[1 - sense])]
    first, second = (
        sentence.format(a=rng.choice(world.PEOPLE), d=rng.choice(world.DAYS))
        for sentence in sentences
    )
    return {"word": word, "sentence1": first, "sentence2": second, "label": label}
