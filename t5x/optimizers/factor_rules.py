"""Which axes of a parameter Adafactor factors: rules by parameter path or by logical axis name."""

import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict

Axes = tuple[int, ...]


def path_name(path: Sequence[Any]) -> str:
    """Joins the keys of a path into a tree of nested dicts by '/'."""
    return "/".join(str(entry.key) for entry in path)


class FactorDim(enum.Enum):
    """What an axis of a parameter is to Adafactor."""

    NONE = None
    BATCH = 1
    ROW = 2
    COLUMN = 3


class HeuristicRule(enum.Enum):
    token = 1


# Stands for "factor the two largest axes, if both are large enough".
HEURISTIC_RULE = HeuristicRule.token
FactorRule = HeuristicRule | tuple[FactorDim, ...] | None

_FACTOR_DIM_NAMES = {
    "row": FactorDim.ROW,
    "col": FactorDim.COLUMN,
    "column": FactorDim.COLUMN,
    "batch": FactorDim.BATCH,
    "none": FactorDim.NONE,
    "unfactorized": FactorDim.NONE,
}


def factor_name_to_factordim(name: str | FactorDim) -> FactorDim:
    """Reads a FactorDim from its name in a gin file: row, column (col), batch or none."""
    if not isinstance(name, str):
        return name
    if name.lower() not in _FACTOR_DIM_NAMES:
        raise ValueError(
            f"Adafactor.logical_factor_rules: {name!r} is none of {', '.join(_FACTOR_DIM_NAMES)}"
        )
    return _FACTOR_DIM_NAMES[name.lower()]


def standard_logical_factor_rules() -> Mapping[str, FactorDim]:
    """The rules for the logical axis names of the T5 models.

    'layers' (a scanned stack) and 'stack' (fused parameters) are batches.
    """
    columns = (
        "vocab mlp heads kv joined_kv q_wi_fused o_wo_fused multiquery_heads kv_fused "
        "mlp_activations"
    )
    return FrozenDict(
        {
            "embed": FactorDim.ROW,
            **dict.fromkeys(columns.split(), FactorDim.COLUMN),
            **dict.fromkeys(("layers", "stack"), FactorDim.BATCH),
            **dict.fromkeys(("relpos_buckets", "layer_norm_scale"), FactorDim.NONE),
        }
    )


class HParamMap:
    """Hyper-parameters by parameter path: the first rule whose pattern is found in the path.

    Args:
      rules: pairs (regular expression, value). Paths are joined by '/'.
    """

    def __init__(self, rules: Sequence[tuple[str, Any]]) -> None:
        self._rules = [(re.compile(pattern), value) for pattern, value in rules]

    def __getitem__(self, key: str) -> Any:
        for pattern, value in self._rules:
            if pattern.search(key):
                return value
        raise KeyError(f"no rule of the HParamMap matches parameter {key}")

    def __call__(self, params: Any) -> Any:
        """Returns `params` with each parameter replaced by its value."""
        return jax.tree_util.tree_map_with_path(lambda path, _: self[path_name(path)], params)


def rule_of_axes(
    rules: Mapping[str, FactorDim | str], axes: Sequence[str], path: str
) -> tuple[FactorDim, ...]:
    """The factorisation rule of a parameter with these logical axes."""
    missing = [axis for axis in axes if axis not in rules]
    if missing:
        raise ValueError(
            f"Adafactor.logical_factor_rules has no rule for axis {missing[0]!r} of "
            f"parameter {path}"
        )
    rule = tuple(factor_name_to_factordim(rules[axis]) for axis in axes)
    if FactorDim.ROW not in rule or FactorDim.COLUMN not in rule:
        return tuple(dim if dim is FactorDim.BATCH else FactorDim.NONE for dim in rule)
    if FactorDim.NONE in rule:
        raise ValueError(
            f"Adafactor.logical_factor_rules factor only part of parameter {path} with axes "
            f"{tuple(axes)}: make all its axes rows, columns or batches"
        )
    return rule


@dataclasses.dataclass(frozen=True)
class Factoring:
    """How one parameter is factored.

    Attributes:
      averaged: axes over which norms are taken, that is, all but the batch axes.
      factors: the row axes and the column axes, or None if the second moment is kept whole.
    """

    averaged: Axes
    factors: tuple[Axes, Axes] | None


def two_largest_axes(shape: Sequence[int], minimum: int) -> tuple[Axes, Axes] | None:
    """The second largest and the largest axis, or None if the former is shorter than `minimum`."""
    if len(shape) < 2:
        return None
    second, largest = (int(axis) for axis in np.argsort(shape)[-2:])
    return ((second,), (largest,)) if shape[second] >= minimum else None


def factoring(rule: FactorRule, shape: Sequence[int], path: str, minimum: int) -> Factoring:
    """Returns how a parameter of a shape is factored under a rule (None: not at all).

    Args:
      minimum: shortest axis that is factored in a parameter of two axes.

    Raises:
      ValueError: the rule does not fit the shape.
    """
    all_axes = tuple(range(len(shape)))
    if rule is None:
        return Factoring(all_axes, None)
    if rule is HEURISTIC_RULE:
        if len(shape) > 2:
            raise ValueError(
                f"parameter {path} of shape {tuple(shape)} has more than two axes and no "
                "factorisation rule: set Adafactor.logical_factor_rules or Adafactor.factor_map"
            )
    elif len(rule) != len(shape):
        raise ValueError(
            f"Adafactor rule {rule} for parameter {path} names {len(rule)} axes, "
            f"but its shape is {tuple(shape)}"
        )
    else:
        axes_of = {dim: tuple(i for i in all_axes if rule[i] is dim) for dim in FactorDim}
        batch = axes_of[FactorDim.BATCH]
        # Plain matrices go by size whatever their rule says: T5X does so, and checkpoints agree.
        if len(shape) > 2 or batch:
            rows, columns = axes_of[FactorDim.ROW], axes_of[FactorDim.COLUMN]
            averaged = tuple(axis for axis in all_axes if axis not in batch)
            return Factoring(averaged, (rows, columns) if rows or columns else None)
    return Factoring(all_axes, two_largest_axes(shape, minimum))
