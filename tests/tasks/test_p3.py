"""P3's registry, T0's mixtures and the local mixtures, over small prompts and rows of our own.

Importing the modules registers tasks for the whole process, so they run in one of their own.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t0x.prompts.collection import TemplateCollection, default_collection, install_directory
from t0x.tasks.catalogue import PATH as CATALOGUE
from t0x.tasks.catalogue import catalogue, published_examples

FACTS = Path(__file__).parents[3] / "shared" / "facts"

# (dataset, subset) → prompts: name, has choices, original task. Names that need cleaning, T0's
# exclusions and its special cases.
PROMPTS = {
    "ag_news": [("which?", True, True), ("write it", False, False)],
    "dream": [("baseline", True, True), ("open", False, True)],
    "gigaword": [("Summarize.", False, True), ("summarize_", False, True)],
    "amazon_polarity": [("would_you_buy", True, True), ("other", True, True), ("x", True, False)],
    "wiki_hop/original": [("choose_best_object_affirmative_1", True, True), ("y", True, True)],
    "rotten_tomatoes": [("a", True, False), ("b", True, True), ("c", True, True)],
    "piqa": [("finish", True, True)],
    "super_glue/copa": [("C1 or C2?", True, True), ("explain", False, False)],
    "super_glue/axg": [("must be true", True, True)],
    "wino_bias/type1_pro": [("refers_to", False, True)],
    "anli": [("GPT-3 style", True, True), ("not original", True, False)],
    "mrqa_like": [("outside the catalogue", True, True)],
}

SCRIPT = """
import contextlib, importlib, io, json, os, socket, sys, time

import seqio

def refuse(*arguments, **options):
    raise OSError("no network in tests")

socket.socket.connect = refuse

