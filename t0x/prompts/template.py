"""Prompt templates in promptsource's format: reading them, rendering rows with them.

A template file is YAML with the tags `!Template` and `!TemplateMetadata` (promptsource 0.2.3). A
template's Jinja text holds input and target, separated by `|||`; `answer_choices` is a second Jinja
text that renders to the choices, separated likewise. Rendering gives promptsource's bytes, in a
sandbox (`t0x.prompts.sandbox`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from t0x.prompts.cost import measure
from t0x.prompts.program import Program, admit
from t0x.prompts.sandbox import describe

LONGEST_VARIABLE = 2048  # characters of a substituted value, promptsource's TEXT_VAR_LENGTH
SEPARATOR = "|||"
FILE_NAME = "templates.yaml"
# Stands for a separator inside a value while the text is split; the very mark of promptsource,
# because a value cut at 2,048 characters may be cut within the mark.
_PROTECTED = "3ed2dface8203c4c9dfb1a5dc58e41e0"


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
            variables, size = _protect(row)
            choices = self._choices(row, variables, size)
            variables["answer_choices"] = choices
            size += measure(choices)
            program = _compile(self.jinja, truncate, highlight_variables)
            text = program.render(variables, size, lambda: self._seed(row))
        except Exception as error:
            raise self._failure(error) from error
        return [part.replace(_PROTECTED, SEPARATOR).strip() for part in text.split(SEPARATOR)]

    def get_answer_choices_list(self, row: Mapping[str, Any]) -> list[str] | None:
        """The row's answer choices; None for a template without. Raises RenderError."""
        try:
            return self._choices(row, *_protect(row))
        except Exception as error:
            raise self._failure(error) from error

    def get_fixed_answer_choices_list(self) -> list[str] | None:
        """The answer choices if they are the same for all rows, else None. Raises RenderError."""
        if self.answer_choices is None or _compile(self.answer_choices).fields:
            return None
        try:
            text = _compile(self.answer_choices).render({}, 0, lambda: self._seed({}))
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
        return names - {"answer_choices"}

    def _choices(
        self, row: Mapping[str, Any], variables: dict[str, Any], size: float
    ) -> list[str] | None:
        if self.answer_choices is None:
            return None
        program = _compile(self.answer_choices)
        if not program.fields and not program.draws:
            return list(_fixed_choices(self.answer_choices))
        text = program.render(variables, size, lambda: self._seed(row))
        return _split_choices(text)

    def _seed(self, row: Mapping[str, Any]) -> str:
        return self.name + json.dumps(dict(row), sort_keys=True, default=repr)

    def _failure(self, error: Exception) -> RenderError:
        return RenderError(f"template {self.name!r}: {describe(error)}")


def _protect(row: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The row's fields as templates see them, and their size."""
    variables, size = admit(row)
    for key, value in variables.items():
        if type(value) is str and SEPARATOR in value:
            variables[key] = value.replace(SEPARATOR, _PROTECTED)
            size += measure(variables[key])
    return variables, size


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
    return tuple(_split_choices(_compile(source).render({}, 0, str)))
