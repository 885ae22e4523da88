"""Prompt collections on disk: installing promptsource's, checking files, starting a new one.

promptsource 0.2.3 is on PyPI as a source archive only, for Python < 3.10, so it cannot be a
requirement. `install` downloads that archive by package name, checks its digest and unpacks the
YAML files; none of its code is run.
"""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from t0x.prompts.collection import TemplateCollection, dataset_of
from t0x.prompts.files import parse_templates
from t0x.prompts.labels import missing_label, show
from t0x.prompts.task_names import SCORE_EVAL, task_name
from t0x.prompts.template import FILE_NAME, SEPARATOR, RenderError, Template

_ROWS_LOOKED_AT = 200


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file as templates see them in training (JSON lines, JSON, Parquet, CSV).

    Raises FileNotFoundError; ValueError naming file and line.
    """
    from t0x.sources.files import open_file
    from t0x.sources.openers import underscore_fields

    if not path.exists():
        raise FileNotFoundError(f"--rows {path}: no such file")
    yield from map(underscore_fields, open_file(path))


def resolve(collection: TemplateCollection, name: str) -> tuple[str, str | None]:
    """(dataset, subset) of DATASET[/SUBSET], where datasets may hold a slash themselves."""
    known = set(collection.datasets())
    dataset, _, subset = name.rpartition("/")
    if (name, None) in known or not dataset:
        return name, None
    return dataset, subset


def find_template(templates: Mapping[str, Template], name: str, dataset: str) -> Template:
    """The template of that name. Raises LookupError listing the names there are."""
    if name not in templates:
        raise LookupError(f"{dataset} has no template {name!r}; it has: {', '.join(templates)}")
    return templates[name]


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a template file; errors fail the check, warnings do not."""

    level: str
    file: Path
    template: str | None
    text: str


def validate(path: Path, rows: Sequence[Mapping[str, Any]] = ()) -> tuple[int, list[Finding]]:
    """Checks a template file, or all below a folder, on given rows too.

    Returns:
      The number of templates read, and what is wrong.

    Raises:
      FileNotFoundError: there is no template file.
    """
    files = sorted(path.rglob(FILE_NAME)) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"no {FILE_NAME} at {path}")
    count = 0
    findings: list[Finding] = []
    tasks: dict[str, tuple[Path, str]] = {}
    for file in files:
        try:
            templates = parse_templates(file.read_bytes(), str(file))
        except ValueError as error:
            findings.append(Finding("error", file, None, str(error).removeprefix(f"{file}: ")))
            continue
        count += len(templates)
        names = [template.name for template in templates]
        for name in sorted({name for name in names if names.count(name) > 1}):
            findings.append(Finding("error", file, name, "another template has this name"))
        key = dataset_of(file.parent.absolute(), path.absolute() if path.is_dir() else None)
        findings += _colliding(file, key, {t.name: t for t in templates}, tasks)
        for template in templates:
            for level, text in _check(template, rows):
                findings.append(Finding(level, file, template.name, text))
    return count, findings


def _colliding(
    file: Path,
    dataset: tuple[str, str | None],
    templates: Mapping[str, Template],
    tasks: dict[str, tuple[Path, str]],
) -> Iterator[Finding]:
    """Templates whose task, or its twin, has a name that another's has; adds theirs to `tasks`."""
    for name, template in templates.items():
        task = task_name(*dataset, name)
        for made in [task, task + SCORE_EVAL] if template.answer_choices else [task]:
            other, whose = tasks.setdefault(made, (file, name))
            if (other, whose) != (file, name):
                text = f"its task is called {made}, and so is one of template {whose!r}"
                where = "" if other == file else f" of {other}"
                yield Finding("error", file, name, f"{text}{where}; rename one")