def error_of(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

prompts = os.environ.pop("T0X_PROMPTS_DIR")
without_prompts = error_of(importlib.import_module, "t0x.tasks.p3")
os.environ["T0X_PROMPTS_DIR"] = prompts
started = time.process_time()
from t0x.tasks import p3
seconds = time.process_time() - started
from t0x import registration
from t0x.tasks import local
p3_mixtures = [m for m in seqio.MixtureRegistry.names()]
outside = p3.register("mrqa_like")
again = p3.register("super_glue", "copa")
from t0x.cli.tasks import list_tasks

def listed(**options):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        list_tasks(module=["t0x.tasks.p3"], as_json=True, **options)
    return json.loads(text.getvalue())

local_train = seqio.MixtureRegistry.get("local_train")
read = local_train.get_dataset(
    {"inputs": 32, "targets": 8}, "train", shuffle=True, seed=1, copy_pretokenized=True
)
json.dump({
    "seconds": seconds,
    "without_prompts": without_prompts,
    "tasks": {name: sorted(seqio.TaskRegistry.get(name).splits) for name in
              registration.task_infos()},
    "mixtures": {
        name: {task.name: seqio.MixtureRegistry.get(name).get_rate(task)
               for task in seqio.MixtureRegistry.get(name).tasks}
        for name in seqio.MixtureRegistry.names()
    },
    "seen": {name: info.seen for name, info in registration.task_infos().items()},
    "sizes": {
        name: {split: task.num_input_examples(split) for split in task.splits}
        for name, task in ((n, seqio.TaskRegistry.get(n)) for n in (
            "ag_news_which_", "anli_GPT_3_style_r3", "dream_baseline"))
    },
    "read": sorted({str(e["inputs_pretokenized"].numpy()) for e in read.take(200)}),
    "outside": vars(outside),
    "again": vars(again),
    "listed": listed(mixture=None),
    "listed_local": listed(mixture="local_score_eval"),
    "errors": [
        error_of(listed, mixture="no_such"),
        error_of(p3.register, "nothing"),
        error_of(local.register_local, "mine", ["xsum"]),
        error_of(seqio.TaskRegistry.get("piqa_finish").get_dataset, None, "train"),
    ],
}, open(sys.argv[1], "w"))
# Left running: the process must still come to its end.
running = iter(read.repeat().prefetch(100))
next(running)
"""


def write_prompts(root):
    for folder, prompts in PROMPTS.items():
        entries = "".join(
            f"""
  id{number}: !Template
    answer_choices: {"first ||| second" if choices else "null"}
    id: id{number}
    jinja: '{{{{n}}}} in {name}?|||{{{{answer}}}}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics: [Accuracy]
      original_task: {str(original).lower()}
    name: '{name}'
    reference: ''"""
            for number, (name, choices, original) in enumerate(prompts)
        )
        path = root / folder / "templates.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(f"dataset: {folder}\ntemplates:{entries}\n")


def write_rows(root, dataset, **splits):
    folder = root / dataset / "default"
    folder.mkdir(parents=True)
    for split, count in splits.items():
        rows = [{"n": n, "answer": ("first", "second")[n % 2]} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def run(script, *arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("T0X_")}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**kept, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """What a process has registered that imported t0x.tasks.p3 and t0x.tasks.local."""
    root = tmp_path_factory.mktemp("p3")
    write_prompts(root / "prompts")
    write_rows(root / "rows", "ag_news", train=30, test=6)
    write_rows(root / "rows", "dream", train=20, validation=4, test=5)
    write_rows(root / "rows", "mrqa_like", train=3, dev=2)
    done = run(
        SCRIPT,
        root / "found.json",
        T0X_PROMPTS_DIR=str(root / "prompts"),
        T0X_CACHE_DIR=str(root / "cache"),
        T0X_DATA_DIR=str(root / "rows"),
        T0X_VOCABULARY=str(byte_like_vocabulary(root / "v.model")),
        TFDS_DATA_DIR=str(root / "tfds"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((root / "found.json").read_text())


def byte_like_vocabulary(path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["first second in which 0123456789?"] * 20),
        model_prefix=str(path.with_suffix("")),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return path


def test_names_and_twins(registry):
    names = set(registry["tasks"])
    assert {
        "ag_news_which_",
        "ag_news_which__score_eval",
        "ag_news_write_it",
        "super_glue_copa_C1_or_C2_",
        "super_glue_copa_C1_or_C2__score_eval",
        "super_glue_axg_must_be_true_score_eval",
        "gigaword_summarize_",
        "gigaword_Summarize.",
    } <= names
    assert "ag_news_write_it_score_eval" not in names
    assert registry["again"]["all"] == ["super_glue_copa_C1_or_C2_", "super_glue_copa_explain"]


def test_anli_has_three_rounds(registry):
    rounds = [name for name in registry["tasks"] if name.startswith("anli_GPT_3_style")]
    assert rounds == [
        f"anli_GPT_3_style_{r}{twin}" for r in ("r1", "r2", "r3") for twin in ("", "_score_eval")
    ]
    assert registry["tasks"]["anli_GPT_3_style_r2"] == ["eval", "test", "train", "validation"]
    sizes = {"train": 100459, "validation": 1200, "test": 1200, "eval": 1200}
    assert registry["sizes"]["anli_GPT_3_style_r3"] == sizes


def test_training_mixtures_hold_their_groups_without_exclusions(registry):
    t0, plus, plusplus = (set(registry["mixtures"][f"t0{n}_train"]) for n in ("", "+", "++"))
    assert "gigaword_summarize_" not in plusplus and "gigaword_Summarize." in t0
    assert plus - t0 == {"piqa_finish"}
    assert plusplus - plus == {"super_glue_copa_C1_or_C2_", "super_glue_copa_explain"}
    assert not any(name.startswith(("anli", "super_glue_axg")) for name in plusplus)


def test_rates_are_t0s(registry):
    rates = registry["mixtures"]["t0++_train"]
    # Its local rows change nothing in T0's own mixtures.
    assert rates["ag_news_which_"] == rates["ag_news_write_it"] == 120_000
    assert rates["amazon_polarity_other"] == 500_000 // 3
    assert rates["gigaword_Summarize."] == 500_000 // 2  # the excluded prompt counts too
    assert rates["super_glue_copa_explain"] == 400


def test_evaluation_mixtures(registry):
    mixtures = {name: sorted(tasks) for name, tasks in registry["mixtures"].items()}
    assert mixtures["t0_eval_score_eval"] == [
        *(f"anli_GPT_3_style_{r}_score_eval" for r in ("r1", "r2", "r3")),
        "super_glue_copa_C1_or_C2__score_eval",
    ]
    assert mixtures["bias_fairness_eval_score_eval"] == ["super_glue_axg_must_be_true_score_eval"]
    assert mixtures["wino_bias_eval"] == ["wino_bias_type1_pro_refers_to"]
    assert mixtures["t0_train_score_eval"] == [
        "ag_news_which__score_eval",
        "rotten_tomatoes_b_score_eval",
        "rotten_tomatoes_c_score_eval",
        "wiki_hop_original_y_score_eval",
    ]


def test_ablation_mixtures(registry):
    one = set(registry["mixtures"]["t0_train_one_og_prompt"])
    every = set(registry["mixtures"]["t0_train_all_og_prompts"])
    assert {name for name in one if name.startswith("rotten")} == {"rotten_tomatoes_b"}
    assert {name for name in every if name.startswith("rotten")} == {
        "rotten_tomatoes_b",
        "rotten_tomatoes_c",
    }
    assert "ag_news_write_it" not in every and one < every


def test_what_t0_has_seen(registry):
    seen = registry["seen"]
    assert seen["ag_news_which_"] == "seen"
    assert seen["piqa_finish"] == seen["anli_not_original_r1"] == "held-out dataset"


def test_local_mixtures(registry):
    mixtures = registry["mixtures"]
    assert mixtures["local_train"] == {
        "ag_news_which_": 30,
        "ag_news_write_it": 30,
        "dream_baseline": 20,
        "dream_open": 20,
    }
    assert sorted(mixtures["local_score_eval"]) == [
        "ag_news_which__score_eval",
        "dream_baseline_score_eval",
    ]
    assert registry["sizes"]["ag_news_which_"] == {"train": 30, "test": 6, "eval": 6}
    assert registry["sizes"]["dream_baseline"]["eval"] == 5
    prompts = {line.split(" in ")[1] for line in registry["read"]}
    assert prompts == {"which??'", "write it?'", "baseline?'", "open?'"}


def test_a_dataset_outside_the_catalogue(registry):
    assert registry["outside"]["train"] == ["mrqa_like_outside_the_catalogue"]
    assert registry["tasks"]["mrqa_like_outside_the_catalogue"] == ["dev", "eval", "train"]


def test_listing(registry):
    listed = {task["name"]: task for task in registry["listed"]}
    assert listed["ag_news_which_"] == {
        "name": "ag_news_which_",
        "dataset": "ag_news",
        "subset": None,
        "template": "which?",
        "rate": 120_000,
        "splits": {"train": 30, "test": 6},
    }
    assert listed["anli_GPT_3_style_r1"]["subset"] == "r1"
    local = {task["name"]: task["rate"] for task in registry["listed_local"]}
    assert local == {"ag_news_which__score_eval": 30, "dream_baseline_score_eval": 20}


def test_errors_are_one_line_that_helps(registry):
    mixture, prompts, rows, missing = registry["errors"]
    assert "LookupError: no mixture is named 'no_such'" in mixture and "t0_train" in mixture
    assert prompts.startswith("LookupError") and "nothing" in prompts
    assert "LookupError: no local rows for xsum" in rows and "T0X_DATA_DIR" in rows
    assert missing.startswith("FileNotFoundError: no rows for piqa, split train")
    assert "[hub]" in missing
    assert not any("\n" in error for error in registry["errors"])


def test_importing_takes_little_processor_time(registry):
    assert registry["seconds"] < 2


def test_without_prompts_one_line_names_the_command(registry):
    message = registry["without_prompts"]
    assert message.startswith("LookupError: the prompts of P3 are not installed")
    assert "`t0x prompts install`" in message and "\n" not in message


def test_catalogue_is_t0s_table():
    if not FACTS.is_dir():
        pytest.skip(f"{FACTS} is not here")
    groups = {"BASE": "T0", "GPT_EVAL": "T0+", "SGLUE": "T0++", "": ""}
    with open(FACTS / "t0_datasets.csv", newline="") as file:
        table = {(row["HF_name"], row["subset"] or None): row for row in csv.DictReader(file)}
    # Cached in P3, in no mixture of T0's.
    extra = {("winogrande", "winogrande_debiased")}
    assert set(catalogue()) - extra == set(table)
    for key, row in table.items():
        entry = catalogue()[key]
        assert entry.category == row["task_by_convention"]
        assert entry.train_group == groups[row["do_train"]]
        assert entry.train_size == int(row["train_size"] or 0)
        evaluated = {"BASE": "T0", "BIAS_FAIRNESS": "bias_fairness", "": ""}
        assert entry.eval_group == evaluated[row["do_eval"]]


def test_catalogue_is_consistent():
    for entry in catalogue().values():
        for dataset in entry.datasets():
            assert dataset.eval_split is None or dataset.eval_split in dataset.splits
            assert "train" not in dataset.splits or entry.train_size or not entry.train_group
        assert entry.hub_id.count("/") == 1
        train = sum(rows for split, rows in entry.splits.items() if split.startswith("train"))
        assert entry.train_size in (0, train)
    groups = {entry.train_group for entry in catalogue().values()}
    assert groups == {"", "T0", "T0+", "T0++"}


# SHA-256 (first 16 digits) of the sorted names, and the sum of the rates, of the mixtures that
# bigscience-workshop/t-zero at 7a699e3ba15c1aeccf5b99cf2e2df3790f0dffce registers from
# promptsource 0.2.3's templates.
T0_MIXTURES = {
    "t0_train": (313, "d81f1733b4bf5abc", 17_277_798),
    "t0+_train": (392, "5f4a4020b000c5ea", 20_672_671),
    "t0++_train": (464, "f53a0b1b752ee854", 23_118_591),
    "t0_eval_score_eval": (116, "947908cb5c6bc665", None),
    "t0_train_score_eval": (89, "c6be5eb2ced37a8f", None),
    "t0_train_one_og_prompt": (35, "b277f16fb587a14f", 1_993_444),
    "t0_train_all_og_prompts": (222, "e780bb629f0b294d", 12_527_831),
    "bias_fairness_eval_score_eval": (16, "3f9b37f50469dd07", None),
}

FULL_SCRIPT = """
import json, socket, sys, time
import seqio
from t0x import registration

def refuse(*arguments, **options):
    raise OSError("no network in tests")

socket.socket.connect = socket.getaddrinfo = refuse
started = time.process_time()
from t0x.tasks import p3
seconds = time.process_time() - started
from t0x.registration import task_infos
registry = seqio.MixtureRegistry
json.dump({
    "seconds": seconds,
    "tasks": {name: {split: seqio.TaskRegistry.get(name).num_input_examples(split)
                     for split in info.dataset.splits} for name, info in task_infos().items()},
    "rows": {name: info.dataset.splits for name, info in task_infos().items()},
    "datasets": {name: [info.dataset.name, info.dataset.subset, info.num_templates]
                 for name, info in task_infos().items()},
    "conditional": [name for name, info in task_infos().items() if "{% if" in info.template.jinja],
    "choices": {name: len(info.template.get_fixed_answer_choices_list() or ())
                for name, info in task_infos().items() if info.score_eval},
    "mixtures": {name: {task.name: registry.get(name).get_rate(task)
                        for task in registry.get(name).tasks} for name in registry.names()},
}, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def full_registry(tmp_path_factory):
    if len(default_collection().datasets()) < 150:
        pytest.skip("promptsource's prompts are not installed (`t0x prompts install`)")
    path = tmp_path_factory.mktemp("full") / "found.json"
    given = {k: os.environ[k] for k in ("T0X_PROMPTS_DIR", "T0X_CACHE_DIR") if k in os.environ}
    done = run(FULL_SCRIPT, path, **given)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(path.read_text())


def test_mixtures_are_t0s_to_the_task(full_registry):
    found = {}
    for name, tasks in full_registry["mixtures"].items():
        digest = hashlib.sha256("\n".join(sorted(tasks)).encode()).hexdigest()[:16]
        total = None if name.endswith("score_eval") else sum(tasks.values())
        found[name] = (len(tasks), digest, total)
    assert found.pop("wino_bias_eval")[0] == 4 * 7  # ours
    assert found == T0_MIXTURES


def test_importing_all_of_p3_takes_less_than_two_seconds_of_processor_time(full_registry):
    assert full_registry["seconds"] < 2


def test_rates_are_t0s_rule_over_the_published_sizes(full_registry):
    # The very numbers of T0's table, see test_catalogue_is_t0s_table.
    with open(CATALOGUE, newline="") as file:
        sizes = {(r["dataset"], r["subset"] or None): r["train_size"] for r in csv.DictReader(file)}
    checked = 0
    for mixture in T0_MIXTURES:
        for task, rate in full_registry["mixtures"][mixture].items():
            dataset, subset, templates = full_registry["datasets"][task]
            size = int(sizes[dataset, None if dataset == "anli" else subset] or 0)
            assert rate == (size if size <= 500_000 else 500_000 // templates), task
            checked += 1
    assert checked == sum(count for count, *_ in T0_MIXTURES.values())


def test_every_row_of_the_catalogue_is_used(full_registry):
    datasets = full_registry["datasets"]
    mixed = {task for tasks in full_registry["mixtures"].values() for task in tasks}
    rounds = {("anli", r) for r in ("r1", "r2", "r3")}
    registered = {tuple(place[:2]) for place in datasets.values()}
    # promptsource 0.2.3 has no prompts for it; T0's table lists it all the same.
    unprompted = {("jigsaw_toxicity_pred", None)}
    assert registered == {*catalogue(), *rounds} - {("anli", None)} - unprompted
    # Cached in P3, in no mixture of T0's.
    unmixed = {("winogrande", "winogrande_debiased")}
    assert {tuple(datasets[task][:2]) for task in mixed} == registered - unmixed


def test_examples_are_p3s_published_table():
    if not FACTS.is_dir():
        pytest.skip(f"{FACTS} is not here")
    assert published_examples() == json.loads((FACTS / "p3_tasks.json").read_text())["tasks"]


def test_all_names_of_p3_with_their_counts(full_registry):
    published, tasks = published_examples(), full_registry["tasks"]
    assert len(published) == 660 and set(published) <= set(tasks)
    for name, splits in published.items():
        assert {split: tasks[name][split] for split in splits} == splits


# Choices of a row where templates take them from the row.
CHOICES = {"hellaswag": 4, "super_glue_copa": 2, "super_glue_wsc.fixed": 2, "winogrande": 2}


def test_published_counts_are_those_of_the_rows(full_registry):
    """One a row, in rank tasks one a choice; fewer only where a prompt branches on the row."""
    fewer = set()
    for name, splits in published_examples().items():
        choices = 1
        if name.endswith("_score_eval"):
            named = [count for start, count in CHOICES.items() if name.startswith(start)]
            choices = full_registry["choices"][name] or named[0]
        for split, count in splits.items():
            whole = choices * full_registry["rows"][name][split]
            assert count <= whole and count % choices == 0
            if count < whole:
                fewer.add(name)
    assert len(fewer) == 41 and fewer <= set(full_registry["conditional"])


def test_the_archive_loads_whole():
    archive = install_directory()
    if not archive.is_dir():
        pytest.skip("promptsource's prompts are not installed (`t0x prompts install`)")
    assert len(list(TemplateCollection([archive]).templates())) == 2085


FORMER = """
import json
import seqio
from promptsource import seqio_tasks
from promptsource.seqio_tasks import tasks

mixtures = map(seqio.MixtureRegistry.get, seqio.MixtureRegistry.names())
names = {mixture.name: [task.name for task in mixture.tasks] for mixture in mixtures}
print(json.dumps({"same": tasks is seqio_tasks, "module": seqio_tasks.__name__, "names": names}))
"""


def test_mixtures_by_the_names_of_t0s_own_runs(tmp_path):
    prompts = tmp_path / "prompts"
    write_prompts(prompts)
    install = "from t5x.run import former_names; former_names.install()\n"
    done = run(install + FORMER, T0X_PROMPTS_DIR=str(prompts), T0X_CACHE_DIR=str(tmp_path))
    found = json.loads(done.stdout.splitlines()[-1])
    names = found["names"]
    assert found["same"] and found["module"] == "t0x.tasks.former_mixtures"
    assert names["d4_train"] == names["t0_train"]
    assert names["d4_gpt_train"] == names["t0+_train"]
    assert names["d4_gpt_sglue_train"] == names["t0++_train"]
    assert set(names["gpt_train"]) == set(names["t0+_train"]) - set(names["t0_train"])
    assert set(names["sglue_train"]) == set(names["t0++_train"]) - set(names["t0+_train"])
    assert names["d4_score_eval"] == names["t0_eval_score_eval"]
    assert {f"{name}_score_eval" for name in names["d4_eval"]} == set(names["d4_score_eval"])
    assert names["d4_train_score_eval"] == names["t0_train_score_eval"]
    assert set(names["d4_train_eval"]) == {
        "ag_news_which_",
        "rotten_tomatoes_b",
        "rotten_tomatoes_c",
        "wiki_hop_original_choose_best_object_affirmative_1",
        "wiki_hop_original_y",
    }
    generated = {"super_glue_axg_must_be_true", "wino_bias_type1_pro_refers_to"}
    assert set(names["bias_fairness_eval"]) == generated
