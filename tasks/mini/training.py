"""Mini-P3's eight training datasets: one function a dataset, each drawing one row.

A drawing function takes a `random.Random` and the row's class (an index below the dataset's number
of classes; the answer's position where a row lists choices) and returns the row in the shape that
datasets of its kind have on the hub.
"""

import functools
from collections.abc import Sequence
from random import Random
from typing import Any

from t0x.tasks.mini import world

Row = dict[str, Any]


def place_choice(rng: Random, answer: str, distractors: Sequence[str], position: int) -> list[str]:
    """The distractors in random order with the answer at `position`."""
    choices = rng.sample(list(distractors), len(distractors))
    choices.insert(position, answer)
    return choices


def draw_candidate(rng: Random, choices: Sequence[str], answer: str) -> Row:
    """A candidate answer, right half of the time, with its verdict (1: right)."""
    verdict = rng.randrange(2)
    wrong = [choice for choice in choices if choice != answer]
    return {"candidate": answer if verdict else rng.choice(wrong), "verdict": verdict}


# Sentiment -----------------------------------------------------------------------------------

SUBJECTS = ("film", "book", "soup", "hotel", "phone", "show", "song", "trip", "lamp", "coat")
GOOD = ("great", "wonderful", "lovely", "superb", "charming", "perfect")
BAD = ("awful", "terrible", "boring", "poor", "horrible", "useless")
LIKED = ("loved", "enjoyed", "liked")
DISLIKED = ("hated", "regretted", "disliked")


def draw_review(rng: Random, label: int) -> Row:
    """{text, label}: 0 negative, 1 positive."""
    same, opposite = (GOOD, BAD) if label else (BAD, GOOD)
    verb = rng.choice(LIKED if label else DISLIKED)
    subject, day = rng.choice(SUBJECTS), rng.choice(world.DAYS)
    first = rng.choice(
        (
            f"The {subject} was {rng.choice(same)}.",
            f"The {subject} was not {rng.choice(opposite)} at all.",
            f"I thought the {subject} would be {rng.choice(opposite)}, but it was "
            f"{rng.choice(same)}.",
            f"What a {rng.choice(same)} {subject}!",
        )
    )
    second = rng.choice(
        (
            f"I {verb} it.",
            f"I {verb} it because it was {rng.choice(same)}.",
            f"{rng.choice(world.PEOPLE)} {verb} the ring of the phone too.",
            f"{rng.choice(world.PEOPLE)} {verb} it too.",
            f"We {verb} the {rng.choice(SUBJECTS)} as well.",
            f"We bought it on {day}.",
            f"I will {'see' if label else 'not see'} it again.",
        )
    )
    return {"text": f"{first} {second}", "label": label}


# Topic classification ------------------------------------------------------------------------

TOPICS = ("Politics", "Sports", "Business", "Science")
NEWS = (
    (
        "The president of {land} met the minister of {other} on {day}.",
        "The parliament of {land} passed a new law.",
        "People in {town} vote for a new mayor on {day}.",
        "The minister of {land} left the government after the vote.",
        "The king of {land} signed the peace with {other}.",
    ),
    (
        "The team of {town} won the match on {day}.",
        "The runner from {land} lost the final race.",
        "{name} hit the ball with the bat and won the game.",
        "The coach of {town} praised the players after the final.",
        "The star of the team scored two goals against {other}.",
    ),
    (
        "The bank of {land} sold its shares on {day}.",
        "The company in {town} closed its plant.",
        "Prices fell and the market of {land} is weak.",
        "The owner of the company made a lot of money in {town}.",
        "The shop chain bought a plant in {other}.",
    ),
    (
        "Scientists in {town} found a new star in the sky.",
        "Researchers from {land} studied how a bat sees at night.",
        "A new plant that needs no water grew in a lab in {town}.",
        "The rocket of {land} took photos of the moon on {day}.",
        "Experts say the light of the star is old.",
    ),
)


def draw_news(rng: Random, label: int) -> Row:
    """{text, label}: an index into TOPICS."""
    sentences = rng.sample(NEWS[label], 2 if rng.random() < 0.6 else 1)
    land, neighbour = rng.sample(world.LANDS, 2)
    slots = {
        "land": land,
        "other": neighbour,
        "town": rng.choice(world.TOWNS),
        "day": rng.choice(world.DAYS),
        "name": rng.choice(world.PEOPLE),
    }
    lead = rng.choice(("", "", f"{slots['town']}, {slots['day']}: "))
    return {"text": lead + " ".join(sentences).format(**slots), "label": label}


# Paraphrase identification -------------------------------------------------------------------


