"""Folders of rows as people have them: which files are which split.

Read are a split's one file (`train.jsonl`), its numbered files as the hub names them
(`train-00000-of-00003.parquet`, a digest after it or not), either of them in the folder itself or
in `data/` below it, and the hub's conversions (`train/0000.parquet`).
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

# In order of preference.
EXTENSIONS = (
    ".jsonl",
    ".jsonl.gz",
    ".jsonl.zst",
    ".json",
    ".json.gz",
    ".json.zst",
    ".parquet",
)
_EXTENSION = re.compile(r"(\.jsonl|\.json)(\.gz|\.zst)?$|\.parquet$")
_NUMBERED = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]{8,40})?")
_CONVERTED = re.compile(r"\d{4,5}")
# Other .json files in such folders describe the dataset.
_JSON_SPLIT = re.compile(r"(train|valid|val|dev|test|eval)", re.IGNORECASE)
_SHOWN = 8


def find_splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Files of each split below a folder, in their order; empty where there are none."""
    found: dict[str, tuple[Path, ...]] = {}
    for place in (folder, folder / "data"):
        for split, files in sorted(_splits_of(place).items()):
            found.setdefault(split, files)
    return found


def _splits_of(folder: Path) -> dict[str, tuple[Path, ...]]:
    if not folder.is_dir():
        return {}
    by_kind: dict[tuple[str, int, int], list[Path]] = {}
    for path in sorted(folder.iterdir()):
        extension = _EXTENSION.search(path.name)
        if extension is None or path.name.startswith("."):
            continue
        stem = path.name.removesuffix(extension[0])
        if extension[1] == ".json" and not _JSON_SPLIT.match(stem):
            continue
        numbered = _NUMBERED.fullmatch(stem)
        key = (numbered["split"] if numbered else stem, int(numbered is not None))
        by_kind.setdefault((*key, EXTENSIONS.index(extension[0])), []).append(path)
    for inner in sorted(folder.iterdir()):
        parts = sorted(inner.glob("*.parquet")) if inner.is_dir() else []
        if parts and all(_CONVERTED.fullmatch(part.stem) for part in parts):
            by_kind[inner.name, 2, 0] = parts
    found: dict[str, tuple[Path, ...]] = {}
    for (split, _, _), paths in sorted(by_kind.items()):
        found.setdefault(split, tuple(paths))
    return found


def check_numbers(paths: Sequence[Path]) -> None:
    """Raises ValueError where numbered files of a split are not there, or too many."""
    matches = [_NUMBERED.match(path.name) for path in paths]
    if not all(matches):
        if matches and _CONVERTED.fullmatch(paths[0].stem):
            _check_sequence(paths)
        return
    folder, split = paths[0].parent, matches[0]["split"]
    counts = sorted({int(match["count"]) for match in matches})
    if len(counts) > 1:
        raise ValueError(
            f"{folder}: split {split} lies there in {counts[0]} and in {counts[1]} files; keep one"
        )
    numbers = [int(match["number"]) for match in matches]
    missing = [number for number in range(counts[0]) if number not in numbers]
    if missing:
        name = f"{split}-{missing[0]:05}-of-{counts[0]:05}"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{folder}: of split {split} {name}{more} is missing; get the whole split")
    twice = [number for number, group in itertools.groupby(numbers) if len(list(group)) > 1]
    if twice:
        raise ValueError(
            f"{folder}: split {split} has {split}-{twice[0]:05}-of-{counts[0]:05} twice; keep one"
        )


def _check_sequence(paths: Sequence[Path]) -> None:
    missing = [n for n, path in enumerate(paths) if int(path.stem) != n]
    if missing:
        raise ValueError(f"{paths[0].parent}: {missing[0]:04}.parquet is missing; get all files")


def describe(folder: Path) -> str:
    """What lies in a folder, in a few words."""
    if not folder.exists():
        return f"{folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is no folder"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    if not names:
        return f"{folder} is empty"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"in {folder} lie {', '.join(names[:_SHOWN])}{more}"


def expected(split: str) -> str:
    """The file names under which a split is looked for."""
    return f"{split}.jsonl, .json (.gz, .zst), .parquet, {split}-00000-of-…, also in data/"
