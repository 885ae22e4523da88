"""The position of a dataset iterator, saved with the train state."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath


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
            return {path.name: path.read_bytes() for path in Path(directory).iterdir()}

    def save(self, directory: epath.Path, args: "PositionArgs") -> None:
        own = self._directory_of_process(directory)
        own.mkdir(parents=True, exist_ok=True)
        for name, content in args.files.items():
            (own / name).write_bytes(content)

    def find(self, directory: epath.Path) -> str:
        """Returns the path, without endings, of the position saved for this process's data.

        Raises:
          FileNotFoundError: nothing was saved for this process's shard of the data.
        """
        own = self._directory_of_process(directory)
        # Processes that read the same shard share a position: T5X saves only one of them.
        for candidate in (own, directory, *sorted(directory.glob("process_*"))):
            if any(candidate.glob(f"{self._filename}*")):
                return os.fspath(candidate / self._filename)
        raise FileNotFoundError(
            f"{directory} holds no dataset position {self._filename}: it was saved with another "
            "number of data shards; restart with as many processes, or bind "
            "RestoreCheckpointConfig.restore_dataset = False and start a new MODEL_DIR"
        )

    def move(self, directory: epath.Path, iterator: Any) -> None:
        """Moves an iterator, by its `restore(path)`, to the saved position.

        Raises:
          FileNotFoundError: see `find`.
        """
        iterator.restore(self.find(directory))

    def restore(self, directory: epath.Path, args: Any) -> Any:
        raise NotImplementedError("Orbax only writes positions; see `move`")


@ocp.args.register_with_handler(DatasetCheckpointHandler, for_save=True, for_restore=True)
class PositionArgs(ocp.args.CheckpointArgs):
    """The files of a position to write, by name."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