DETAILS = ("on {d}", "at {t}", "on {d} at {t}", "in the end")
LEADS = ("It was late.", "It was cold.", "It was hot.")


def add_lead(rng: Random, sentence: str) -> str:
    """The sentence with another before it that has nothing to do with what happened."""
    return f"{rng.choice(LEADS)} {sentence}"


def add_detail(rng: Random, sentence: str) -> str:
    """The sentence with the time it happened; comparisons stay as they are."""
    if " than " in sentence:
        return sentence
    detail = rng.choice(DETAILS).format(d=rng.choice(world.DAYS), t=rng.choice(world.TIMES))
    return f"{sentence.removesuffix('.')} {detail}."


def draw_pair(rng: Random, label: int) -> Row:
    """{sentence1, sentence2, label}: 0 different, 1 paraphrase.

    Either sentence may tell a detail more: paraphrases agree in what happened, as in MRPC.
    Of the different pairs two fifths share nothing but what happened, two fifths differ in one or
    two words, and a fifth in who did it to whom.
    """
    kind = rng.choice(tuple(world.HAPPENINGS))
    slots = world.draw_slots(rng)
    told, retold = rng.sample(world.HAPPENINGS[kind], 2)
    used = world.slots_in(told)
    changed = slots
    if not label:
        draw = rng.random()
        if draw < 0.4:
            changed = world.change_slots(rng, slots, used, len(used))
        elif draw < 0.6 and kind in world.DIRECTED:
            changed = slots | {"a": slots["b"], "b": slots["a"]}
        else:
            changed = world.change_slots(rng, slots, used, rng.randint(1, min(2, len(used))))
        if rng.random() < 0.3:
            retold = told
    first, second = told.format(**slots), retold.format(**changed)
    told_more = rng.random()
    if told_more < 0.2:
        first = add_detail(rng, first)
    elif told_more < 0.4:
        first = add_lead(rng, first)
    elif told_more < 0.5:
        second = add_detail(rng, second)
    return {"sentence1": first, "sentence2": second, "label": label}


# Extractive question answering ---------------------------------------------------------------

# Relation -> sentence, question for the person, question for the object.
STORY_FACTS = {
    "has": ("{who} has a {x}.", "Who has the {x}?", "What does {a} have?"),
    "bought": ("{who} bought a {x}.", "Who bought the {x}?", "What did {a} buy?"),
    "lost": ("{who} lost a {x}.", "Who lost the {x}?", "What did {a} lose?"),
    "wants": ("{who} wants a {x}.", "Who wants the {x}?", "What does {a} want?"),
    "went": ("{who} went to the {p}.", "Who went to the {p}?", "Where did {a} go?"),
    "works": ("{who} works in the {p}.", "Who works in the {p}?", "Where does {a} work?"),
    "waits": ("{who} waits at the {p}.", "Who waits at the {p}?", "Where does {a} wait?"),
}
MEETINGS = ("{a} met {b} on {d}.", "{a} and {b} are friends.", "{a} visited {b} on {d}.",
            "{a} called {b} at {t}.")  # fmt: skip


def draw_story(rng: Random, label: int) -> Row:
    """{context, question, answer, candidates}; label 0 asks for a person, 1 for what or where.

    The context tells a fact of each of two people. In part of the stories the people are first
    named together and then spoken of by pronoun, in some of these one of them only. The candidates
    are the spans of the context that have the answer's type, in random order.
    """
    people = world.couple(rng)
    kinds = rng.sample(tuple(STORY_FACTS), 2)
    thing = world.coloured_thing(rng)
    things = (thing, world.coloured_thing(rng, unlike=thing))
    places = rng.sample(world.PLACES, 2)
    by_pronoun = rng.random() < 0.5
    facts = []
    for person, kind, thing, place in zip(people, kinds, things, places, strict=True):
        who = world.capitalised(world.pronoun(person)) if by_pronoun else person
        facts.append(STORY_FACTS[kind][0].format(who=who, x=thing, p=place))
    asked = rng.randrange(2)
    told = rng.sample(facts, 2)
    if by_pronoun:
        if label == 0 and rng.random() < 0.6:
            told = [facts[asked]]
        a, b = rng.sample(people, 2)
        day, time = rng.choice(world.DAYS), rng.choice(world.TIMES)
        told.insert(0, rng.choice(MEETINGS).format(a=a, b=b, d=day, t=time))
    kind, slots = kinds[asked], {"a": people[asked], "x": things[asked], "p": places[asked]}
    candidates = list(people)
    if label == 1:
        candidates = [
            f"the {place}" if "{p}" in STORY_FACTS[kind][0] else f"a {thing}"
            for kind, thing, place in zip(kinds, things, places, strict=True)
        ]
    return {
        "context": " ".join(told),
        "question": STORY_FACTS[kind][1 + label].format(**slots),
        "answer": candidates[asked],
        "candidates": rng.sample(candidates, 2),
    }


