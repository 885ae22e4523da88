"""What a task's examples are made from, as digests: whether it is the task that it was.

Templates are compared by every character. Of rows their number and some of them, spread evenly: a
dataset is not read whole at every start, so an edit that changes neither goes unnoticed.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t0x.registration.dataset import Dataset, TaskInfo
from t0x.sources.schemas import SchemaError

_SAMPLE_ROWS = 32
_DIGEST_CHARACTERS = 16
UNREAD = "not at hand"


def describe_task(info: TaskInfo, split: str) -> dict[str, str]:
    """Returns digests by what they are of: template, answer choices, rows.

    Args:
      info: the task.
      split: as the dataset names it.
    """
    template = info.template
    return {
        "template": _digest([template.jinja.encode()]),
        "answer choices": _digest([(template.answer_choices or "").encode()]),
        "rows": _Rows(info.dataset).describe(split),
    }


class _Rows:
    """The rows of a dataset, compared by identity: prompts of a dataset share what is found."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rows) and self._dataset.rows is other._dataset.rows

    def __hash__(self) -> int:
        return id(self._dataset.rows)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 (datasets live as long as the process)
    def describe(self, split: str) -> str:
        try:
            return _describe_rows(self._dataset.rows(split))
        except FileNotFoundError:
            return UNREAD  # what is read are cached examples


def _describe_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    count = len(rows)
    places = sorted({place * (count - 1) // (_SAMPLE_ROWS - 1) for place in range(_SAMPLE_ROWS)})
    sample = (_read(rows, place) for place in places) if count else ()
    return f"{count} with digest {_digest(sample)}"


def _read(rows: Sequence[Mapping[str, Any]], place: int) -> bytes:
    try:
        return json.dumps(rows[place], sort_keys=True, default=str).encode()
    except SchemaError as error:
        return str(error).encode()


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:_DIGEST_CHARACTERS]