def _check(template: Template, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    if (problem := template.problem()) is not None:
        yield "error", problem
        return
    separators = template.jinja.count(SEPARATOR)
    if separators == 0 and template.answer_choices is not None:
        yield "error", f"answer choices but no target: {SEPARATOR} is missing"
    elif separators == 0:
        yield "error", f"no {SEPARATOR} between input and target"
    elif separators > 1 and not rows:
        yield "warning", f"{separators} times {SEPARATOR}; give rows to see what they render to"
    if rows:
        yield from _check_rows(template, rows)


def _check_rows(template: Template, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    present = set().union(*(row.keys() for row in rows))
    if missing := sorted(template.fields() - present):
        yield "error", f"no row has the field {', '.join(missing)}"
    counts: dict[tuple[str, str], list[int]] = {}
    firsts: dict[tuple[str, str], str] = {}
    for number, row in enumerate(rows, 1):
        try:
            parts, choices = template.apply(row), template.get_answer_choices_list(row)
        except RenderError as error:
            text = str(error).removeprefix(f"template {template.name!r}: ")
            counts.setdefault(("error", f"does not render: {text}"), []).append(number)
            continue
        if (problem := _row_problem(template, row, parts, choices)) is not None:
            level, what, detail = problem
            counts.setdefault((level, what), []).append(number)
            firsts.setdefault((level, what), detail and f": {detail}")
    for key, numbers in counts.items():
        first = f"first row {numbers[0]}{firsts.get(key, '')}"
        yield key[0], f"{key[1]} ({len(numbers)} of {len(rows)} rows, {first})"


def _row_problem(
    template: Template, row: Mapping[str, Any], parts: list[str], choices: list[str] | None
) -> tuple[str, str, str] | None:
    """Level, what is wrong, and what it is in this row."""
    if parts == [""]:
        return "warning", "renders to nothing", ""  # how a template leaves a row out
    if len(parts) != 2:
        return "error", f"renders to {len(parts)} parts, not input {SEPARATOR} target", ""
    if choices and parts[0] and (missing := missing_label(template, row, parts[1], choices)):
        what = "no label among the choices" if parts[1] else "the target is empty"
        return "warning", what, missing
    if not all(parts):
        return "warning", f"the {'target' if parts[0] else 'input'} is empty", ""
    if choices is not None and parts[1] not in choices:
        level = "error" if "Accuracy" in template.metadata.metrics else "warning"
        detail = f"{parts[1][:80]!r} of {show(choices)}"
        return level, "the target is none of the answer choices", detail
    return None


def scaffold(dataset: str, fields: Sequence[str]) -> str:
    """Text of a template file with one open and one multiple-choice prompt over `fields`.

    The last field is taken for the label, the others for the input.
    """
    name, _, subset = dataset.partition("/")
    *inputs, label = fields or ("text", "label")
    body = "\n".join(f"{field}: {{{{ {field} }}}}" for field in inputs) or "Describe the task."
    choice = f"{{{{ answer_choices[{label}] }}}}"
    entries = [
        _entry("question", f"{body}\nWhat is the {label}? |||\n{{{{ {label} }}}}", None),
        _entry(
            "choices",
            f"{body}\nIs it {{{{ answer_choices | join(' or ') }}}}? |||\n{choice}",
            f"no {SEPARATOR} yes",
        ),
    ]
    document: dict[str, Any] = {"dataset": name, **({"subset": subset} if subset else {})}
    document["templates"] = {entry.fields["id"]: entry for entry in entries}
    return yaml.dump(document, Dumper=_Dumper, allow_unicode=True, sort_keys=True)


@dataclass(frozen=True)
class _Entry:
    tag: str
    fields: dict[str, Any]


def _entry(name: str, jinja: str, answer_choices: str | None) -> _Entry:
    metadata = {
        "original_task": True,
        "choices_in_prompt": answer_choices is not None,
        "metrics": ["Accuracy"],
        "languages": ["en"],
    }
    fields = {"name": name, "jinja": jinja, "answer_choices": answer_choices, "reference": ""}
    fields |= {"id": str(uuid.uuid4()), "metadata": _Entry("!TemplateMetadata", metadata)}
    return _Entry("!Template", fields)


class _Dumper(yaml.SafeDumper):
    """Writes templates with promptsource's tags and texts over several lines as they are."""


def _represent_entry(dumper: _Dumper, entry: _Entry) -> yaml.Node:
    return dumper.represent_mapping(entry.tag, entry.fields)


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(_Entry, _represent_entry)
_Dumper.add_representer(str, _represent_text)


def create(dataset: str, directory: Path, fields: Sequence[str] = ()) -> Path:
    """Writes <directory>/<dataset>/templates.yaml. Raises FileExistsError, ValueError."""
    if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+){0,2}", dataset) or ".." in dataset.split("/"):
        raise ValueError(f"{dataset!r} is no dataset name; expected DATASET or DATASET/SUBSET")
    path = directory / dataset / FILE_NAME
    if path.exists():
        raise FileExistsError(f"{path} exists; add your prompt to it by hand")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(scaffold(dataset, fields), encoding="utf-8")
    return path