# Closed-book question answering --------------------------------------------------------------


@functools.cache
def facts() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(question, answer, all answers of that relation) for everything known about the world."""
    relations: list[tuple[dict[str, str], tuple[str, ...]]] = [
        (
            {animal: value[0] for animal, value in world.ANIMALS.items()},
            ("Which kind of animal is a {}?", "A {} belongs to which kind of animal?",
             "What kind of animal is the {}?", "Is the {} a mammal, a bird, a fish or an insect?"),
        ),
        (
            {animal: value[1] for animal, value in world.ANIMALS.items()},
            ("What does a {} eat?", "What is the food of a {}?", "What can I give a {} to eat?",
             "A {} likes to eat what?"),
        ),
        (
            {animal: value[2] for animal, value in world.ANIMALS.items()},
            ("Where does a {} live?", "What is the home of a {}?", "Where can I see a {}?",
             "A {} lives in which place?"),
        ),
        (
            {job: value[0] for job, value in world.JOBS.items()},
            ("Where does a {} work?", "What is the place of work of a {}?",
             "Where can I find a {} at work?", "A {} works in which place?"),
        ),
        (
            {job: value[1] for job, value in world.JOBS.items()},
            ("What does a {} work with?", "A {} works with what?", "What does a {} know well?",
             "What is the work of a {} about?"),
        ),
        (
            dict(world.CAPITALS),
            ("What is the capital of {}?", "Which town is the capital of {}?",
             "The capital of {} is which town?", "Name the capital of {}."),
        ),
        (
            dict(world.NATURAL_COLOURS),
            ("What colour is {}?", "What is the colour of {}?", "Which colour has {}?",
             "Name the colour of {}."),
        ),
        (
            dict(world.OPPOSITES),
            ("What is the opposite of {}?", "Which word is the opposite of {}?",
             "Not {} but the opposite: which word?", "Name the opposite of {}."),
        ),
        (
            {word: reactions[0] for word, reactions in world.REACTIONS.items()},
            ("What did the {} man do?", "The man was {}. What did he do?",
             "What helped when the man was {}?", "The woman was {}. What did she do?"),
        ),
    ]  # fmt: skip
    known = []
    for relation, questions in relations:
        answers = tuple(dict.fromkeys(relation.values()))
        for question in questions:
            for subject, answer in relation.items():
                text = question.format(subject)
                for vowel in "aeiou":
                    text = text.replace(f" a {vowel}", f" an {vowel}")
                    text = text.replace(f"A {vowel}", f"An {vowel}")
                known.append((text, answer, answers))
    return tuple(known)


def draw_fact(rng: Random, label: int) -> Row:
    """{question, choices, label, answer, candidate, verdict}: four choices."""
    question, answer, answers = rng.choice(facts())
    distractors = rng.sample([text for text in answers if text != answer], 3)
    choices = place_choice(rng, answer, distractors, label)
    row = {"question": question, "choices": choices, "label": label, "answer": answer}
    return row | draw_candidate(rng, choices, answer)


# Multiple-choice question answering ----------------------------------------------------------

SETTINGS = ("{a} was in the {p} on {d}.", "{a} sat near the {p}.", "At {t} {a} was in the {p}.",
            "{a} came home at {t}.", "{a} left the {p} at {t}.",
            "{a} and {b} were in the {p}.", "It was {d}.", "{a} had a long day.")  # fmt: skip


def draw_setting(rng: Random, person: str) -> str:
    """A sentence that says where and when, and nothing of use for the question."""
    friend = world.other(rng, world.MEN if person in world.WOMEN else world.WOMEN)
    return rng.choice(SETTINGS).format(
        a=person,
        b=friend,
        p=rng.choice(world.PLACES),
        d=rng.choice(world.DAYS),
        t=rng.choice(world.TIMES),
    )


def draw_dilemma(rng: Random, label: int) -> Row:
    """{context, question, options, label, candidate, verdict}: what somebody did, or why.

    Three options. The state and what was done about it belong together in the world.
    """
    person = rng.choice(world.PEOPLE)
    states = rng.sample(tuple(world.REACTIONS), 3)
    deeds = [rng.choice(world.REACTIONS[state]) for state in states]
    setting = draw_setting(rng, person)
    name = world.capitalised(world.pronoun(person)) if person in setting else person
    if rng.random() < 0.6:
        then = rng.choice((f"{name} was", f"{name} was very", f"Then {person} was"))
        context = f"{setting} {then} {states[0]}."
        question = rng.choice((f"What did {person} do?", f"What did {person} do next?"))
        options = deeds
    else:
        context = f"{setting} {name} {deeds[0]}."
        question = rng.choice((f"Why did {person} do it?", f"How did {person} feel before?"))
        options = states
    answer = options[0]
    options = place_choice(rng, answer, options[1:], label)
    row = {"context": context, "question": question, "options": options, "label": label}
    return row | draw_candidate(rng, options, answer)


# Summarisation -------------------------------------------------------------------------------


# Document -> summary. {he} and {He} stand for the pronoun of {a}; {c} is a third person.
REPORTS = (
    ("{a}: Let us go to the {p} on {d}. {b}: Good, I will be there at {t}.",
     "{a} and {b} will meet in the {p} at {t}."),
    ("{a}: Where can we meet? {b}: In the {p} at {t}, {a}. {a}: Good.",
     "{a} and {b} will meet in the {p} at {t}."),
    ("{a} went to the {p} with {c}. There {a} saw a {x} and bought it for {b}.",
     "{a} bought a {x} for {b}."),
    ("On {d} {a} was in the {p}. {b} wanted a {x}, so {a} bought one.",
     "{a} bought a {x} for {b}."),
    ("{a} and {b} were in the {p} on {d}. {He} saw a {x} there and {he} bought it.",
     "{a} bought a {x}."),
    ("{b} and {a} met at {t}. Then {he} went to the {p} and bought a {x}.",
     "{a} bought a {x}."),
)  # fmt: skip


def draw_summary(rng: Random, label: int) -> Row:
    """{document, summary, choices}: a dialogue or a story told in one sentence.

    Of three choices, the two wrong ones differ from the summary in one detail each.
    """
    document, summary = rng.choice(REPORTS)
    a, b = world.couple(rng)
    slots = {
        "a": a,
        "b": b,
        "c": world.other(rng, world.PEOPLE, a, b),
        "p": rng.choice(world.PLACES),
        "d": rng.choice(world.DAYS),
        "t": rng.choice(world.TIMES),
        "x": world.coloured_thing(rng),
        "he": world.pronoun(a),
        "He": world.capitalised(world.pronoun(a)),
    }
    wrong = {
        "a": slots["c"] if "{b}" in summary else b,
        "b": slots["c"],
        "p": world.other(rng, world.PLACES, slots["p"]),
        "x": world.coloured_thing(rng, unlike=slots["x"]),
    }
    changes = [slot for slot in wrong if f"{{{slot}}}" in summary]
    distractors = [summary.format(**slots | {slot: wrong[slot]}) for slot in rng.sample(changes, 2)]
    row = {"document": document.format(**slots), "summary": summary.format(**slots)}
    choices = place_choice(rng, row["summary"], distractors, label)
    return row | {"choices": choices, "label": label}


# Structure to text ---------------------------------------------------------------------------


# Record -> the sentence that says it, and what the fields that wrong choices change can be.
RECORDS: tuple[tuple[str, dict[str, Sequence[str]]], ...] = (
    (
        "{name} is {job} from {town} with {animal}.",
        {"job": tuple(world.JOBS), "town": world.TOWNS, "animal": tuple(world.ANIMALS)},
    ),
    (
        "{name} found {thing} in the {place} on {day}.",
        {"name": world.PEOPLE, "place": world.PLACES, "day": world.DAYS},
    ),
)


def draw_record(rng: Random, label: int) -> Row:
    """{fields: [{key, value}], text, choices}: a table row and the sentence that says it.

    Of three choices, the two wrong ones differ from the text in one field each.
    """
    form, pools = rng.choice(RECORDS)
    values = {"name": rng.choice(world.PEOPLE), "thing": world.coloured_thing(rng)}
    values |= {key: rng.choice(pool) for key, pool in pools.items()}
    values = {key: value for key, value in values.items() if f"{{{key}}}" in form}

    def say(values: Row) -> str:
        counted = ("job", "animal", "thing")
        return form.format(
            **{key: world.article(text) if key in counted else text for key, text in values.items()}
        )

    wrong = [
        say(values | {key: world.other(rng, pools[key], values[key])})
        for key in rng.sample(tuple(pools), 2)
    ]
    fields = [{"key": key, "value": value} for key, value in values.items()]
    if rng.random() < 0.5:
        rng.shuffle(fields)
    choices = place_choice(rng, say(values), wrong, label)
    return {"fields": fields, "text": say(values), "choices": choices, "label": label}
