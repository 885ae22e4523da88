"""The arrays of a checkpoint in any of its formats, read in parts from wherever they lie.

* Orbax, as we and T5X (use_orbax) write it: one TensorStore array a leaf, in an OCDBT database or
  in directories of their own;
* T5X's own: a msgpack file `checkpoint` with small arrays and with TensorStore specs of the others,
  each a directory of zarr chunks;
* a Hugging Face directory of a T5 v1.1 model.
"""

import ast
import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from t5x.checkpoints.formats.failures import (
    RemovedCheckpointError,
    UnreadableCheckpointError,
    translated,
)
from t5x.checkpoints.formats.huggingface import CONFIG_FILE, HuggingFaceArrays
from t5x.checkpoints.formats.storage import CONTEXT, Directory
from t5x.checkpoints.layouts import StoredArray

STATE_ITEM = "state"
ORBAX_METADATA = "_METADATA"
OCDBT_MANIFEST = "manifest.ocdbt"
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
    """Returns 'orbax', 'legacy' or 'huggingface', or None if a path is no complete checkpoint.

    Raises:
      OSError: it cannot be known: no permission, or out of reach.
    """
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
      UnreadableCheckpointError: its files are damaged.
      ValueError: it is of another model.
      OSError: no permission, or out of reach.
    """
    kind = find_format(path)
    if kind is None:
        raise FileNotFoundError(f"{path} is neither a checkpoint nor a Hugging Face directory")
    if kind == "huggingface":
        return HuggingFaceArrays(path, open_pickled)
    directory = Directory(f"{path.rstrip('/')}/{STATE_ITEM}")
    if not directory.exists(ORBAX_METADATA if kind == "orbax" else LEGACY_FILE):
        directory = Directory(path)
    if kind == "legacy":
        return _open_legacy(directory, path)
    return _open_orbax(directory, path)


class TensorStoreArrays:
    """Arrays that TensorStore reads, besides some that are in memory already.

    Args:
      directory: where the arrays lie.
      checkpoint: the checkpoint they are of, for messages.
      marker: a file of the directory without which TensorStore reads zeros.
      specs: TensorStore specs by path.
      values: the arrays in memory.
      may_lack_chunks: which of them may lack chunks, those being all zeros.

    Raises:
      UnreadableCheckpointError: an array is missing or damaged.
      RemovedCheckpointError: the checkpoint is there no more.
      OSError: no permission, or out of reach.
    """

    def __init__(
        self,
        directory: Directory,
        checkpoint: str,
        marker: str,
        specs: Mapping[Path, Mapping[str, Any]],
        values: Mapping[Path, np.ndarray] | None = None,
        may_lack_chunks: Callable[[StoredArray], bool] = lambda array: True,
    ) -> None:
        self._directory, self._checkpoint, self._marker = directory, checkpoint, marker
        with self._whole():
            opening = {
                path: ts.open(spec, open=True, context=CONTEXT) for path, spec in specs.items()
            }
            self._stores = {path: future.result() for path, future in opening.items()}
        self._values = dict(values or {})
        described = {path: (x.shape, x.dtype.numpy_dtype) for path, x in self._stores.items()}
        described |= {path: (x.shape, x.dtype) for path, x in self._values.items()}
        self.arrays = {
            path: StoredArray(path, tuple(shape), np.dtype(dtype))
            for path, (shape, dtype) in described.items()
        }
        self._may_lack_chunks = may_lack_chunks

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What is read within is of a checkpoint that is there, before and after."""
        try:
            with translated(str(self._directory)):
                yield
        except UnreadableCheckpointError:
            self._check_presence()
            raise
        # To TensorStore a database whose manifest is gone is an empty one, and its arrays zeros.
        if not self._directory.exists(self._marker):
            self._check_presence()
            raise UnreadableCheckpointError(f"{self._directory}/{self._marker} is missing")

    def _check_presence(self) -> None:
        if find_format(self._checkpoint) is None:
            raise RemovedCheckpointError(
                f"checkpoint {self._checkpoint} was removed while it was read; read another one, "
                "or keep more of them (SaveCheckpointConfig.keep)"
            )

    def chunk_shape(self, path: Path) -> tuple[int, ...]:
        if path in self._values:
            return self._values[path].shape
        return tuple(self._stores[path].chunk_layout.read_chunk.shape or ())

    def read(self, path: Path, index: tuple[slice, ...] = ()) -> np.ndarray:
        if path in self._values:
            return self._values[path][index]
        part = self._stores[path][index]
        with self._whole():
            values = part.read().result()
            if not self._may_lack_chunks(self.arrays[path]):
                self._check_chunks(self._stores[path], part.domain)
        return values

    def _check_chunks(self, store: ts.TensorStore, domain: ts.IndexDomain) -> None:
        """Raises where a file is missing: TensorStore would read zeros."""
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
                raise UnreadableCheckpointError(f"{store.kvstore.url}{name} is missing")


