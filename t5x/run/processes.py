"""Several processes acting as one: what the first of them decides, all do."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def decide(choose: Callable[[], Any], shape: tuple[int, ...] = ()) -> Any:
    """What process 0 chooses, told to all: files, clocks and metrics may differ between them.

    Args:
      choose: called on process 0 alone; a whole number below 2**31 or truth value, or an array.
      shape: of what it chooses.

    Returns:
      An int, or an int32 array where `shape` says so.
    """
    mine = choose() if jax.process_index() == 0 else np.zeros(shape)
    told = np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(mine, np.int32)))
    return told if shape else int(told)


def processes_where(condition: bool) -> list[int]:
    """The processes on which a condition holds; all of them ask at the same time."""
    told = multihost_utils.process_allgather(np.array(condition))
    return np.flatnonzero(told).tolist()


def require_service() -> None:
    """Makes sure that several processes can agree with one another.

    TPU hosts know of one another without JAX's service, so that a run would take steps; it could
    not save them.

    Raises:
      ValueError: there are several processes and no service.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(
            f"{jax.process_count()} processes run together without JAX's distributed service, "
            "which saving and stopping need: add --multiprocess_gpu to the command (on Cloud TPU, "
            "GKE and SLURM it finds the others by itself)"
        )
