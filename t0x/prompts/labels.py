"""Which answer choice a row's label names, and whether it names one at all.

Most templates end in `{{ answer_choices[label] }}`. Jinja renders nothing where the label is 1.0,
"1", null or 7 of two, and takes the last choice where it is -1, as a split without labels has it.
What is rendered stays promptsource's; here such rows are told from the others.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t0x.prompts.template import SEPARATOR, RenderError, Template

_CHOICE = re.compile(r"\banswer_choices\s*\[")
_WHOLE = re.compile(r"-?\d{1,9}")
_SHOWN = 40  # characters of a value


@dataclass(frozen=True)
class Label:
    """What stands in the brackets of `answer_choices[…]`, and its value in a row.

    Attributes:
      text: as the template has it.
      value: of a plain field its value, else the text that it renders to; None: cannot be told.
    """

    text: str
    value: Any

    @property
    def place(self) -> int | None:
        """The position that it stands for, if it is a whole number."""
        if isinstance(self.value, bool | int):
            return int(self.value)
        rendered = not self.text.isidentifier() and isinstance(self.value, str)
        return int(self.value) if rendered and _WHOLE.fullmatch(self.value) else None

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.text} = {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}"


def labels(template: Template, fields: Mapping[str, Any]) -> list[Label]:
    """The labels by which the template's target chooses, with their values in a row."""
    return [
        Label(text, fields.get(text) if asked is None else _render(asked, fields))
        for text, asked in _expressions(template.jinja)
    ]


def missing_label(
    template: Template, fields: Mapping[str, Any], target: str, choices: Sequence[str]
) -> str | None:
    """Why a row has no label among its choices, in a few words; None where it has one.

    Args:
      template: with answer choices.
      fields: the row, as it was rendered.
      target: what it rendered to.
      choices: the row's.
    """
    target = target.strip()
    if target and target != choices[-1]:
        # A negative position may stand for any choice, but is -1 where labels are missing.
        return None
    found = labels(template, fields)
    places = [label.place for label in found]
    if any(
        place is not None and 0 <= place < len(choices) and choices[place] == target
        for place in places
    ):
        return None
    if target and -1 not in places:
        return None
    named = ", ".join(map(str, found)) or "the target is empty"
    return f"{named}; the choices are {show(choices)}"


def show(choices: Sequence[str]) -> str:
    """Choices for an error line, not too long a list of not too long texts."""
    texts = [repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…") for text in choices[:8]]
    more = f" and {len(choices) - 8} more" if len(choices) > 8 else ""
    return f"[{', '.join(texts)}{more}]"


@functools.lru_cache(maxsize=8192)
def _expressions(jinja: str) -> tuple[tuple[str, Template | None], ...]:
    """Each text in brackets of the target, and what renders it; None for a plain field."""
    target = jinja.rpartition(SEPARATOR)[2]
    texts = dict.fromkeys(_in_brackets(target))
    return tuple(
        (text, None if text.isidentifier() else Template("label", "{{ (" + text + ") }}"))
        for text in texts
        if not _WHOLE.fullmatch(text)
    )


def _in_brackets(text: str) -> Iterator[str]:
    for match in _CHOICE.finditer(text):
        depth, quote, end = 1, "", match.end()
        while end < len(text) and depth:
            mark = text[end]
            if quote:
                quote = "" if mark == quote else quote
            elif mark in "'\"":
                quote = mark
            else:
                depth += (mark in "[({") - (mark in "])}")
            end += 1
        yield text[match.end() : end - 1].strip()


def _render(asked: Template, fields: Mapping[str, Any]) -> str | None:
    if asked.problem() is not None or not asked.fields() <= fields.keys():
        return None  # it needs what the template sets itself
    try:
        return asked.apply(fields)[0]
    except RenderError:
        return None
