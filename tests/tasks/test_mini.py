"""Mini-P3: its rows, prompts, vocabulary and mixtures."""

import collections
import hashlib
import itertools
import json
import re

import pytest
import seqio
from hypothesis import given, settings
from hypothesis import strategies as st

from t0x.prompts.files import read_templates
from t0x.registration import task_info
from t0x.tasks import mini
from t0x.tasks.mini import datasets, held_out, pieces, training, world

SPECS = {spec.name: spec for spec in datasets.DATASETS}
TRAINING = [name for name, spec in SPECS.items() if not spec.held_out]
HELD_OUT = [name for name, spec in SPECS.items() if spec.held_out]
# Of all rows of all datasets, in order.
DIGEST = "de56ff35de7b809c0b07a6cd8c0367b26769537418c0d84b5a545b3fabd1129c"
MAX_INPUT_TOKENS, MAX_TARGET_TOKENS = 96, 16


def prompts(name):
    return read_templates(mini.PROMPTS / name / "templates.yaml")


def wording(template):
    """The words of a prompt itself: neither what it fills in nor its target."""
    text = template.jinja.split("|||")[0]
    return re.sub(r"\{\{.*?\}\}|\{%.*?%\}", " ", text)


def words(text):
    return re.findall(r"[A-Za-z]+", text)


@pytest.fixture(scope="module")
def rendered():
    """(dataset, split) → prompt → [(input, target, choices)], for every row."""
    texts = collections.defaultdict(dict)
    for name, spec in SPECS.items():
        templates = prompts(name)
        for split in spec.splits:
            rows = datasets.rows(name, split)
            for template in templates.values():
                texts[name, split][template.name] = [
                    (*template.apply(row), template.get_answer_choices_list(row)) for row in rows
                ]
    return texts


def test_there_are_eight_datasets_to_train_on_and_four_held_out():
    assert len(TRAINING) == 8
    assert len(HELD_OUT) == 4
    categories = {spec.category for spec in SPECS.values()}
    assert len(categories) == 12
    for name in SPECS:
        assert len(prompts(name)) >= 4


def test_rows_are_the_same_everywhere():
    everything = [
        datasets.rows(name, split) for name, spec in SPECS.items() for split in spec.splits
    ]
    assert hashlib.sha256(json.dumps(everything).encode()).hexdigest() == DIGEST


@pytest.mark.parametrize("name", SPECS)
def test_splits_have_their_size_and_share_nothing(name):
    spec = SPECS[name]
    keys = {}
    for split, size in spec.splits.items():
        rows = datasets.rows(name, split)
        assert len(rows) == size
        assert len({json.dumps(row, sort_keys=True) for row in rows}) == size
        keys[split] = {tuple(row[field] for field in spec.split_fields) for row in rows}
    assert not keys["train"] & keys["validation"]


def test_held_out_rows_are_in_no_training_row():
    def texts(name, split):
        for row in datasets.rows(name, split):
            yield tuple(row[field] for field in SPECS[name].split_fields)

    trained = {text for name in TRAINING for text in texts(name, "train")}
    # A word's sentence may be somebody's news; whole premises, texts and contexts are nobody's.
    for name in ("entailment", "pronouns", "endings"):
        assert not trained & set(texts(name, "validation"))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_answer_wins_by_being_frequent(name, split, rendered):
    """Neither an answer's text nor its position among the choices beats chance by much."""
    for template, examples in rendered[name, split].items():
        if examples[0][2] is None:
            continue
        chance = sum(1 / len(choices) for _, _, choices in examples) / len(examples)
        positions = collections.Counter(choices.index(target) for _, target, choices in examples)
        answers = collections.Counter(target for _, target, _ in examples)
        # A position is even by construction, or drawn evenly: three standard deviations.
        slack = 3 * (chance * (1 - chance) / len(examples)) ** 0.5
        assert max(positions.values()) / len(examples) <= chance + slack, template
        assert max(answers.values()) / len(examples) <= max(chance + slack, 0.5 + slack), template


@pytest.mark.parametrize("name", SPECS)
def test_every_prompt_renders_every_row(name, rendered):
    for split in SPECS[name].splits:
        for template, examples in rendered[name, split].items():
            for inputs, target, choices in examples:
                assert inputs
                assert target
                assert "{" not in inputs + target
                if choices is not None:
                    assert target in choices, template
                    assert len(set(choices)) == len(choices) >= 2, template


