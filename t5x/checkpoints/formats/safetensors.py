"""Tensors of safetensors files: read in parts, or written in any order, without mapping memory.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of a JSON
header, the header {name: {dtype, shape, data_offsets}}, the tensors' bytes in C order. A directory
holds one file, or several and an index.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from t5x.checkpoints.formats.storage import Directory, is_url

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Longer ones are no headers: a model has thousands of tensors, not millions.
_MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file: where its bytes start, its shape and its dtype."""

    file: str
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype


class TensorFiles:
    """Reads the tensors of a directory of safetensors files.

    Args:
      directory: where they lie.

    Attributes:
      tensors: by name.

    Raises:
      FileNotFoundError: the index names a file that is not there.
      ValueError: there are none, or one is damaged.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        index = _read_index(directory)
        files = [SINGLE_FILE] if index is None else sorted(set(index.values()))
        self.tensors: dict[str, Tensor] = {}
        for file in files:
            for name, tensor in self._read_header(file).items():
                if name in self.tensors:
                    raise ValueError(f"{directory}: {name} is in {file} and in another file")
                self.tensors[name] = tensor
        if index is not None and (lost := index.keys() - self.tensors.keys()):
            raise ValueError(f"{directory}/{INDEX_FILE} names {min(lost)}, which is in no file")

    def _read_header(self, file: str) -> dict[str, Tensor]:
        path = f"{self._directory}/{file}"
        length = np.zeros(1, "<u8")
        try:
            self._directory.read_into(file, 0, length)
            if length[0] > _MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            text = np.zeros(int(length[0]), np.uint8)
            self._directory.read_into(file, 8, text)
            header = json.loads(text.tobytes())
            header.pop("__metadata__", None)
            end = 8 + text.size + _check_offsets(header)
            self._directory.read_into(file, end - 1, np.zeros(1, np.uint8))
            if not is_url(path) and os.path.getsize(path) != end:
                raise ValueError(f"bytes follow its last tensor's at byte {end}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}); copy or download it again"
            ) from error
        try:
            return {
                name: _tensor(file, 8 + text.size, name, entry) for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Returns a tensor, or some of its rows (along the first axis, step 1)."""
        tensor = self.tensors[name]
        first, last, _ = rows.indices(tensor.shape[0] if tensor.shape else 1)
        shape = (last - first, *tensor.shape[1:]) if tensor.shape else ()
        array = np.empty(shape, tensor.dtype)
        row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
        self._directory.read_into(tensor.file, tensor.start + first * row_bytes, array)
        return array


def _read_index(directory: Directory) -> dict[str, str] | None:
    """Returns which file each tensor is in, or None if there is no index."""
    text = directory.read(INDEX_FILE)
    if text is None:
        return None
    try:
        files = dict(json.loads(text)["weight_map"])
        for name, file in files.items():
            if not isinstance(file, str) or os.path.basename(file) != file or not file.strip("."):
                raise ValueError(f"{name} is in {file!r:.80}, which is no file's name")
        return files
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{directory}/{INDEX_FILE} is not a whole index ({error}); copy or download it again"
        ) from error


def _check_offsets(header: Mapping[str, Any]) -> int:
    """Where the tensors' bytes end: one tensor's follow another's, as the format has it."""
    end = 0
    for start, stop in sorted(entry["data_offsets"] for entry in header.values()):
        if start != end or stop < start:
            what = "overlap" if start < end else "leave a gap"
            raise ValueError(f"its tensors {what} at byte {min(start, end)}")
        end = stop
    return end


def _tensor(file: str, data_start: int, name: str, entry: Mapping[str, Any]) -> Tensor:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} has dtype {entry['dtype']}, not one of {', '.join(_DTYPES)}")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"{name} has shape {shape!r:.60}")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {stop - start} bytes for shape {shape} of {dtype}")
    return Tensor(file, data_start + start, shape, dtype)


class TensorFilesWriter:
    """Writes tensors, in any order and in parts, to files whose headers are written first.

    The bytes are those that the safetensors library writes for the same tensors.

    Args:
      directory: where the files go.
      tensors: shape and dtype by name.
      max_file_bytes: how much goes into one file, unless a single tensor is larger.
    """

    def __init__(
        self,
        directory: Path,
        tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        max_file_bytes: int,
    ) -> None:
        # The library's order: wide elements first, so that they are aligned, then by name.
        order = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))
        groups: list[list[str]] = [[]]
        filled = 0
        for name in order:
            size = _size(tensors[name])
            if groups[-1] and filled + size > max_file_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += size
        self._directory = directory
        self._places: dict[str, tuple[int, Tensor]] = {}
        self._files: list[int] = []
        files = {}
        for number, names in enumerate(groups, start=1):
            file = SINGLE_FILE
            if len(groups) > 1:
                file = f"model-{number:05}-of-{len(groups):05}.safetensors"
            files |= dict.fromkeys(names, file)
            self._create(directory / file, {name: tensors[name] for name in names})
        if len(groups) > 1:
            total = sum(map(_size, tensors.values()))
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
            (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")

    def _create(self, path: Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (shape, dtype) in tensors.items():
            start, end = end, end + _size((shape, dtype))
            entries[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._files.append(file)
        os.write(file, len(header).to_bytes(8, "little") + header)
        os.truncate(file, 8 + len(header) + end)
        for name in tensors:
            tensor = _tensor(path.name, 8 + len(header), name, entries[name])
            self._places[name] = (file, tensor)

    def dtype(self, name: str) -> np.dtype:
        """The dtype that a tensor is written in."""
        return self._places[name][1].dtype

    def write(self, name: str, first_row: int, rows: np.ndarray) -> None:
        """Writes rows of a tensor, in its dtype; those of a scalar or the whole from row 0."""
        file, tensor = self._places[name]
        row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
        with np.errstate(over="ignore"):  # whoever writes infinity has been asked
            values = np.ascontiguousarray(rows, tensor.dtype).reshape(-1)
        data = memoryview(values.view(np.uint8))
        position = tensor.start + first_row * row_bytes
        while data:
            try:
                written = os.pwrite(file, data, position)
            except OSError as error:
                path = str(self._directory / tensor.file)
                raise OSError(error.errno, error.strerror, path) from error
            data, position = data[written:], position + written

    def close(self) -> None:
        """Finishes the files."""
        for file in self._files:
            os.fsync(file)
            os.close(file)


def _size(tensor: tuple[tuple[int, ...], np.dtype]) -> int:
    shape, dtype = tensor
    return math.prod(shape) * dtype.itemsize
