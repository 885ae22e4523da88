"""Mini-P3: T0's experiment small enough for a laptop, generated from a seed.

Eight training datasets over T0's training categories, four held-out datasets over its evaluation
categories, prompts in tasks/prompts/mini. Of every training dataset one prompt is held out too.

Registers the tasks `mini_<dataset>_<prompt>` and their `_score_eval` twins, and the mixtures
  mini_train: the prompts that training sees, at T0's rates;
  mini_score_eval: rank classification of every prompt that has answer choices, on validation.
`t0x.registration.task_info(task).seen` tells seen prompts, held-out prompts and held-out datasets
apart. Rows are drawn when a task is first read.

Chance is one over the number of choices, averaged over rows. Where the target is free text
(stories, summaries, records) the row carries the choices to rank: other spans of the context, or
the target with details changed.
"""

import functools
from pathlib import Path

import gin
import seqio
import tensorflow as tf

from t0x.registration import (
    Dataset,
    DatasetTasks,
    register_dataset,
    register_mixture,
)
from t0x.tasks.mini import datasets

NAME = "mini"
PROMPTS = Path(__file__).parent.parent / "prompts" / NAME
VOCABULARY = Path(__file__).parent.parent / "vocabularies" / "mini.model"
# One prompt of each training dataset that training never sees.
HELD_OUT_PROMPTS = {
    "reviews": "happy_customer",
    "news": "sort_it",
    "pairs": "friend_and_writer",
    "stories": "friend_asks",
    "facts": "do_you_know",
    "dilemmas": "best_answer",
    "summaries": "one_short_sentence",
    "records": "describe",
}


@gin.configurable(module="t0x.tasks.mini")
def vocabulary() -> seqio.SentencePieceVocabulary:
    """The words of Mini-P3, and bytes for anything else; pad 0, EOS 1, unknown 2."""
    return seqio.SentencePieceVocabulary(str(VOCABULARY), extra_ids=0)


def output_features() -> dict[str, seqio.Feature]:
    """As P3's: no EOS after the inputs."""
    words = vocabulary()
    return {
        "inputs": seqio.Feature(words, add_eos=False, dtype=tf.int32),
        "targets": seqio.Feature(words, add_eos=True, dtype=tf.int32),
    }


def register(spec: datasets.MiniDataset) -> DatasetTasks:
    """Registers one dataset's tasks."""
    dataset = Dataset(
        NAME,
        spec.name,
        spec.category,
        spec.splits,
        functools.partial(datasets.rows, spec.name),
        held_out=spec.held_out,
        eval_split="validation",
    )
    held_out_prompt = HELD_OUT_PROMPTS.get(spec.name)
    return register_dataset(
        dataset.name,
        dataset,
        PROMPTS / spec.name / "templates.yaml",
        held_out_prompts=[held_out_prompt] if held_out_prompt else [],
        output_features=output_features(),
        mixtures=False,
    )


TASKS = {spec.name: register(spec) for spec in datasets.DATASETS}
register_mixture("mini_train", [name for tasks in TASKS.values() for name in tasks.train])
register_mixture("mini_score_eval", [name for tasks in TASKS.values() for name in tasks.score_eval])
