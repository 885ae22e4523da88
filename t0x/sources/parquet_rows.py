"""Rows of a Parquet file, column by column as they are asked for."""

import functools
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from t0x.sources.schemas import SchemaError
from t0x.sources.values import as_plain, field_name


class ParquetRows(Sequence):
    """Rows of a Parquet file, read at random; a column is read whole when it is first used.

    Values are what `datasets` gives (a date is a `datetime.date`, a decimal a `decimal.Decimal`, a
    list of structs a list of dicts), except that bytes that are UTF-8 are texts, as TFDS' are.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._selected: Collection[str] | None = None

    def select(self, fields: Collection[str]) -> "ParquetRows":
        """The same rows with these fields only, as far as the file has them.

        Args:
          fields: names as templates have them.
        """
        rows = ParquetRows(self._path)
        rows.__dict__ |= self.__dict__  # the columns are shared
        rows._selected = frozenset(fields)
        rows.__dict__.pop("_names", None)
        return rows

    @functools.cached_property
    def _file(self) -> Any:
        import pyarrow
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(self._path, memory_map=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(self._damage(error)) from error

    def _damage(self, error: Exception) -> str:
        cause = " ".join(str(error).split())[:120]
        return f"{self._path} is no whole Parquet file ({cause}); get it again"

    @functools.cached_property
    def _names(self) -> Sequence[str]:
        names = self._file.schema_arrow.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{self._path}: two columns are named {twice[0]!r}")
        chosen = self._selected
        return [name for name in names if chosen is None or field_name(name) in chosen]

    def _column(self, name: str) -> Any:
        import pyarrow

        with self._lock:
            if name not in self._columns:
                place = self._file.schema_arrow.names.index(name)
                try:
                    # By number: a dot in a name would mean a field of a struct.
                    leaves = _leaves(self._file.schema_arrow, place)
                    groups = range(self._file.num_row_groups)
                    table = self._file.reader.read_row_groups(groups, column_indices=leaves)
                except (pyarrow.ArrowException, OSError) as error:
                    raise ValueError(self._damage(error)) from error
                self._columns[name] = table.column(0)
            return self._columns[name]

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return {name: as_plain(self._value(name, index)) for name in self._names}

    def _value(self, name: str, index: int) -> Any:
        column = self._column(name)
        try:
            return column[index].as_py()
        except (OverflowError, ValueError) as error:  # a date beyond Python's, for example
            cause = " ".join(str(error).split())[:120]
            raise SchemaError(f"column {name}: {cause}") from error


def _leaves(schema: Any, place: int) -> list[int]:
    """Numbers of the Parquet columns that make up a field."""
    counts = [_count_leaves(field.type) for field in schema]
    first = sum(counts[:place])
    return list(range(first, first + counts[place]))


def _count_leaves(kind: Any) -> int:
    if kind.num_fields == 0:
        return 1
    return sum(_count_leaves(kind.field(i).type) for i in range(kind.num_fields))
