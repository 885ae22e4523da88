"""What a checkpoint was trained on and by which optimizer, and what has changed since.

Every checkpoint bears a few plain values in Orbax's metadata: the fingerprint of its data (see
`t5x.data.fingerprints`), its optimizer, and the step that the run began at.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from t5x.checkpoints.formats.failures import UnreadableCheckpointError
from t5x.checkpoints.formats.storage import Directory

METADATA_FILE = "_CHECKPOINT_METADATA"
_KEY = "t5x"
_MOST_NAMED = 3
_GROUPS = ("reader", "kind", "tasks", "settings", "vocabulary")
OTHER_VOCABULARY = (
    "use the VOCABULARY of that run, or another MODEL_DIR that starts from this checkpoint "
    "(INITIAL_CHECKPOINT_PATH)"
)


class ChangedRunError(ValueError):
    """A run is not what the checkpoint of its MODEL_DIR says that it was."""


class ChangedDataError(ChangedRunError):
    """A position in the data does not fit the data."""


def as_metadata(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what to write of a fingerprint in Orbax's metadata."""
    return {_KEY: dict(fingerprint)}


def read_fingerprint(checkpoint: str) -> dict[str, Any]:
    """Returns the fingerprint of a checkpoint; empty where other programs wrote it.

    Raises:
      UnreadableCheckpointError: its metadata is damaged.
      OSError: no permission, or out of reach.
    """
    content = Directory(checkpoint).read(METADATA_FILE)
    if content is None:
        return {}
    try:
        whole = json.loads(content)
        custom = whole.get("custom_metadata") or {}
        return dict(custom.get(_KEY) or {})
    except (ValueError, AttributeError, TypeError) as error:
        raise UnreadableCheckpointError(f"{checkpoint}/{METADATA_FILE} is not JSON") from error


def describe_batches(iterator: Any) -> dict[str, Any]:
    """Returns the fingerprint of data of which nothing is known but its batches.

    Args:
      iterator: has shape and dtype of each feature in `element_spec`, where anything is known.
    """
    spec = getattr(iterator, "element_spec", None) or {}
    shapes = {name: list(spec[name].shape) for name in sorted(spec)}
    return {"reader": type(iterator).__name__, "settings": {"the shape of a batch": shapes}}


def check_model(checkpoint: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Makes sure that a run goes on with the vocabulary and the optimizer of its checkpoint.

    Args:
      checkpoint: its directory, for messages.
      saved: its fingerprint.
      current: that of the run; what either does not say is not compared.

    Raises:
      ChangedRunError: names what changed and what to do.
    """
    before, now = (_part(x, "vocabulary") for x in (saved, current))
    for feature in before.keys() & now.keys():
        if before[feature] != now[feature]:
            raise ChangedRunError(
                f"the vocabulary of {feature} was {before[feature]} and is {now[feature]}, but "
                f"this run goes on from {checkpoint}; {OTHER_VOCABULARY}"
            )
    optimizers = saved.get("optimizer"), current.get("optimizer")
    if None not in optimizers and optimizers[0] != optimizers[1]:
        raise ChangedRunError(
            f"the optimizer was {optimizers[0]} and is {optimizers[1]}, but this run goes on from "
            f"{checkpoint}; bind the former OPTIMIZER, or another MODEL_DIR that starts from this "
            "checkpoint (INITIAL_CHECKPOINT_PATH)"
        )


def check_data(checkpoint: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Makes sure that a position in the data was saved by just such data.

    Args:
      checkpoint: its directory, for messages.
      saved: the fingerprint that it bears.
      current: the fingerprint of the run.

    Raises:
      ChangedDataError: names what changed and the two ways on.
    """
    before, now = saved.get("data"), current.get("data")
    if before is None:
        raise ChangedDataError(
            f"{checkpoint} has a position in training data without a word of which data that is, "
            f"so it may not fit; {_ways_on('')}"
        )
    changes = describe_changes(before, now or {})
    if changes:
        raise ChangedDataError(
            f"{checkpoint} has a position in other training data: {'; '.join(changes)}; "
            f"{_ways_on('keep what it was, or ')}"
        )


def does_not_fit(checkpoint: str, reason: str) -> ChangedDataError:
    """What to raise where a whole position of the same data does not fit all the same."""
    return ChangedDataError(
        f"the position in the training data of {checkpoint} does not fit ({reason}); "
        f"{_ways_on('use the versions of t5x and TensorFlow that saved it, or ')}"
    )


def _ways_on(first: str) -> str:
    return (
        f"{first}bind RestoreCheckpointConfig.restore_dataset = False to read the data from its "
        "beginning"
    )


def _part(fingerprint: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _as_mapping((fingerprint.get("data") or {}).get(name))


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each thing that two fingerprints of data differ in."""
    before, now = (json.loads(json.dumps(x)) for x in (before, now))
    changes = []
    old, new = (x.get("reader", "another reader") for x in (before, now))
    if old != new:
        return [f"it was read by {old} and is read by {new}"]
    if before.get("kind") != now.get("kind"):
        changes.append(f"MIXTURE_OR_TASK_NAME was a {before.get('kind')}'s")
    changes += _describe_tasks(*(_as_mapping(x.get("tasks")) for x in (before, now)))
    for group in ("settings", "vocabulary"):
        old, new = (_as_mapping(x.get(group)) for x in (before, now))
        for name in old | new:
            if old.get(name) != new.get(name):
                label = name if group == "settings" else f"the vocabulary of {name}"
                changes.append(f"{label} was {old.get(name)} and is {new.get(name)}")
    # Readers of other kinds describe their data in their own words.
    for name in before | now:
        old, new = before.get(name), now.get(name)
        if name not in _GROUPS and old != new:
            shown = "" if isinstance(old, dict | list) else f" ({old} then, {new} now)"
            changes.append(f"the {name} changed{shown}")
    return changes


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {} if value is None else {"": value}


def _describe_tasks(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, now = ({k: _as_mapping(v) for k, v in x.items()} for x in (before, now))
    changes = []
    if gone := [name for name in before if name not in now]:
        changes.append(f"{_named(gone)} no longer in MIXTURE_OR_TASK_NAME")
    if new := [name for name in now if name not in before]:
        changes.append(f"{_named(new)} new in MIXTURE_OR_TASK_NAME")
    both = [name for name in before if name in now]
    for fact in sorted({fact for name in both for fact in before[name] | now[name]}):
        differing = [name for name in both if before[name].get(fact) != now[name].get(fact)]
        if differing:
            values = before[differing[0]].get(fact), now[differing[0]].get(fact)
            shown = f" ({values[0]} then, {values[1]} now)" if len(differing) == 1 else ""
            changes.append(f"the {fact} of {_named(differing)} changed{shown}")
    return changes


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more tasks" if rest > 0 else "")