def _open_orbax(directory: Directory, checkpoint: str) -> TensorStoreArrays:
    try:
        metadata = json.loads(directory.read(ORBAX_METADATA) or b"")
        leaves = {
            tuple(map(str, ast.literal_eval(key))): dict(leaf["value_metadata"])
            for key, leaf in metadata["tree_metadata"].items()
        }
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        *(SyntaxError, RecursionError, MemoryError),  # of literal_eval
    ) as error:
        if isinstance(error, UnreadableCheckpointError):
            raise
        raise UnreadableCheckpointError(
            f"{directory}/{ORBAX_METADATA} is not Orbax's: {error}"
        ) from error
    is_ocdbt = metadata.get("use_ocdbt", directory.exists(OCDBT_MANIFEST))
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    specs = {}
    for path, leaf in leaves.items():
        # None and empty dicts have no array.
        if leaf.get("skip_deserialize"):
            continue
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
        directory,
        checkpoint,
        OCDBT_MANIFEST if is_ocdbt else ORBAX_METADATA,
        specs,
        may_lack_chunks=lambda array: not (is_checked and array.path[0] == "target"),
    )


def _open_legacy(directory: Directory, checkpoint: str) -> TensorStoreArrays:
    # Loads flax and jax, which the other formats do without.
    from flax.serialization import msgpack_restore

    data = directory.read(LEGACY_FILE) or b""
    try:
        content = msgpack_restore(data)
    except Exception as error:  # the bytes are all it depends on, and it has a dozen errors
        raise UnreadableCheckpointError(
            f"{directory}/{LEGACY_FILE} is not msgpack: {error}"
        ) from error
    if not isinstance(content, Mapping):
        raise UnreadableCheckpointError(f"{directory}/{LEGACY_FILE} holds no state")
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

    return TensorStoreArrays(directory, checkpoint, LEGACY_FILE, specs, values, may_lack_chunks)


def _legacy_leaves(tree: Mapping[str, Any], path: Path = ()) -> Any:
    for key, value in tree.items():
        if isinstance(value, Mapping) and not value.keys() >= {"driver", "kvstore", "metadata"}:
            yield from _legacy_leaves(value, (*path, key))
        elif value is not None and key != "version":
            yield (*path, key), value


def _legacy_spec(directory: Directory, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Points a spec, written for some bucket or disk, at where the checkpoint lies now."""
    # TensorStore before 0.1.14 had the path beside the store, not in it.
    store, metadata = spec["kvstore"], spec["metadata"]
    name = store.get("path", spec.get("path")) if isinstance(store, Mapping) else None
    if not name or not isinstance(name, str):
        raise UnreadableCheckpointError(
            f"{directory}/{LEGACY_FILE} has a TensorStore spec without a path"
        )
    if spec["driver"] != "zarr" or not isinstance(metadata, Mapping):
        raise UnreadableCheckpointError(
            f"{directory}/{LEGACY_FILE}: {name:.80} is no zarr array as T5X writes it"
        )
    if metadata.get("dtype") == "<u2":
        raise ValueError(
            f"{directory}: {name} is stored as uint16; T5X before 2021-11 wrote bfloat16 so: "
            "convert it there"
        )
    return {"driver": spec["driver"], "kvstore": directory.spec(name.strip("/"))}
