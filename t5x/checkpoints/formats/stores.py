"""The arrays of a checkpoint in any of its formats, read in parts from wherever they lie.

* Orbax, as we and T5X (use_orbax) write it: one TensorStore array a leaf, in an OCDBT database or
  in directories of their own;
* T5X's own: a msgpack file `checkpoint` with small arrays and with TensorStore specs of the others,
  each a directory of zarr chunks;
* a Hugging Face directory of a T5 v1.1 model.
"""

import ast
import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from t5x.checkpoints.formats.huggingface import CONFIG_FILE, HuggingFaceArrays
from t5x.checkpoints.formats.storage import CONTEXT, Directory
from t5x.checkpoints.layouts import StoredArray

STATE_ITEM = "state"
ORBAX_METADATA = "_METADATA"
# A checkpoint in T5X's own format is a file of this name in the step's directory.
LEGACY_FILE = "checkpoint"
COMMIT_FILE = "commit_success.txt"
# What object stores bear from the first byte on is a checkpoint only once it is marked as such.
_MARKED = ("gs://", "s3://")
_FIRST_LEGACY_VERSION = 2
_FIRST_BYTE = slice(0, 1)

Path = tuple[str, ...]


class Arrays(Protocol):
    """What a checkpoint holds: `arrays` by path in the state dict, and how to read them."""

    @property
    def arrays(self) -> Mapping[Path, StoredArray]: ...

    def chunk_shape(self, path: Path) -> tuple[int, ...]:
        """Returns the shape of what is stored, hence best read, as one."""
        ...

    def read(self, path: Path, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns an array, or the part that slices (step 1) of its axes select."""
        ...


def find_format(path: str) -> str | None:
    """Returns 'orbax', 'legacy' or 'huggingface', or None if a path is no complete checkpoint."""
    directory = Directory(path)
    for prefix in (f"{STATE_ITEM}/", ""):
        if directory.exists(prefix + ORBAX_METADATA):
            is_complete = not path.startswith(_MARKED) or directory.exists(COMMIT_FILE)
            return "orbax" if is_complete and ".orbax-checkpoint-tmp" not in path else None
        if directory.exists(prefix + LEGACY_FILE):
            return "legacy"
    return "huggingface" if directory.exists(CONFIG_FILE) else None


def open_checkpoint(
    path: str, open_pickled: Callable[[Directory], Any] | None = None
) -> "TensorStoreArrays | HuggingFaceArrays":
    """Opens a checkpoint of any format.

    Args:
      path: the checkpoint's directory or its URL.
      open_pickled: see `HuggingFaceArrays`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or of another model.
    """
    kind = find_format(path)
    if kind is None:
        raise FileNotFoundError(f"{path} is neither a checkpoint nor a Hugging Face directory")
    if kind == "huggingface":
        return HuggingFaceArrays(path, open_pickled)
    directory = Directory(f"{path.rstrip('/')}/{STATE_ITEM}")
    if not directory.exists(ORBAX_METADATA if kind == "orbax" else LEGACY_FILE):
        directory = Directory(path)
    try:
        return _open_orbax(directory) if kind == "orbax" else _open_legacy(directory)
    except (ValueError, KeyError) as error:
        # TensorStore appends the whole spec.
        cause = str(error).splitlines()[0].split(" [tensorstore_spec=")[0]
        raise ValueError(f"{path}: {cause}") from error


class TensorStoreArrays:
    """Arrays that TensorStore reads, besides some that are in memory already.

    Args:
      specs: TensorStore specs by path.
      values: the arrays in memory.
      may_lack_chunks: which of them may lack chunks, those being all zeros.
    """

    def __init__(
        self,
        specs: Mapping[Path, Mapping[str, Any]],
        values: Mapping[Path, np.ndarray] | None = None,
        may_lack_chunks: Callable[[StoredArray], bool] = lambda array: True,
    ) -> None:
        opening = {path: ts.open(spec, open=True, context=CONTEXT) for path, spec in specs.items()}
        self._stores = {path: future.result() for path, future in opening.items()}
        self._values = dict(values or {})
        described = {path: (x.shape, x.dtype.numpy_dtype) for path, x in self._stores.items()}
        described |= {path: (x.shape, x.dtype) for path, x in self._values.items()}
        self.arrays = {
            path: StoredArray(path, tuple(shape), np.dtype(dtype))
            for path, (shape, dtype) in described.items()
        }
        self._may_lack_chunks = may_lack_chunks

    def chunk_shape(self, path: Path) -> tuple[int, ...]:
        if path in self._values:
            return self._values[path].shape
        return tuple(self._stores[path].chunk_layout.read_chunk.shape or ())

    def read(self, path: Path, index: tuple[slice, ...] = ()) -> np.ndarray:
        if path in self._values:
            return self._values[path][index]
        part = self._stores[path][index]
        if not self._may_lack_chunks(self.arrays[path]):
            self._check_chunks(self._stores[path], part.domain)
        return part.read().result()

    def _check_chunks(self, store: ts.TensorStore, domain: ts.IndexDomain) -> None:
        """Raises ValueError where a file is missing: TensorStore would read zeros."""
        ranges = (
            range(low // size, (high - 1) // size + 1)
            for low, high, size in zip(
                domain.inclusive_min,
                domain.exclusive_max,
                store.chunk_layout.read_chunk.shape,
                strict=True,
            )
        )
        separator = store.spec().to_json()["metadata"].get("dimension_separator", ".")
        # An array of no axes has a chunk, too.
        names = [separator.join(map(str, cell)) or "0" for cell in itertools.product(*ranges)]
        looking = [store.kvstore.read(name, byte_range=_FIRST_BYTE) for name in names]
        for name, found in zip(names, looking, strict=True):
            if found.result().state != "value":
                raise ValueError(f"{store.kvstore.url}{name} is missing")


def _open_orbax(directory: Directory) -> TensorStoreArrays:
    metadata = json.loads(directory.read(ORBAX_METADATA) or b"")
    is_ocdbt = metadata.get("use_ocdbt", directory.exists("manifest.ocdbt"))
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    specs = {}
    for key, leaf in metadata["tree_metadata"].items():
        # None and empty dicts have no array.
        if leaf["value_metadata"].get("skip_deserialize"):
            continue
        path = tuple(str(part) for part in ast.literal_eval(key))
        name = ".".join(path)
        store = (
            {"driver": "ocdbt", "base": directory.spec(), "path": f"{name}/"}
            if is_ocdbt
            else directory.spec(name)
        )
        specs[path] = {"driver": driver, "kvstore": store}
    # Within a database nothing gets lost alone; of files, what is a parameter is never all zeros.
    is_checked = driver == "zarr" and not is_ocdbt
    return TensorStoreArrays(
        specs, None, lambda array: not (is_checked and array.path[0] == "target")
    )


def _open_legacy(directory: Directory) -> TensorStoreArrays:
    # Loads flax and jax, which the other formats do without.
    from flax.serialization import msgpack_restore

    try:
        content = msgpack_restore(directory.read(LEGACY_FILE) or b"")
    except Exception as error:  # msgpack has a dozen of them
        raise ValueError(f"{directory}/{LEGACY_FILE} is not msgpack: {error}") from error
    version = content.get("version", 0)
    if version < _FIRST_LEGACY_VERSION:
        raise ValueError(
            f"{directory} is in version {version} of T5X's format; versions from "
            f"{_FIRST_LEGACY_VERSION} on can be read"
        )
    specs, values = {}, {}
    for path, leaf in _legacy_leaves(content.get("optimizer", content)):
        if isinstance(leaf, Mapping):
            specs[path] = _legacy_spec(directory, leaf)
        else:
            values[path] = np.asarray(leaf)
    step = values.get(("state", "step"), np.ones(()))

    def may_lack_chunks(array: StoredArray) -> bool:
        # Old versions of TensorStore did not write what is all zeros, as moments are that are not
        # in use (of one element), or before the first step.
        return array.path[0] != "target" and (math.prod(array.shape) <= 1 or not step)

    return TensorStoreArrays(specs, values, may_lack_chunks)


def _legacy_leaves(tree: Mapping[str, Any], path: Path = ()) -> Any:
    for key, value in tree.items():
        if isinstance(value, Mapping) and not value.keys() >= {"driver", "kvstore", "metadata"}:
            yield from _legacy_leaves(value, (*path, key))
        elif value is not None and key != "version":
            yield (*path, key), value


def _legacy_spec(directory: Directory, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Points a spec, written for some bucket or disk, at where the checkpoint lies now."""
    # TensorStore before 0.1.14 had the path beside the store, not in it.
    name = spec["kvstore"].get("path", spec.get("path"))
    if not name:
        raise ValueError(f"{directory}/{LEGACY_FILE} has a TensorStore spec without a path")
    if spec["metadata"].get("dtype") == "<u2":
        raise ValueError(
            f"{directory}: {name} is stored as uint16; T5X before 2021-11 wrote bfloat16 so: "
            "convert it there"
        )
    return {"driver": spec["driver"], "kvstore": directory.spec(name.strip("/"))}
