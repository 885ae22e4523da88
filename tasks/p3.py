"""P3: every (dataset, prompt) pair of T0's catalogue as SeqIO tasks, and T0's eight mixtures.

A ninth, `wino_bias_eval`, is for generation: WinoBias's prompts have no choices to rank, T0 looked
for the referent in what the model wrote (appendix B.3; gin/eval_wino_bias.gin).

Importing this module registers them from the prompts and the catalogue alone; rows are looked for
when a task is read. `register` adds any other dataset that promptsource has prompts for.

Names, exclusions and mixtures are those of bigscience-workshop/t-zero (t0/seqio_tasks/tasks.py).
"""

from collections.abc import Iterable

import seqio

from t0x.prompts.collection import TemplateCollection, default_collection
from t0x.registration import (
    SCORE_EVAL,
    Dataset,
    DatasetTasks,
    register_dataset,
    register_mixture,
    task_info,
    task_infos,
    task_name,
)
from t0x.sources.openers import local_splits, open_rows
from t0x.tasks.catalogue import Entry, catalogue, published_examples

# Prompts that mostly come out longer than 1,024 tokens; only wiki_hop's and gigaword's could be in
# T0's mixtures at all.
EXCLUDED = frozenset(
    [
        *(
            f"hotpot_qa_{setting}_Generate_{what}"
            for setting in ("distractor", "fullwiki")
            for what in (
                "Answer",
                "Answer_and_Explanations",
                "Explanations",
                "Question",
                "Title_1",
                "Title_2",
            )
        ),
        *(f"tab_fact_tab_fact_tab_fact_{number}" for number in range(1, 8)),
        "wiki_hop_masked_Choose_Best_Object_Candidate",
        "wiki_hop_masked_Indirect_Question_about_Birthplace_Citizenship_Place_of_Death",
        "narrativeqa_Template_05",
        "ecthr_cases_alleged_violation_prediction_silver_rationales",
        # Its cached files were broken when T0 was trained.
        "gigaword_summarize_",
    ]
)

# Rank tasks that T0 did not select checkpoints by: they failed to cache.
UNCACHED_SCORE_EVAL = frozenset(
    f"{dataset}_{prompt}{SCORE_EVAL}"
    for dataset, prompts in {
        "amazon_polarity": (
            "Is_this_product_review_positive",
            "Is_this_review",
            "Is_this_review_negative",
            "User_recommend_this_product",
            "convey_negative_or_positive_sentiment",
            "flattering_or_not",
            "negative_or_positive_tone",
            "user_satisfied",
            "would_you_buy",
        ),
        "dbpedia_14": (
            "given_a_choice_of_categories_",
            "given_list_what_category_does_the_paragraph_belong_to",
            "pick_one_category_for_the_following_text",
        ),
        "wiki_hop_original": (
            *(f"choose_best_object_affirmative_{number}" for number in (1, 2, 3)),
            *(f"choose_best_object_interrogative_{number}" for number in (1, 2)),
        ),
    }.items()
    for prompt in prompts
)

# Training datasets whose tasks did not count in checkpoint selection: any task with this in its
# name.
UNSELECTED = (
    "paws_labeled_final",
    "adversarial_qa_dbidaf",
    "adversarial_qa_dbert",
    "duorc_ParaphraseRC",
    "dream",
    "amazon_polarity",
    "app_reviews",
    "imdb",
    "wiki_bio",
    "gigaword",
    "multi_news",
    "samsum",
    "dbpedia_14",
    "trec",
)

UNKNOWN_SPLITS = ("train", "validation", "test")

_registered: dict[tuple[str, str | None], DatasetTasks] = {}


def _anli_name(dataset: str, subset: str | None, template: str) -> str:
    """P3 puts ANLI's round at the end of the name."""
    return f"{task_name(dataset, None, template)}_{subset}"


def _register_entry(entry: Entry, collection: TemplateCollection) -> DatasetTasks:
    templates = collection.get(entry.name, entry.subset)
    merged = DatasetTasks()
    for dataset in entry.datasets():
        namer = _anli_name if entry.name == "anli" else task_name
        tasks = register_dataset(
            entry.name,
            dataset,
            templates,
            name_task=namer,
            examples=published_examples(),
            mixtures=False,
        )
        for names, more in zip(vars(merged).values(), vars(tasks).values(), strict=True):
            names.extend(more)
    return merged


