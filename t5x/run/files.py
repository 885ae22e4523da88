"""Files that appear whole or not at all, on a full disk too."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping

from etils import epath


def write_whole(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file, text in UTF-8, that takes its place once it is whole."""
    content = content.encode() if isinstance(content, str) else content
    path = epath.Path(path)
    if "://" in str(path):
        path.write_bytes(content)  # an object of a bucket appears whole
        return
    with written_whole(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def written_whole(path: epath.PathLike) -> Iterator[epath.Path]:
    """A path beside `path` to write to, a file or a folder, which takes its name once it is whole.

    A reader sees what was there before, or all that is new. Where the block raises, nothing is
    left; where the process is killed, what lies beside is called `NAME.….partial`.

    Args:
      path: local or in a bucket; a folder must not be there yet.

    Raises:
      OSError: nothing can be written; the message names the file.
    """
    path = epath.Path(path)
    # Others may be writing the same.
    partial = path.parent / f"{path.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        with naming(path):
            yield partial
        partial.replace(path)
    except BaseException:
        if partial.is_dir():
            partial.rmtree()
        else:
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Lets an error of the system name the file that is written in the block.

    A full disk or a quota that is used up says so without a name.

    Raises:
      OSError: of the same kind and cause, with the file's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def write_files(files: Mapping[epath.PathLike, bytes]) -> None:
    """Writes files that belong together: they get their names once all are written.

    Args:
      files: contents by path; missing folders are made, and removed again where writing fails.

    Raises:
      OSError: nothing can be written; the message names the file.
    """
    made: list[epath.Path] = []
    try:
        with contextlib.ExitStack() as written:
            for name, content in files.items():
                path = epath.Path(name)
                for folder in reversed([path.parent, *path.parent.parents]):
                    if not folder.exists():
                        folder.mkdir()
                        made.append(folder)
                partial = written.enter_context(written_whole(path))
                with naming(path):
                    partial.write_bytes(content)
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
