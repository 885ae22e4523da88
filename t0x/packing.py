"""Packs examples and their answer choices into rows, so that each input is encoded once.

A row holds several inputs one after the other, each a segment that attends to itself, and, on the
decoder's side, all choices of those inputs: each choice a segment of its own that cross-attends to
its own input. Every row has the same shape, so one compilation serves every task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Rows that are still open while packing; more find little that fits better.
OPEN_ROWS = 256


@dataclass(frozen=True)
class Choices:
    """An input and the choices to score after it, as token ids without padding."""

    inputs: np.ndarray
    targets: Sequence[np.ndarray]


@dataclass(frozen=True)
class Slot:
    """Where a choice's tokens lie: `length` positions of a decoder row, from `start`."""

    row: int
    start: int
    length: int


@dataclass(frozen=True)
class PackedRows:
    """Model features of (rows, length), and where each choice of each example is.

    Attributes:
      features: int32 arrays by name, as the network takes them.
      slots: slots[example][choice].
      repeated: inputs encoded again because not all their choices fit one row.
    """

    features: Mapping[str, np.ndarray]
    slots: Sequence[Sequence[Slot]]
    repeated: int


def pack(examples: Sequence[Choices], inputs_length: int, targets_length: int) -> PackedRows:
    """Packs examples into as few rows as first-fit-decreasing finds.

    Args:
        examples: what to score; no input longer than `inputs_length`, no choice longer than
            `targets_length` tokens.
        inputs_length: tokens in an encoder row.
        targets_length: tokens in a decoder row.

    Raises:
        ValueError: an input or a choice is too long.
    """
    parts = _split(examples, inputs_length, targets_length)
    rows = _assign(parts, examples, inputs_length, targets_length)
    count = max(rows, default=-1) + 1
    names = ("encoder_input_tokens", "encoder_segment_ids")
    features = {name: np.zeros((count, inputs_length), np.int32) for name in names}
    names = ("target_tokens", "input_tokens", "segment_ids", "cross_segment_ids", "loss_weights")
    features |= {f"decoder_{name}": np.zeros((count, targets_length), np.int32) for name in names}
    inputs_used = np.zeros(count, int)
    targets_used = np.zeros(count, int)
    inputs_held = np.zeros(count, int)
    choices_held = np.zeros(count, int)
    slots: list[list[Slot | None]] = [[None] * len(example.targets) for example in examples]
    for (number, places), row in zip(parts, rows, strict=True):
        inputs = examples[number].inputs
        inputs_held[row] += 1
        here = slice(inputs_used[row], inputs_used[row] + len(inputs))
        features["encoder_input_tokens"][row, here] = inputs
        features["encoder_segment_ids"][row, here] = inputs_held[row]
        inputs_used[row] = here.stop
        for place in places:
            target = examples[number].targets[place]
            choices_held[row] += 1
            here = slice(targets_used[row], targets_used[row] + len(target))
            features["decoder_target_tokens"][row, here] = target
            features["decoder_input_tokens"][row, here.start + 1 : here.stop] = target[:-1]
            features["decoder_segment_ids"][row, here] = choices_held[row]
            features["decoder_cross_segment_ids"][row, here] = inputs_held[row]
            features["decoder_loss_weights"][row, here] = 1
            targets_used[row] = here.stop
            slots[number][place] = Slot(int(row), int(here.start), len(target))
    return PackedRows(features, slots, repeated=len(parts) - len(examples))


def _split(
    examples: Sequence[Choices], inputs_length: int, targets_length: int
) -> list[tuple[int, list[int]]]:
    """(example, places of its choices) pairs whose choices fit one row; longest inputs first."""
    parts: list[tuple[int, list[int]]] = []
    for number, example in enumerate(examples):
        if len(example.inputs) > inputs_length:
            raise ValueError(f"pack: an input of {len(example.inputs)} tokens in {inputs_length}")
        used = targets_length  # the first choice opens a part
        for place, target in enumerate(example.targets):
            if len(target) > targets_length:
                raise ValueError(f"pack: a choice of {len(target)} tokens in {targets_length}")
            if place == 0 or used + len(target) > targets_length:
                parts.append((number, []))
                used = 0
            parts[-1][1].append(place)
            used += len(target)
    return sorted(parts, key=lambda part: len(examples[part[0]].inputs), reverse=True)


def _assign(
    parts: Sequence[tuple[int, list[int]]],
    examples: Sequence[Choices],
    inputs_length: int,
    targets_length: int,
) -> list[int]:
    """Row of each part: the first open one with room for its input and its choices."""
    open_rows = np.empty(0, int)
    room = np.empty((0, 2), int)
    assigned, count = [], 0
    for number, places in parts:
        example = examples[number]
        need = np.array([len(example.inputs), sum(len(example.targets[p]) for p in places)])
        fits = np.flatnonzero((room >= need).all(axis=1))
        if len(fits):
            place = fits[0]
        else:
            open_rows = np.append(open_rows, count)[-OPEN_ROWS:]
            room = np.vstack([room, [inputs_length, targets_length]])[-OPEN_ROWS:]
            place, count = len(open_rows) - 1, count + 1
        room[place] -= need
        assigned.append(int(open_rows[place]))
    return assigned


def lengths(examples: Sequence[Choices]) -> tuple[int, int]:
    """Longest input and longest sum of an example's choices, in tokens."""
    longest_inputs = max((len(example.inputs) for example in examples), default=1)
    choices = (sum(map(len, example.targets)) for example in examples)
    return longest_inputs, max(choices, default=1)


def sum_scores(slots: Sequence[Sequence[Slot]], token_scores: np.ndarray) -> list[list[float]]:
    """Sum of the token scores (rows, targets_length) of every choice of every example."""
    # Running sums make a slot's sum a difference; float64 keeps it exact to 1e-9.
    sums = np.cumsum(np.pad(token_scores.astype(np.float64), ((0, 0), (1, 0))), axis=1)
    return [
        [float(sums[s.row, s.start + s.length] - sums[s.row, s.start]) for s in choices]
        for choices in slots
    ]
