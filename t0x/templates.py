"""Prompt templates in promptsource's format: reading them, rendering rows with them.

A template file is YAML with the tags `!Template` and `!TemplateMetadata` (promptsource 0.2.3). A
template's Jinja text holds input and target, separated by `|||`; `answer_choices` is a second Jinja
text that renders to the choices, separated likewise. Rendering gives promptsource's bytes, in a
sandbox (`t0x.sandbox`).
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from t0x.compilation import LONGEST_VARIABLE
from t0x.sandbox import Program, describe

SEPARATOR = "|||"
FILE_NAME = "templates.yaml"
# Stands for a separator inside a value while the text is split; the very mark of promptsource,
# because a value cut at 2,048 characters may be cut within the mark.
_PROTECTED = "3ed2dface8203c4c9dfb1a5dc58e41e0"
# Folders of promptsource that hold a user's datasets, not a dataset's subsets.
_USERS = frozenset({"Zaid", "craffel"})
_CACHE_FORMAT = 1


class RenderError(ValueError):
    """A template cannot render a row: one line naming template and cause."""


@dataclass(frozen=True)
class Metadata:
    """promptsource's annotations of a template; `None` where the author gave none."""

    original_task: bool | None = None
    choices_in_prompt: bool | None = None
    metrics: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Template:
    """A prompt. `jinja` renders to input ||| target, `answer_choices` to choice ||| choice ...

    Templates compare by value, pickle, and may be used from several threads; compiled code is
    shared by all that have the same text. `choice` and `random` draw from a generator seeded with
    the template's name and the row, so a row always renders to the same text.
    """

    name: str
    jinja: str
    answer_choices: str | None = None
    reference: str = ""
    id: str = ""
    metadata: Metadata = field(default_factory=Metadata)

    def apply(
        self, row: Mapping[str, Any], truncate: bool = True, highlight_variables: bool = False
    ) -> list[str]:
        """The parts of the rendered text, stripped; [input, target] for most templates.

        Equals promptsource's `Template.apply`: values substituted by `{{ }}` are cut at 2,048
        characters if `truncate`; `|||` within a text field of the row does not separate (but, as in
        promptsource, it does within lists and within answer choices). Raises RenderError.
        """
        if "answer_choices" in row:
            raise RenderError(f"template {self.name!r}: the row has a field answer_choices")
        try:
            variables = _protect(row)
            variables["answer_choices"] = self._choices(row, variables)
            program = _compile(self.jinja, truncate, highlight_variables)
            text = program.render(variables, lambda: self._seed(row))
        except Exception as error:
            raise self._failure(error) from error
        return [part.replace(_PROTECTED, SEPARATOR).strip() for part in text.split(SEPARATOR)]

    def get_answer_choices_list(self, row: Mapping[str, Any]) -> list[str] | None:
        """The row's answer choices; None for a template without. Raises RenderError."""
        try:
            return self._choices(row, _protect(row))
        except Exception as error:
            raise self._failure(error) from error

    def get_fixed_answer_choices_list(self) -> list[str] | None:
        """The answer choices if they are the same for all rows, else None. Raises RenderError."""
        if self.answer_choices is None or _compile(self.answer_choices).fields:
            return None
        try:
            text = _compile(self.answer_choices).render({}, lambda: self._seed({}))
        except Exception as error:
            raise self._failure(error) from error
        return [choice.strip() for choice in text.split(SEPARATOR)]

    def problem(self) -> str | None:
        """Why the template does not compile, in one line; None if it does."""
        programs = {"jinja": _compile(self.jinja, True)}
        if self.answer_choices is not None:
            programs["answer_choices"] = _compile(self.answer_choices)
        for part, program in programs.items():
            if program.error is not None:
                return f"{part}: {program.error}"
        return None

    def fields(self) -> frozenset[str]:
        """Names that the texts expect of a row (`answer_choices` and functions left out)."""
        names = _compile(self.jinja, True).fields
        if self.answer_choices is not None:
            names |= _compile(self.answer_choices).fields
        return names - {"answer_choices"} - Program.functions()

    def _choices(self, row: Mapping[str, Any], variables: dict[str, Any]) -> list[str] | None:
        if self.answer_choices is None:
            return None
        program = _compile(self.answer_choices)
        if not program.fields and not program.draws:
            return list(_fixed_choices(self.answer_choices))
        text = program.render(variables, lambda: self._seed(row))
        return _split_choices(text)

    def _seed(self, row: Mapping[str, Any]) -> str:
        return self.name + json.dumps(dict(row), sort_keys=True, default=repr)

    def _failure(self, error: Exception) -> RenderError:
        return RenderError(f"template {self.name!r}: {describe(error)}")


