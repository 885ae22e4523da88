"""What a run is trained on, in a few plain values: enough to tell whether a position in it fits.

A position in the data is a number of steps taken through a certain pipeline. Taken through another
one it is a position in something else, or none at all; TensorFlow notices some of that and crashes
on some. So checkpoints bear the fingerprint of the data beside the position.

A task says more of itself than SeqIO knows by a method `fingerprint(split)` that returns plain
values by name: digests of what its examples are made from.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import seqio

_DIGEST_CHARACTERS = 16


def digest(parts: Iterable[bytes]) -> str:
    """Returns a digest of byte strings in order."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:_DIGEST_CHARACTERS]


def describe_vocabulary(vocabulary: seqio.Vocabulary) -> str:
    """Returns the kind of a vocabulary, its size and a digest of its model where it has one."""
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return f"{type(vocabulary).__name__} of {vocabulary.vocab_size}"
    # Subclasses differ in where they find the model.
    model = digest([vocabulary.sp_model or b""])
    return f"SentencePiece {model} of {vocabulary.vocab_size}"


def describe_data(
    cfg: Any, provider: seqio.Task | seqio.Mixture, *, seed: int, num_shards: int
) -> dict[str, Any]:
    """Returns the fingerprint of what a DatasetConfig reads through SeqIO.

    Args:
      cfg: the config.
      provider: its task or mixture.
      seed: what it is shuffled and mixed with.
      num_shards: parts that the data is read in.
    """
    is_mixture = isinstance(provider, seqio.Mixture)
    tasks = {}
    for task in seqio.get_subtasks(provider):
        facts = _describe_task(task, cfg.split)
        if is_mixture:
            facts["rate"] = float(provider.get_rate(task))
        tasks[task.name] = facts
    return {
        "reader": "SeqIO",
        "kind": "mixture" if is_mixture else "task",
        "tasks": tasks,
        "vocabulary": {
            name: describe_vocabulary(feature.vocabulary)
            for name, feature in provider.output_features.items()
        },
        "settings": {
            "BATCH_SIZE": cfg.batch_size,
            "TASK_FEATURE_LENGTHS": dict(cfg.task_feature_lengths or {}),
            "DatasetConfig.split": cfg.split,
            "DatasetConfig.seed": seed,
            "DatasetConfig.shuffle": bool(cfg.shuffle),
            "DatasetConfig.pack": bool(cfg.pack),
            "DatasetConfig.use_cached": bool(cfg.use_cached),
            "DatasetConfig.trim_output_features": bool(cfg.trim_output_features),
            "the number of data shards (DatasetConfig.num_data_shards, or processes)": num_shards,
        },
    }


def _describe_task(task: seqio.Task, split: str) -> dict[str, Any]:
    describe = getattr(task, "fingerprint", None)
    if describe is not None:
        return dict(describe(split))
    names = [_name_of(step) for step in task.preprocessors]
    return {"source": type(task.source).__name__, "preprocessors": names}


def _name_of(function: Any) -> str:
    while hasattr(function, "func"):  # functools.partial, and SeqIO's own wrappers
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
