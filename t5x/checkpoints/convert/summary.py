"""What a conversion did, and how it shows its progress."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Passes the items of a sequence on while showing how far it is.
Track = Callable[[Sequence[Any]], Iterable[Any]]


def no_progress(items: Sequence[Any]) -> Iterable[Any]:
    return items


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
      path: where.
      parameters: how many numbers.
      arrays: in how many arrays.
      notes: what the user should know, a sentence each.
    """

    path: str
    parameters: int
    arrays: int
    notes: Sequence[str] = ()