def _protect(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.replace(SEPARATOR, _PROTECTED) if isinstance(value, str) else value
        for key, value in row.items()
    }


def _split_choices(text: str) -> list[str]:
    return [part.strip().replace(_PROTECTED, SEPARATOR) for part in text.split(SEPARATOR)]


@lru_cache(maxsize=8192)
def _compile(source: str, truncate: bool = False, highlight: bool = False) -> Program:
    # promptsource appends its filters in the text, so they bind to the last operand of what is in
    # the braces (and reach braces outside of expressions); that is part of the format.
    if truncate:
        source = source.replace("}}", f" | string | truncate({LONGEST_VARIABLE}) }}}}")
    if highlight:
        source = source.replace("}}", " | highlight }}")
    return Program(source)


@lru_cache(maxsize=8192)
def _fixed_choices(source: str) -> tuple[str, ...]:
    return tuple(_split_choices(_compile(source).render({}, str)))


# Files


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Plain YAML plus promptsource's two tags, read as mappings; no repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            keys = [key.value for key, _ in node.value]
            repeated = next((key for key in keys if keys.count(key) > 1), "?")
            raise yaml.constructor.ConstructorError(
                None, None, f"key {repeated!r} occurs twice", node.start_mark
            )
        return mapping


def _construct(loader: _Loader, node: yaml.Node) -> dict:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!Template", _construct)
_Loader.add_constructor("!TemplateMetadata", _construct)


def parse_templates(text: str | bytes, origin: str) -> list[Template]:
    """The templates of a YAML text in the order of the file, duplicate names included.

    Raises ValueError, one line that names `origin`, the template and the field.
    """
    try:
        document = yaml.load(text, _Loader)  # a safe loader with two more mapping tags
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{origin}: {' '.join(str(error).split())[:200]}") from error
    entries = document.get("templates") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{origin}: no mapping `templates:` of id to !Template")
    return [_parse_template(key, entry, origin) for key, entry in entries.items()]


def _parse_template(key: Any, entry: Any, origin: str) -> Template:
    def take(source: dict, name: str, kinds: type | tuple, default: Any = None) -> Any:
        value = source.get(name, default)
        if not isinstance(value, kinds):
            shown = entry.get("name", key)
            raise ValueError(f"{origin}: template {shown!r}: field {name} is {value!r:.60}")
        return value

    none = type(None)
    if not isinstance(entry, dict):
        raise ValueError(f"{origin}: template {key!r} is not a !Template")
    metadata = take(entry, "metadata", (dict, none)) or {}
    lists = {name: take(metadata, name, (list, none)) or [] for name in ("metrics", "languages")}
    return Template(
        name=take(entry, "name", str),
        jinja=take(entry, "jinja", str),
        answer_choices=take(entry, "answer_choices", (str, none)),
        reference=take(entry, "reference", (str, none)) or "",
        id=str(entry.get("id", key)),
        metadata=Metadata(
            original_task=take(metadata, "original_task", (bool, none)),
            choices_in_prompt=take(metadata, "choices_in_prompt", (bool, none)),
            **{name: tuple(map(str, values)) for name, values in lists.items()},
        ),
    )


def read_templates(path: str | Path) -> dict[str, Template]:
    """The templates of a file (or of the templates.yaml in a folder) by name, names sorted.

    Raises FileNotFoundError, or ValueError naming file and field.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no template file at {path}")
    return by_name(parse_templates(path.read_bytes(), str(path)), str(path))


def by_name(templates: Sequence[Template], origin: str) -> dict[str, Template]:
    """Templates by name, names sorted. Raises ValueError where a name occurs twice."""
    named = {template.name: template for template in templates}
    if len(named) != len(templates):
        names = [template.name for template in templates]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{origin}: two templates are named {repeated!r}; rename one")
    return {name: named[name] for name in sorted(named)}


# Collections


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

    def templates(self) -> Iterator[tuple[str, str | None, Template]]:
        """Every (dataset, subset, template), in sorted order; brings the cache up to date."""
        everything = {key: self.get(*key) for key in self.datasets()}
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
        self._parsed: dict[str, list] | None = None
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

    def _load(self) -> dict[str, list]:
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


def _pack(template: Template) -> list:
    noted = template.metadata
    return [
        *(template.name, template.jinja, template.answer_choices, template.reference, template.id),
        *(noted.original_task, noted.choices_in_prompt, noted.metrics, noted.languages),
    ]


def _unpack(fields: list) -> Template:
    *texts, original_task, choices_in_prompt, metrics, languages = fields
    noted = Metadata(original_task, choices_in_prompt, tuple(metrics), tuple(languages))
    return Template(*texts, noted)


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
