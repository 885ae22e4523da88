"""Collections of template files: installed, of the user's own, or ours."""

import os
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from t0x.prompts.files import read_templates
from t0x.prompts.template import FILE_NAME, Template

# Folders of promptsource that hold a user's datasets, not a dataset's subsets.
_USERS = frozenset({"Zaid", "craffel"})


class TemplateCollection:
    """The template files below some directories: <directory>/<dataset>[/<subset>]/templates.yaml.

    Directories are searched in order; the first that has a dataset's file gives all its templates.
    """

    def __init__(self, directories: Sequence[str | Path]) -> None:
        self.directories = tuple(Path(directory) for directory in directories)

    @cached_property
    def _files(self) -> dict[tuple[str, str | None], Path]:
        """Template file of each (dataset, subset)."""
        found: dict[tuple[str, str | None], Path] = {}
        for directory in self.directories:
            paths = [
                path
                for depth in range(1, 4)
                for path in sorted(directory.glob(f"{'*/' * depth}{FILE_NAME}"))
            ]
            here = {_key(path.parent.relative_to(directory).parts): path for path in paths}
            found = here | found
        return found

    def datasets(self) -> list[tuple[str, str | None]]:
        """All (dataset, subset) that have templates, sorted."""
        return sorted(self._files, key=lambda key: (key[0], key[1] or ""))

    def get(self, dataset: str, subset: str | None = None) -> dict[str, Template]:
        """Templates of a dataset by name, names sorted. Raises LookupError, ValueError."""
        path = self._files.get((dataset, subset))
        if path is None:
            raise LookupError(self._missing(dataset, subset))
        return read_templates(path)

    def templates(
        self, report: Callable[[str], None] | None = None
    ) -> Iterator[tuple[str, str | None, Template]]:
        """Every (dataset, subset, template), in sorted order.

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


def _key(parts: tuple[str, ...]) -> tuple[str, str | None]:
    """(dataset, subset) of a folder below a collection's directory."""
    depth = 2 if len(parts) == 3 or parts[0] in _USERS else 1
    return "/".join(parts[:depth]), "/".join(parts[depth:]) or None


def dataset_of(folder: Path, collection: Path | None) -> tuple[str, str | None]:
    """(dataset, subset) of a template file's folder, as far as a collection's folder tells."""
    parts = folder.relative_to(collection).parts if collection else ()
    return _key(parts) if parts else (folder.name, None)


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
    return TemplateCollection(directories)
