"""Gets promptsource's templates: its source archive, verified, of which only the YAML is kept."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from t0x.prompts.collection import install_directory

ARCHIVE = "promptsource-0.2.3.tar.gz"
ARCHIVE_SHA256 = "f106c889778a0fe5590e7183904bf964e1a01691c8a29451e44f3df5ddef05f5"
_RECEIPT = ".installed.json"
_MEMBER = re.compile(r"[^/]+/promptsource/templates/(.+/templates\.yaml)")
_LARGEST_FILE = 4 << 20


def install(archive: Path | None = None, force: bool = False) -> tuple[Path, bool]:
    """Puts promptsource's template files below the cache directory.

    Args:
      archive: a local copy of the source archive; downloaded from the package index if None.
      force: replace what is installed.

    Returns:
      The directory of the templates, and whether it was made now.

    Raises:
      ConnectionError: the index cannot be reached. ValueError: not the expected archive.
      FileNotFoundError: no such archive. FileExistsError: the directory is in other use.
    """
    target = install_directory()
    if installed(target) and not force:
        return target, False
    if target.exists() and not force:
        raise FileExistsError(f"{target} holds something else; move it away or give --force")
    content = _download() if archive is None else _read_archive(archive)
    digest = hashlib.sha256(content).hexdigest()
    if digest != ARCHIVE_SHA256:
        origin = archive or "the package index"
        raise ValueError(f"{origin}: SHA-256 {digest} is not that of {ARCHIVE} ({ARCHIVE_SHA256})")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".prompts-") as scratch:
        fresh = Path(scratch) / "new"
        _unpack(content, fresh)
        if target.exists():
            target.rename(Path(scratch) / "old")
        fresh.rename(target)
    return target, True


def installed(directory: Path) -> bool:
    """Whether the directory holds the templates of this archive, completely unpacked."""
    receipt = directory / _RECEIPT
    return receipt.is_file() and json.loads(receipt.read_text())["sha256"] == ARCHIVE_SHA256


def _read_archive(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"--archive {path}: no such file")
    return path.read_bytes()


def index_url() -> str:
    """The package index that pip uses here: $PIP_INDEX_URL, pip's configuration, or PyPI."""
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or PYPI_SIMPLE_ENDPOINT


def _download() -> bytes:
    import requests
    from pypi_simple import PyPISimple

    index = index_url()
    try:
        session = requests.Session()
        session.verify = os.environ.get("PIP_CERT") or True
        with PyPISimple(index, session=session) as client, tempfile.TemporaryDirectory() as scratch:
            page = client.get_project_page("promptsource", timeout=30)
            package = next(p for p in page.packages if p.filename == ARCHIVE)
            path = Path(scratch) / ARCHIVE
            client.download_package(package, path, timeout=60)
            return path.read_bytes()
    except (requests.RequestException, StopIteration) as error:
        cause = "it has no " + ARCHIVE if isinstance(error, StopIteration) else type(error).__name__
        raise ConnectionError(
            f"cannot get {ARCHIVE} from {index} ({cause}): check the network or $PIP_INDEX_URL, or "
            f"copy the archive here and run `t0x prompts install --archive {ARCHIVE}`"
        ) from error


def _unpack(content: bytes, target: Path) -> None:
    """Writes the archive's template files, and nothing else of it, below `target`."""
    names = []
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            matched = _MEMBER.fullmatch(member.name)
            if not matched or not member.isfile() or member.size > _LARGEST_FILE:
                continue
            name = PurePosixPath(matched[1])
            if ".." in name.parts or name.is_absolute():
                continue
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            file = archive.extractfile(member)
            assert file is not None  # it is a file
            path.write_bytes(file.read())
            names.append(str(name))
    if not names:
        raise ValueError(f"{ARCHIVE} holds no template files")
    receipt = {"archive": ARCHIVE, "sha256": ARCHIVE_SHA256, "files": len(names)}
    (target / _RECEIPT).write_text(json.dumps(receipt))