def test_prompts_of_a_dataset_differ():
    for name in SPECS:
        texts = [wording(template) for template in prompts(name).values()]
        shapes = [template.jinja for template in prompts(name).values()]
        assert len(set(shapes)) == len(shapes)
        assert len({tuple(words(text)) for text in texts}) >= len(texts) - 2


@pytest.mark.parametrize("name", HELD_OUT)
def test_training_prompts_do_not_speak_of_held_out_tasks(name):
    """No run of five words of a held-out dataset's prompt occurs in any training prompt."""

    def runs(dataset):
        for template in prompts(dataset).values():
            tokens = [word.lower() for word in words(wording(template))]
            yield from zip(*(tokens[start:] for start in range(5)), strict=False)

    assert not set(runs(name)) & {run for other in TRAINING for run in runs(other)}


@pytest.mark.parametrize("name", HELD_OUT)
def test_training_teaches_every_word_of_held_out_prompts_and_rows(name, rendered):
    """A model trained from scratch knows a word only if training text has it."""
    known = set()
    for trained in TRAINING:
        for template, examples in rendered[trained, "train"].items():
            if template != mini.HELD_OUT_PROMPTS[trained]:
                for inputs, target, _ in examples:
                    known.update(words(inputs), words(target))
    asked = {
        word
        for examples in rendered[name, "validation"].values()
        for inputs, _, choices in examples
        for word in words(" ".join([inputs, *choices]))
    }
    assert not asked - known


def test_vocabulary_has_every_word_whole_and_nothing_unknown(rendered):
    vocabulary = mini.vocabulary()
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    assert vocabulary.vocab_size % 128 == 0
    texts = {
        text
        for by_template in rendered.values()
        for examples in by_template.values()
        for inputs, target, choices in examples
        for text in (inputs, target, *(choices or []))
    }
    for word in {word for text in texts for word in text.split()}:
        pieces = vocabulary.tokenizer.encode(word, out_type=str)
        assert not any(piece.startswith("<") for piece in pieces), word
        assert len([piece for piece in pieces if words(piece)]) == len(words(word)), word
    assert vocabulary.decode(vocabulary.encode("Zoë's 7 °C")) == "Zoë's 7 °C"


def test_committed_vocabulary_is_what_the_rows_and_prompts_give(rendered):
    texts = {
        place: [
            " ".join([text, target, *(choices or [])])
            for row in zip(*by_template.values(), strict=True)
            for text, target, choices in row
        ]
        for place, by_template in rendered.items()
    }
    for (name, split), prompted in texts.items():
        own = pieces.prompted_texts(SPECS[name], split)
        assert list(itertools.islice(own, 20)) == prompted[:20]
    everything = itertools.chain.from_iterable(texts.values())
    assert pieces.build(everything) == mini.VOCABULARY.read_bytes()


def test_examples_are_short(rendered):
    tokenizer = mini.vocabulary().tokenizer

    def most_tokens(texts):
        # Words are whole pieces, so the most tokens are found among the longest texts.
        return max(len(tokenizer.encode(text)) for text in sorted(texts, key=len)[-200:])

    inputs, targets = set(), set()
    for by_template in rendered.values():
        for examples in by_template.values():
            for text, target, choices in examples:
                inputs.add(text)
                targets.update([target, *(choices or [])])
    assert most_tokens(inputs) <= MAX_INPUT_TOKENS
    assert most_tokens(targets) + 1 <= MAX_TARGET_TOKENS


def test_mixtures_hold_the_right_tasks_at_the_right_rates():
    train = seqio.get_mixture_or_task("mini_train")
    for task in train.tasks:
        info = task_info(task.name)
        assert info.seen == "seen"
        assert train.get_rate(task) == SPECS[info.dataset.subset].train_rows
    trained = sum(len(prompts(name)) - 1 for name in TRAINING)
    assert len(train.tasks) == trained

    score_eval = seqio.get_mixture_or_task("mini_score_eval")
    seen = collections.Counter(task_info(task.name).seen for task in score_eval.tasks)
    assert seen["held-out prompt"] == len(TRAINING)
    assert seen["held-out dataset"] == sum(len(prompts(name)) for name in HELD_OUT)
    assert all(task.name.endswith("_score_eval") for task in score_eval.tasks)
    assert {task_info(task.name).dataset.subset for task in score_eval.tasks} == set(SPECS)


