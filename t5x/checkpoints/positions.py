"""The position of a dataset iterator, saved with the train state.

An iterator has clu's interface: `save(path)` and `restore(path)`, path being what the names of its
files begin with. Beside these lies a list of them with their digests, so that a damaged position is
told from one that does not fit the data.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from t5x.checkpoints.fingerprints import ChangedDataError, does_not_fit
from t5x.checkpoints.formats.failures import UnreadableCheckpointError, first_line

# What the name of the list of a position's files ends with.
_LIST = ".files.json"


class DatasetCheckpointHandler(ocp.CheckpointHandler):
    """Lets Orbax write the position of a dataset iterator along with the train state.

    Args:
      checkpoint_filename: what this process's files are called.
    """

    def __init__(self, checkpoint_filename: str) -> None:
        self._filename = checkpoint_filename

    def _directory_of_process(self, directory: epath.Path) -> epath.Path:
        if jax.process_count() == 1:
            return directory
        return directory / f"process_{jax.process_index()}-of-{jax.process_count()}"

    def take_position(self, iterator: Any) -> dict[str, bytes]:
        """Returns what an iterator writes of its position now: files by name.

        Args:
          iterator: an object with `save(path)`, path being what the names of its files begin with.
        """
        with tempfile.TemporaryDirectory() as directory:
            iterator.save(os.path.join(directory, self._filename))
            files = {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}
        digests = {name: _digest(content) for name, content in files.items()}
        return files | {f"{self._filename}{_LIST}": json.dumps(digests).encode()}

    def save(self, directory: epath.Path, args: "PositionArgs") -> None:
        own = self._directory_of_process(directory)
        own.mkdir(parents=True, exist_ok=True)
        for name, content in args.files.items():
            (own / name).write_bytes(content)

    def find(self, directory: epath.Path) -> str:
        """Returns the path, without endings, of the position saved for this process's data.

        Raises:
          ChangedDataError: nothing was saved for this process's shard of the data.
        """
        own = self._directory_of_process(directory)
        # Processes that read the same shard share a position: T5X saves only one of them.
        for candidate in (own, directory, *sorted(directory.glob("process_*"))):
            if any(candidate.glob(f"{self._filename}*")):
                return os.fspath(candidate / self._filename)
        raise ChangedDataError(
            f"{directory} holds no dataset position {self._filename}: it was saved with another "
            "number of data shards; restart with as many processes, or bind "
            "RestoreCheckpointConfig.restore_dataset = False to read the data from its beginning"
        )

    def move(self, directory: epath.Path, iterator: Any) -> None:
        """Moves an iterator to the saved position.

        Raises:
          UnreadableCheckpointError: its files are missing, cut short or altered.
          ChangedDataError: they are whole, but not a position of this iterator; see `find`, too.
        """
        from tensorflow.errors import OpError, ResourceExhaustedError

        found = self.find(directory)
        _check_files(epath.Path(found))
        try:
            iterator.restore(found)
        except ResourceExhaustedError:
            raise
        except (OpError, AssertionError, LookupError, ValueError) as error:
            raise does_not_fit(os.fspath(directory.parent), first_line(error)) from error

    def restore(self, directory: epath.Path, args: Any) -> Any:
        raise NotImplementedError("Orbax only writes positions; see `move`")


@ocp.args.register_with_handler(DatasetCheckpointHandler, for_save=True, for_restore=True)
class PositionArgs(ocp.args.CheckpointArgs):
    """The files of a position to write, by name."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_files(prefix: epath.Path) -> None:
    """Raises UnreadableCheckpointError unless a position's files are as they were written."""
    listed = epath.Path(f"{prefix}{_LIST}")
    if not listed.exists():
        raise UnreadableCheckpointError(f"{listed} is missing")
    try:
        digests = dict(json.loads(listed.read_text()))
    except (ValueError, TypeError) as error:
        raise UnreadableCheckpointError(f"{listed} is not JSON") from error
    for name, digest in digests.items():
        file = prefix.parent / name
        if not file.exists():
            raise UnreadableCheckpointError(f"{file} is missing")
        if _digest(file.read_bytes()) != digest:
            raise UnreadableCheckpointError(f"{file} is not as it was written")
