"""Packs examples and their answer choices into rows, so that each input is encoded once.

A row holds several inputs one after the other, each a segment that attends to itself, and, on the
decoder's side, all choices of those inputs: each choice a segment of its own that cross-attends to
its own input. Every row has the same shape, so one compilation serves every task.

Shapes: N parts (an input with some of its choices), of which M are packed together, W wait, F fit
and C are chosen; R rows, L length of a row; 2: of inputs, of targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Examples packed together; more find little that fits better, and cost time.
TOGETHER = 2048
# Rows at least this long are packed as two halves wherever their inputs are short enough: attention
# is then computed half by half (t5x.attention.halves).
SHORTEST_HALVED = 256
# Lengths of encoder rows to choose among, and examples that the choice is tried on.
ROW_LENGTHS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048)
SAMPLE = 512
# Cost of a decoder token, with its logits, in encoder tokens; row length whose attention costs as
# much as all else. Rough, and good enough: both move with the model's shape.
TARGET_COST = 1.5
ATTENTION_LENGTH = 2048


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

    @property
    def rows(self) -> int:
        return len(self.features["encoder_input_tokens"])


def pack(examples: Sequence[Choices], inputs_length: int, targets_length: int) -> PackedRows:
    """Packs examples into few rows.

    Args:
      examples: what to score; no input longer than `inputs_length`, no choice longer than
        `targets_length` tokens.
      inputs_length: tokens in an encoder row.
      targets_length: tokens in a decoder row.

    Raises:
      ValueError: an input or a choice is too long.
    """
    parts = _split(examples, inputs_length, targets_length)
    layout = _assign(_needs(parts, examples), (inputs_length, targets_length))
    count = len(layout.blocks_R)
    names = ("encoder_input_tokens", "encoder_segment_ids")
    features = {name: np.zeros((count, inputs_length), np.int32) for name in names}
    names = ("target_tokens", "input_tokens", "segment_ids", "cross_segment_ids", "loss_weights")
    features |= {f"decoder_{name}": np.zeros((count, targets_length), np.int32) for name in names}
    targets_used_R = np.zeros(count, int)
    inputs_held_R = np.zeros(count, int)
    choices_held_R = np.zeros(count, int)
    slots: list[list[Slot | None]] = [[None] * len(example.targets) for example in examples]
    placed = zip(parts, layout.rows_N.tolist(), layout.starts_N.tolist(), strict=True)
    for (number, places), row, start in placed:
        inputs = examples[number].inputs
        inputs_held_R[row] += 1
        here = slice(start, start + len(inputs))
        features["encoder_input_tokens"][row, here] = inputs
        features["encoder_segment_ids"][row, here] = inputs_held_R[row]
        for place in places:
            target = examples[number].targets[place]
            choices_held_R[row] += 1
            here = slice(targets_used_R[row], targets_used_R[row] + len(target))
            features["decoder_target_tokens"][row, here] = target
            features["decoder_input_tokens"][row, here.start + 1 : here.stop] = target[:-1]
            features["decoder_segment_ids"][row, here] = choices_held_R[row]
            features["decoder_cross_segment_ids"][row, here] = inputs_held_R[row]
            features["decoder_loss_weights"][row, here] = 1
            targets_used_R[row] = here.stop
            slots[number][place] = Slot(row, int(here.start), len(target))
    return PackedRows(features, slots, repeated=len(parts) - len(examples))


def _split(
    examples: Sequence[Choices], inputs_length: int, targets_length: int
) -> list[tuple[int, list[int]]]:
    """(example, places of its choices) pairs whose choices fit one row."""
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
    return parts


def _needs(parts: Sequence[tuple[int, list[int]]], examples: Sequence[Choices]) -> np.ndarray:
    """Tokens (parts, 2) of the input and of the choices of each part."""
    return np.array(
        [
            (len(examples[n].inputs), sum(len(examples[n].targets[place]) for place in places))
            for n, places in parts
        ],
        int,
    ).reshape(-1, 2)


@dataclass(frozen=True)
class _Layout:
    """Where parts lie: the row of each, the start of its input, and the blocks of each row."""

    rows_N: np.ndarray
    starts_N: np.ndarray
    blocks_R: np.ndarray  # 2: nothing crosses the row's middle


def _assign(needs_Nx2: np.ndarray, capacity: tuple[int, int]) -> _Layout:
    """Fills row after row, so that they are few, and few of them have an input across the middle.

    A row begins with the longest input there is, which says whether it is one block or two halves.
    Each is then filled: of what fits, the part goes in that comes nearest to the room left on both
    sides, the scarcer side counting more (norm-based greedy of Panigrahy et al. 2011, Heuristics
    for Vector Bin Packing). So long inputs get company that brings choices along.
    """
    rows_N, starts_N = np.zeros((2, len(needs_Nx2)), int)
    blocks_R: list[int] = []
    for first in range(0, len(needs_Nx2), TOGETHER):
        needs_Mx2 = needs_Nx2[first : first + TOGETHER]
        weights_2 = (needs_Mx2 / capacity).mean(axis=0) / np.square(capacity)
        waiting_W = np.argsort(-needs_Mx2[:, 0], kind="stable")
        while len(waiting_W):
            halved = capacity[0] >= SHORTEST_HALVED and not capacity[0] % 2
            blocks = 2 if halved and 2 * needs_Mx2[waiting_W[0], 0] <= capacity[0] else 1
            size, room = capacity[0] // blocks, capacity[1]
            for block in range(blocks):
                chosen = _fill(
                    needs_Mx2[waiting_W], (size, room), room / (blocks - block), weights_2
                )
                ends_C = np.cumsum(needs_Mx2[waiting_W[chosen], 0])
                rows_N[first + waiting_W[chosen]] = len(blocks_R)
                starts_N[first + waiting_W[chosen]] = (
                    block * size + ends_C - needs_Mx2[waiting_W[chosen], 0]
                )
                room -= needs_Mx2[waiting_W[chosen], 1].sum()
                waiting_W = np.delete(waiting_W, chosen)
            blocks_R.append(blocks)
    return _Layout(rows_N, starts_N, np.array(blocks_R, int))


def _fill(
    needs_Nx2: np.ndarray, capacity: tuple[int, int], targets_wanted: float, weights_2: np.ndarray
) -> list[int]:
    """Which parts to put in a block, the first part among them if that fits."""
    room_2 = np.array(capacity)
    wanted_2 = np.array([capacity[0], targets_wanted])
    chosen: list[int] = []
    taken_N = np.zeros(len(needs_Nx2), bool)
    fits_F = np.arange(len(needs_Nx2))[(needs_Nx2 <= room_2).all(axis=1)]
    while len(fits_F):
        nearest = np.argmin(np.square(wanted_2 - needs_Nx2[fits_F]) @ weights_2)
        best = int(fits_F[nearest if chosen else 0])
        chosen.append(best)
        taken_N[best] = True
        room_2, wanted_2 = room_2 - needs_Nx2[best], wanted_2 - needs_Nx2[best]
        fits_F = fits_F[~taken_N[fits_F] & (needs_Nx2[fits_F] <= room_2).all(axis=1)]
    return chosen


@dataclass(frozen=True)
class Lengths:
    """Tokens of some examples.

    Attributes:
      inputs: (examples,) of each input.
      targets: (examples,) of all choices of each.
      longest_target: of any one choice.
    """

    inputs: np.ndarray
    targets: np.ndarray
    longest_target: int

    @classmethod
    def of(cls, examples: Sequence[Choices]) -> "Lengths":
        return cls(
            np.array([len(example.inputs) for example in examples], int),
            np.array([sum(map(len, example.targets)) for example in examples], int),
            max((len(target) for example in examples for target in example.targets), default=1),
        )


def choose_row_lengths(
    groups: Sequence[Lengths], inputs: int | None = None, targets: int | None = None
) -> tuple[int, int]:
    """Tokens of an encoder row and of a decoder row that cost least to score with.

    Longer rows are fuller, shorter ones spend less on attention. Which is best is tried out on a
    sample of the examples, each group packed by itself.

    Args:
      groups: examples that may share rows, by group.
      inputs, targets: a length that is settled already.

    Raises:
      ValueError: a settled length is shorter than an input or a choice.
    """
    longest_input = max((int(g.inputs.max(initial=1)) for g in groups), default=1)
    longest_target = max((g.longest_target for g in groups), default=1)
    for name, settled, longest in (
        ("inputs_per_row", inputs, longest_input),
        ("targets_per_row", targets, longest_target),
    ):
        if settled is not None and settled < longest:
            raise ValueError(
                f"{name} = {settled} is shorter than the {longest} tokens there are; raise it or "
                "lower TASK_FEATURE_LENGTHS"
            )
    sums = [(g.inputs.sum(), g.targets.sum()) for g in groups]
    share = sum(t for _, t in sums) / max(sum(i for i, _ in sums), 1)
    samples = _samples(groups)
    fitting = [length for length in ROW_LENGTHS if length >= longest_input]
    rows = [*fitting[:5], -(-longest_input // 64) * 64] if inputs is None else [inputs]
    candidates = set()
    for row in rows:
        wanted = [share * row * slack for slack in (0.75, 1.0, 1.1, 1.25, 1.5, 2.0)]
        rounded = {-(-int(np.ceil(max(t, longest_target, 8))) // 8) * 8 for t in wanted}
        candidates |= {(row, t) for t in (rounded if targets is None else {targets})}
    return min(sorted(candidates), key=lambda shape: _cost(samples, shape))


def _samples(groups: Sequence[Lengths]) -> list[np.ndarray]:
    """Evenly spread (inputs, targets) of evenly spread groups."""
    groups = groups[:: -(-len(groups) // 8)] if groups else []
    samples = []
    for group in groups:
        step = -(-len(group.inputs) * len(groups) // SAMPLE) or 1
        samples.append(np.stack([group.inputs, group.targets], axis=1)[::step])
    return samples


def _cost(samples: Sequence[np.ndarray], shape: tuple[int, int]) -> float:
    """Cost, in encoder tokens, of scoring the samples in rows of that shape."""
    inputs, targets = shape
    cost = 0.0
    for needs_Nx2 in samples:
        # An example whose choices overflow a row takes part in several.
        parts = [
            (n, min(targets, t - start))
            for n, t in needs_Nx2.tolist()
            for start in range(0, max(t, 1), targets)
        ]
        blocks_R = _assign(np.array(parts).reshape(-1, 2), shape).blocks_R
        attention_R = inputs / blocks_R / ATTENTION_LENGTH
        cost += float(np.sum(inputs * (1 + attention_R) + TARGET_COST * targets))
    return cost


def sum_scores(slots: Sequence[Sequence[Slot]], token_scores_RxL: np.ndarray) -> list[list[float]]:
    """Sum of the token scores (rows, targets_length) of every choice of every example."""
    # Running sums make a slot's sum a difference; float64 keeps it exact to 1e-9.
    sums_RxL = np.cumsum(np.pad(token_scores_RxL.astype(np.float64), ((0, 0), (1, 0))), axis=1)
    return [
        [float(sums_RxL[s.row, s.start + s.length] - sums_RxL[s.row, s.start]) for s in choices]
        for choices in slots
    ]