def test_score_eval_task_gives_every_choice_of_every_row():
    task = seqio.get_mixture_or_task("mini_endings_go_on_score_eval")
    examples = list(task.get_dataset(None, "validation", shuffle=False).as_numpy_iterator())
    assert len(examples) == 4 * datasets.VALIDATION_ROWS
    assert sum(bool(example["is_correct"]) for example in examples) * 4 == len(examples)


def test_unknown_names_are_one_line():
    with pytest.raises(LookupError, match=r"^'?Mini-P3 has no dataset 'novels'; it has reviews"):
        datasets.rows("novels", "train")
    with pytest.raises(LookupError, match=r"mini/news has no split 'test'"):
        datasets.rows("news", "test")


# What rows say is true of the world -----------------------------------------------------------

generators = st.randoms(use_true_random=False)


def meaning(sentence):
    """(happening, who and what takes part), whatever the form and the details added."""
    patterns = {"{a}": r"(?P<a>\w+)", "{b}": r"(?P<b>\w+)", "{p}": r"(?P<p>\w+)"}
    patterns["{x}"] = r"(?P<x>\w+ \w+)"
    found = []
    for kind, forms in world.HAPPENINGS.items():
        for form in forms:
            pattern = form.removesuffix(".")
            for slot, regex in patterns.items():
                pattern = pattern.replace(slot, regex)
            if match := re.match(pattern + r"\b", sentence):
                slots = match.groupdict()
                people = (slots.pop("a"), slots.pop("b", None))
                mutual = kind not in world.DIRECTED
                found.append((kind, frozenset(people) if mutual else people, slots))
    assert len(found) <= 1, sentence
    return found[0] if found else None


@settings(deadline=None, max_examples=200)
@given(generators, st.integers(0, 1))
def test_paraphrases_mean_the_same_and_others_do_not(rng, label):
    row = training.draw_pair(rng, label)
    # Where there are two sentences, the first says nothing of what happened.
    first, second = (meaning(row[field].split(". ")[-1]) for field in ("sentence1", "sentence2"))
    assert first
    assert second
    assert (first == second) == bool(label)
    assert row["sentence1"] != row["sentence2"]


@settings(deadline=None, max_examples=200)
@given(generators, st.integers(0, 1))
def test_a_hypothesis_is_told_by_the_premise_or_is_not(rng, label):
    row = held_out.draw_entailment(rng, label)
    told = [meaning(sentence.strip()) for sentence in row["premise"].split(".")]
    claimed = meaning(row["hypothesis"])
    assert claimed
    assert (claimed in told) == (label == 0)


@settings(deadline=None, max_examples=60)
@given(generators, st.integers(0, 1))
def test_story_answers_are_spans_of_the_context(rng, label):
    row = training.draw_story(rng, label)
    assert row["answer"] in row["candidates"]
    for candidate in row["candidates"]:
        assert candidate in row["context"]


@settings(deadline=None, max_examples=60)
@given(generators, st.integers(0, 1))
def test_a_pronoun_fits_one_person_only(rng, label):
    row = held_out.draw_pronoun(rng, label)
    fits = [world.pronoun(row[option]) == row["pronoun"] for option in ("option1", "option2")]
    assert fits == [row["answer"] == "1", row["answer"] == "2"]


@settings(deadline=None, max_examples=60)
@given(generators, st.integers(0, 3))
def test_verdicts_tell_right_candidates(rng, label):
    fact = training.draw_fact(rng, label)
    assert (fact["candidate"] == fact["answer"]) == bool(fact["verdict"])
    assert fact["choices"][label] == fact["answer"]
    dilemma = training.draw_dilemma(rng, label % 3)
    right = dilemma["options"][dilemma["label"]]
    assert (dilemma["candidate"] == right) == bool(dilemma["verdict"])


@settings(deadline=None, max_examples=60)
@given(generators, st.integers(0, 3))
def test_only_the_right_ending_follows_from_the_state(rng, label):
    row = held_out.draw_ending(rng, label)
    endings = [ending.rstrip(".") for ending in row["endings"]]
    told = row["context"]

    def belong(state):
        deeds = world.REACTIONS[state]
        in_context = state in words(told) or any(deed in told for deed in deeds)
        return [in_context and (end == state or end in deeds) for end in endings]

    fitting = [index for state in world.REACTIONS for index, ok in enumerate(belong(state)) if ok]
    assert fitting == [label]