def register(dataset: str, subset: str | None = None) -> DatasetTasks:
    """Registers a dataset that promptsource has prompts for; what is registered is returned as is.

    Outside the catalogue the splits are those found under $T0X_DATA_DIR, or else train, validation
    and test, which are only looked for when they are read.

    Raises:
      LookupError: there are no prompts for it.
    """
    key = (dataset, subset)
    if key in _registered:
        return _registered[key]
    collection = default_collection()
    templates = collection.get(dataset, subset)
    if key in catalogue():
        _registered[key] = _register_entry(catalogue()[key], collection)
        return _registered[key]
    splits = dict.fromkeys(local_splits(dataset, subset) or UNKNOWN_SPLITS)
    source = Dataset(
        name=dataset,
        subset=subset,
        category="",
        splits=splits,
        rows=lambda split: open_rows(dataset, subset, split),
        eval_split="validation" if "validation" in splits else list(splits)[-1],
    )
    _registered[key] = register_dataset(dataset, source, templates, mixtures=False)
    return _registered[key]


def tasks_of(groups: Iterable[str]) -> list[str]:
    """Training tasks of the groups, in catalogue order, without the excluded prompts."""
    return [
        task
        for key, entry in catalogue().items()
        if entry.train_group in groups and key in _registered
        for task in _registered[key].all
        if task not in EXCLUDED
    ]


def evaluated_tasks(eval_group: str) -> list[str]:
    """All tasks of the datasets of an evaluation group, in catalogue order, not those that rank."""
    return [
        task
        for key, entry in catalogue().items()
        if entry.eval_group == eval_group and key in _registered
        for task in _registered[key].all
        if task not in EXCLUDED
    ]


def _score_eval_of(eval_group: str, original_only: bool) -> list[str]:
    return [
        task
        for key, entry in catalogue().items()
        if entry.eval_group == eval_group and key in _registered
        for task in _registered[key].score_eval
        if task.removesuffix(SCORE_EVAL) not in EXCLUDED
        and (task_info(task).template.metadata.original_task or not original_only)
    ]


def _original(tasks: Iterable[str]) -> list[str]:
    return [task for task in tasks if task_info(task).template.metadata.original_task]


def _one_per_dataset(tasks: Iterable[str]) -> list[str]:
    first: dict[str, str] = {}
    for task in tasks:
        first.setdefault(task_info(task).dataset.label, task)
    return list(first.values())


def _selection(train_tasks: Iterable[str]) -> list[str]:
    """Rank tasks by which T0 chose its checkpoint: original-task prompts of what it trained on."""
    twins = [f"{task}{SCORE_EVAL}" for task in _original(train_tasks)]
    return [
        twin
        for twin in twins
        if twin in task_infos()
        and twin not in UNCACHED_SCORE_EVAL
        and not any(name in twin for name in UNSELECTED)
    ]


def _mixtures() -> dict[str, list[str]]:
    t0_train = tasks_of(["T0"])
    return {
        "t0_train": t0_train,
        "t0+_train": tasks_of(["T0", "T0+"]),
        "t0++_train": tasks_of(["T0", "T0+", "T0++"]),
        "t0_eval_score_eval": _score_eval_of("T0", original_only=True),
        "t0_train_score_eval": _selection(t0_train),
        "t0_train_one_og_prompt": _one_per_dataset(_original(t0_train)),
        "t0_train_all_og_prompts": _original(t0_train),
        "bias_fairness_eval_score_eval": _score_eval_of("bias_fairness", original_only=False),
        "wino_bias_eval": [
            task
            for (dataset, _), tasks in _registered.items()
            if dataset == "wino_bias"
            for task in tasks.all
        ],
    }


def _register_all() -> None:
    """Registers what the catalogue lists and the installed prompts cover.

    Raises:
      LookupError: there are no prompts for any of it.
    """
    collection = default_collection()
    available = set(collection.datasets())
    for key, entry in catalogue().items():
        if key in available:
            _registered[key] = _register_entry(entry, collection)
    if not _registered:
        raise LookupError(
            "the prompts of P3 are not installed: run `t0x prompts install` (needs a network, "
            "once), point $T0X_PROMPTS_DIR at promptsource's templates, or run "
            "--gin_file=t0_mini.gin, which brings its own"
        )
    for name, tasks in _mixtures().items():
        if tasks and name not in seqio.MixtureRegistry.names():
            register_mixture(name, tasks)


_register_all()
