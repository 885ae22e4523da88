"""Files that appear whole or not at all."""

import contextlib
import uuid
from collections.abc import Iterator

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
    """
    path = epath.Path(path)
    # Others may be writing the same.
    partial = path.parent / f"{path.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        if partial.is_dir():
            partial.rmtree()
        else:
            partial.unlink(missing_ok=True)
        raise
