"""Collections of template files: installed, of the user's own, or ours."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from t0x.prompts.files import read_templates
from t0x.prompts.template import FILE_NAME, Metadata, Template

# Folders of promptsource that hold a user's datasets, not a dataset's subsets.
_USERS = frozenset({"Zaid", "craffel"})
_CACHE_FORMAT = 1


class TemplateCollection:
    """The template files below some directories: <directory>/<dataset>[/<subset>]/templates.yaml.

    Directories are searched in order; the first that has a dataset's file gives all its templates.
    Parsed templates are kept in `cache`, a folder of JSON files, one a directory, in which an
    entry counts only while size and modification time of its template file are the same.
    """

    def __init__(self, directories: Sequence[str | Path], cache: Path | None = None) -> None:
        self.directories = tuple(Path(directory) for directory in directories)
        self._shelves = [_Shelf(directory, cache) for directory in self.directories]

    def datasets(self) -> list[tuple[str, str | None]]:
        """All (dataset, subset) that have templates, sorted."""
        found = {key for shelf in self._shelves for key in shelf.files}
        return sorted(found, key=lambda key: (key[0], key[1] or ""))

    def get(self, dataset: str, subset: str | None = None) -> dict[str, Template]:
        """Templates of a dataset by name, names sorted. Raises LookupError, ValueError."""
        for shelf in self._shelves:
            if (dataset, subset) in shelf.files:
                return shelf.get((dataset, subset))
        raise LookupError(self._missing(dataset, subset))

    def templates(
        self, report: Callable[[str], None] | None = None
    ) -> Iterator[tuple[str, str | None, Template]]:
        """Every (dataset, subset, template), in sorted order; brings the cache up to date.

        A file that cannot be read raises ValueError or, given `report`, is told and left out.
        """
        everything = {}
        for key in self.datasets():
            try:
                everything[key] = self.get(*key)
            except ValueError as error:
                if report is None:
                    raise
                report(str(error))
        for shelf in self._shelves:
            shelf.save()
        for (dataset, subset), named in everything.items():
            for template in named.values():
                yield dataset, subset, template

    def _missing(self, dataset: str, subset: str | None) -> str:
        asked = f"{dataset}/{subset}" if subset else dataset
        known = [f"{name}/{sub}" if sub else name for name, sub in self.datasets()]
        near = get_close_matches(asked, known, n=3) or [k for k in known if dataset in k][:3]
        hint = f"did you mean {', '.join(near)}?" if near else "see `t0x prompts list`"
        searched = ", ".join(map(str, self.directories)) or "no directory"
        install = "" if len(known) > 100 else "; promptsource's come with `t0x prompts install`"
        return f"no templates for {asked} in {searched}: {hint}{install}"


class _Shelf:
    """The template files below one directory and their parsed contents."""

    def __init__(self, directory: Path, cache: Path | None) -> None:
        self._directory = directory
        digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        self._store = cache / f"{digest}.json" if cache else None
        self._parsed: dict[str, list[Any]] | None = None
        self._stale = False

    @cached_property
    def files(self) -> dict[tuple[str, str | None], Path]:
        """Template file of each (dataset, subset)."""
        found = sorted(self._directory.glob(f"*/{FILE_NAME}"))
        found += sorted(self._directory.glob(f"*/*/{FILE_NAME}"))
        found += sorted(self._directory.glob(f"*/*/*/{FILE_NAME}"))
        return {_key(path.parent.relative_to(self._directory).parts): path for path in found}

    def get(self, key: tuple[str, str | None]) -> dict[str, Template]:
        path = self.files[key]
        stat = path.stat()
        stamp, name = [stat.st_size, stat.st_mtime_ns], path.relative_to(self._directory).as_posix()
        if self._parsed is None:
            self._parsed = self._load()
        entry = self._parsed.get(name)
        if entry is not None and entry[0] == stamp:
            return {fields[0]: _unpack(fields) for fields in entry[1]}
        named = read_templates(path)
        self._parsed[name] = [stamp, [_pack(template) for template in named.values()]]
        self._stale = True
        return named

    def _load(self) -> dict[str, list[Any]]:
        if self._store is None or not self._store.is_file():
            return {}
        try:
            content = json.loads(self._store.read_bytes())
        except ValueError:  # torn or foreign: parsed anew and replaced
            return {}
        return content["files"] if content.get("format") == _CACHE_FORMAT else {}

    def save(self) -> None:
        """Writes the cache if it has changed; a folder that cannot be written is left alone."""
        if self._store is None or not self._stale:
            return
        content = json.dumps({"format": _CACHE_FORMAT, "files": self._parsed})
        scratch = self._store.with_suffix(f".{os.getpid()}")
        try:
            self._store.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(content, encoding="utf-8")
            scratch.replace(self._store)
        except OSError:  # a cache is a convenience: a read-only home must not stop a run
            return
        self._stale = False


def _key(parts: tuple[str, ...]) -> tuple[str, str | None]:
    """(dataset, subset) of a folder below a collection's directory."""
    depth = 2 if len(parts) == 3 or parts[0] in _USERS else 1
    return "/".join(parts[:depth]), "/".join(parts[depth:]) or None


def dataset_of(folder: Path, collection: Path | None) -> tuple[str, str | None]:
    """(dataset, subset) of a template file's folder, as far as a collection's folder tells."""
    parts = folder.relative_to(collection).parts if collection else ()
    return _key(parts) if parts else (folder.name, None)


def _pack(template: Template) -> list[Any]:
    noted = template.metadata
    return [
        *(template.name, template.jinja, template.answer_choices, template.reference, template.id),
        *(noted.original_task, noted.choices_in_prompt, noted.metrics, noted.languages),
    ]


def _unpack(fields: list[Any]) -> Template:
    name, jinja, choices, reference, key, original_task, choices_in_prompt, *lists = fields
    noted = Metadata(original_task, choices_in_prompt, *map(tuple, lists))
    return Template(name, jinja, choices, reference, key, noted)


def cache_directory() -> Path:
    """Where t0x keeps what it can make again: $T0X_CACHE_DIR or ~/.cache/t0x."""
    return Path(os.environ.get("T0X_CACHE_DIR") or Path.home() / ".cache" / "t0x")


def install_directory() -> Path:
    """Where `t0x prompts install` puts promptsource's templates."""
    return cache_directory() / "prompts"


def default_collection() -> TemplateCollection:
    """$T0X_PROMPTS_DIR, the installed archive, an importable promptsource, and t0x's own prompts.

    Directories that do not exist are left out, except those of $T0X_PROMPTS_DIR: FileNotFoundError.
    """
    directories = []
    for text in filter(None, os.environ.get("T0X_PROMPTS_DIR", "").split(os.pathsep)):
        if not Path(text).is_dir():
            raise FileNotFoundError(f"$T0X_PROMPTS_DIR names {text}, which is no directory")
        directories.append(Path(text))
    optional = [install_directory()]
    for package, folder in (("promptsource", "templates"), ("t0x.tasks", "prompts")):
        spec = find_spec(package)  # finds the package's folder without running its code
        if spec is not None and spec.submodule_search_locations:
            optional += [Path(place) / folder for place in spec.submodule_search_locations]
    directories += [directory for directory in optional if directory.is_dir()]
    return TemplateCollection(directories, cache=cache_directory() / "templates")
