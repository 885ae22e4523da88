"""Examples of rows laid out as SeqIO's converter for encoder-decoders lays them out."""

from collections.abc import Sequence

import numpy as np

from t5x.data.prepared_rows import Rows


def lay_out(
    rows: Rows,
    inputs: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    capacity: tuple[int, int],
    pack: bool,
) -> dict[str, np.ndarray]:
    """The model features (rows, length) that `seqio.EncDecFeatureConverter` makes, int32.

    Args:
      rows: which row each example is in, ordered by row.
      inputs, targets: tokens of each example.
      capacity: tokens of a row, of inputs and targets.
      pack: whether there are segments and positions.
    """
    features = {}
    starts, in_row = _count_in_rows(rows)
    for side, examples, length in zip(
        ("encoder", "decoder"), (inputs, targets), capacity, strict=True
    ):
        counts = np.array([len(tokens) for tokens in examples], np.int64)
        before = np.cumsum(counts) - counts  # tokens before each example, of all rows
        places = rows.rows * length + before - before[starts][np.cumsum(in_row == 0) - 1]
        positions = np.arange(counts.sum()) - np.repeat(before, counts)
        at = np.repeat(places, counts) + positions
        tokens = np.concatenate([*examples, np.zeros(0, np.uint16)]).astype(np.int32)

        def spread(values: np.ndarray, at: np.ndarray = at, length: int = length) -> np.ndarray:
            feature = np.zeros(rows.count * length, np.int32)
            feature[at] = values
            return feature.reshape(rows.count, length)

        if side == "encoder":
            features["encoder_input_tokens"] = spread(tokens)
        else:
            features["decoder_target_tokens"] = spread(tokens)
            # Shifted within an example; a row of one example is shifted with its padding.
            shifted = np.roll(features["decoder_target_tokens"], 1, axis=1)
            shifted[:, 0] = 0
            if pack:
                shifted.ravel()[at[positions == 0]] = 0
                shifted[features["decoder_target_tokens"] == 0] = 0
            features["decoder_input_tokens"] = shifted
            features["decoder_loss_weights"] = spread(tokens != 0)
        if pack:
            features[f"{side}_segment_ids"] = spread(np.repeat(in_row + 1, counts))
            features[f"{side}_positions"] = spread(positions)
    return features


def number_tasks(rows: Rows) -> np.ndarray:
    """The numbers of the tasks in each row from 1, 0 for none: (rows, examples of the fullest)."""
    _, in_row = _count_in_rows(rows)
    numbers = np.zeros((rows.count, int(in_row.max(initial=0)) + 1), np.int32)
    numbers[rows.rows, in_row] = rows.entries + 1
    return numbers


def _count_in_rows(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The first example of each row, and how many of its row each example has before it."""
    starts = np.flatnonzero(np.diff(rows.rows, prepend=-1))
    sizes = np.diff(starts, append=len(rows.rows))
    return starts, np.arange(len(rows.rows)) - np.repeat(starts, sizes)
