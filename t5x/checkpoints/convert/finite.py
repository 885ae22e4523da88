"""Whether weights are numbers, and stay numbers in the dtype they are converted to."""

import ml_dtypes
import numpy as np


def require_finite(name: str, values: np.ndarray, dtype: np.dtype | None = None) -> None:
    """Refuses NaN and infinite numbers, and finite ones that a dtype cannot hold.

    Makes no copy of the values.

    Args:
      name: of the array, for the message.
      values: the array.
      dtype: what it is converted to; its own if None.

    Raises:
      ValueError: there are such numbers.
    """
    if not values.size or not np.issubdtype(_plain(values.dtype), np.floating):
        return
    # NaN is passed on by both.
    ends = np.array([values.min(), values.max()], np.float32)
    kept = "give --allow_non_finite to convert it all the same"
    if np.isnan(ends).any():
        raise ValueError(f"{name} holds NaN; {kept}")
    if np.isinf(ends).any():
        raise ValueError(f"{name} holds infinite numbers; {kept}")
    target = np.dtype(values.dtype if dtype is None else dtype)
    with np.errstate(over="ignore"):
        cast = ends.astype(target).astype(np.float32)
    if np.isinf(cast).any():
        most = ml_dtypes.finfo(target).max
        raise ValueError(
            f"{name} holds {max(ends, key=abs):g}, and {target.name} ends at {float(most):g}: "
            f"choose --dtype bfloat16 or float32, or {kept.removesuffix(' it all the same')} it to "
            "infinity"
        )


def _plain(dtype: np.dtype) -> type:
    """NumPy knows bfloat16 as no kind of float."""
    return np.float32 if dtype == ml_dtypes.bfloat16 else dtype.type
