"""A template's text and a row, rendered in this process or in the worker, whichever is for them."""

from collections.abc import Callable, Mapping
from typing import Any

from t0x.prompts.cost import SCALAR, Unbounded, measure
from t0x.prompts.sandbox import Code, OverBound, describe
from t0x.prompts.worker import WORKER

LONGEST_SOURCE = 32_768  # characters of a template; promptsource's longest has 2,969, filters added
LONGEST_PARSED = 6_144  # what is longer is not even parsed in this process
LARGEST_ROW = 1 << 24


class Program:
    """A template's text, compiled once. A text that does not compile raises when it is rendered."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._code: Code | None = None
        self.error: str | None = None
        self.fields: frozenset[str] = frozenset()
        self.draws = False
        try:
            if len(source) > LONGEST_SOURCE:
                raise ValueError(f"longer than {LONGEST_SOURCE:,} characters")
            self._compile(source)
        except Exception as error:
            self.error = describe(error)

    def _compile(self, source: str) -> None:
        if len(source) <= LONGEST_PARSED:
            try:
                code = self._code = Code(source, bounded=True)
            except (Unbounded, RecursionError):  # the stack here may be anyone's
                pass
            else:
                self.fields, self.draws = code.fields, code.draws
                return
        fields, self.draws = WORKER.ask(source, None, "")
        self.fields = frozenset(fields)

    def render(self, variables: Mapping[str, Any], size: float, seed: Callable[[], str]) -> str:
        """The text for these variables, of that size; `seed` feeds the `choice` filter.

        Raises whatever the template raises, `worker.WorkerError`, and ValueError for a source that
        does not compile.
        """
        if self.error is not None:
            raise ValueError(self.error)
        if self._code is not None:
            try:
                return self._code.render(variables, size, seed)
            except (OverBound, RecursionError):
                pass
        if LARGEST_ROW < size < float("inf"):
            raise ValueError(f"the row is too large ({size:,.0f} bytes as printed)")
        return WORKER.ask(self._source, dict(variables), seed() if self.draws else "")


def admit(row: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The row as plain data (NumPy's values as Python's), and its size.

    Raises TypeError naming a field that holds what no template may see.
    """
    fields, total = dict(row), 0.0
    for name, value in row.items():
        try:
            total += measure(value) + SCALAR
        except TypeError:
            fields[name] = plain = _plain(value, name)
            total += measure(plain) + SCALAR
    return fields, total


def _plain(value: Any, name: str) -> Any:
    kind = type(value)
    if isinstance(value, Mapping):
        return {_plain(key, name): _plain(item, name) for key, item in value.items()}
    if hasattr(kind, "tolist"):
        return _plain(value.tolist(), name)
    for base in (list, tuple):
        if isinstance(value, base):
            return base([_plain(item, name) for item in value])
    for base in (str, int):
        if isinstance(value, base) and kind is not bool:
            return base(value)
    try:
        measure(value)
    except TypeError as error:
        raise TypeError(f"field {name} holds {error}, which templates cannot see") from None
    return value
