"""Nested dicts of train state: flattening, merging, and renaming on the way from a checkpoint."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

_TENSORSTORE_KEYS = {"driver", "kvstore", "metadata"}


def tensorstore_leaf(_: Any, value: Mapping[str, Any]) -> bool:
    """Tells whether a dict is a serialised TensorStore spec, hence one array."""
    return value.keys() >= _TENSORSTORE_KEYS


def flatten_state_dict(
    state_dict: Mapping[str, Any], keep_empty_nodes: bool = False
) -> dict[str, Any]:
    """Flattens to paths joined by '/', down to arrays and TensorStore specs."""
    return flatten_dict(
        state_dict, keep_empty_nodes=keep_empty_nodes, is_leaf=tensorstore_leaf, sep="/"
    )


def get_name_tree(state_dict: Mapping[str, Any], keep_empty_nodes: bool = False) -> dict[str, Any]:
    """Returns the nested dict with each leaf replaced by its path, joined by '/'."""
    flat = flatten_dict(state_dict, keep_empty_nodes=keep_empty_nodes)
    return unflatten_dict({path: "/".join(path) for path in flat})


def intersect_state(
    state_dict: Mapping[str, Any], intersect_state_dict: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the entries of `state_dict` whose paths are also in `intersect_state_dict`."""
    flat, others = flatten_state_dict(state_dict), flatten_state_dict(intersect_state_dict)
    for path in flat.keys() - others.keys():
        logging.warning("%s is on one side only and is left out", path)
    return unflatten_dict({path: flat[path] for path in flat if path in others}, sep="/")


def merge_state(
    state_dict: Mapping[str, Any],
    from_scratch_state: Mapping[str, Any],
    overwrite: bool = False,
) -> dict[str, Any]:
    """Returns `state_dict` with the entries of `from_scratch_state` that it lacks.

    Args:
      state_dict: the nested dict to complete.
      from_scratch_state: the nested dict to take entries from.
      overwrite: take entries that `state_dict` has, too.
    """
    flat, scratch = flatten_state_dict(state_dict), flatten_state_dict(from_scratch_state)
    for path, value in scratch.items():
        if overwrite or path not in flat:
            logging.warning("%s is initialised from scratch", path)
            flat[path] = value
    return unflatten_dict(flat, sep="/")


def apply_assignment_map(
    ckpt_optimizer_state: Mapping[str, Any],
    optimizer_state: Mapping[str, Any],
    assignment_map: Sequence[tuple[str, str | None]],
    require_all_rules_match: bool = True,
    *,
    is_resuming: bool = False,
) -> Mapping[str, Any]:
    """Renames the entries of a checkpoint to those of the model.

    The first rule that matches a model path in full names the checkpoint entry it is read from.
    Model paths that no rule matches keep the checkpoint entry of the same name. A checkpoint entry
    may serve several model paths; those that a rule asked for are gone under their old name, the
    others are still there.

    Args:
      ckpt_optimizer_state: nested dict of the checkpoint.
      optimizer_state: nested dict of the model.
      assignment_map: pairs (pattern of model paths, checkpoint path). The path may hold references
        to the pattern's groups; None drops the model path from the result.
      require_all_rules_match: refuse rules that match nothing.
      is_resuming: the checkpoint is of this very run, renamed already: return it as it is.

    Raises:
      ValueError: a rule names an entry that is not in the checkpoint, or matches nothing.
    """
    if is_resuming:
        return ckpt_optimizer_state
    checkpoint = flatten_state_dict(ckpt_optimizer_state)
    model = flatten_state_dict(optimizer_state)
    sources: dict[str, str | None] = {}
    used = set()
    for path in model:
        for pattern, replacement in assignment_map:
            if match := re.fullmatch(pattern, path):
                used.add(pattern)
                sources[path] = None if replacement is None else match.expand(replacement)
                break
    unused = [pattern for pattern, _ in assignment_map if pattern not in used]
    if unused and require_all_rules_match:
        raise ValueError(
            f"RestoreCheckpointConfig.assignment_map: {', '.join(map(repr, unused))} match no "
            "parameter of the model"
        )
    for path, source in sources.items():
        if source is not None and source not in checkpoint:
            raise ValueError(
                f"RestoreCheckpointConfig.assignment_map reads {path} from {source}, which is not "
                f"in the checkpoint; it has {_some(checkpoint)}"
            )
    renamed = set(sources.values())
    dropped = {path for path, source in sources.items() if source is None}
    # An entry that was renamed away still serves the model path of its own name.
    kept = {
        path: value
        for path, value in checkpoint.items()
        if path not in dropped and (path not in renamed or path in model)
    }
    assigned = {path: checkpoint[source] for path, source in sources.items() if source is not None}
    return unflatten_dict(kept | assigned, sep="/")


def _some(paths: Mapping[str, Any], most: int = 5) -> str:
    shown = sorted(paths)[:most]
    rest = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
