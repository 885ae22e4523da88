"""Rows whose label names none of their choices."""

import pytest

from t0x.prompts.labels import missing_label
from t0x.prompts.template import Template

CHOICES = "no ||| yes"
BY_LABEL = "{{text}}|||{{ answer_choices[label] }}"


def missing(jinja, row, choices=CHOICES):
    template = Template("t", jinja, choices)
    row = {"text": "t", **row}
    parts = template.apply(row)
    return missing_label(template, row, parts[1], template.get_answer_choices_list(row))


@pytest.mark.parametrize("label", [0, 1, True, False])
def test_a_position_is_a_label(label):
    assert missing(BY_LABEL, {"label": label}) is None


@pytest.mark.parametrize("label", [1.0, "1", None, 7, -1, -3, [0], "x" * 100])
def test_what_is_no_position_is_shown_with_the_choices(label):
    shown = missing(BY_LABEL, {"label": label})
    assert shown.startswith(f"label = {label!r}"[:48])
    assert shown.endswith("; the choices are ['no', 'yes']")
    assert len(shown) < 110


@pytest.mark.parametrize(
    ("jinja", "row", "expected"),
    [
        ("{{text}}|||{{ answer_choices[answer|int - 1] }}", {"answer": ""},
         "answer|int - 1 = '-1'"),
        ("{{text}}|||{{ answer_choices[answer|int - 1] }}", {"answer": "2"}, None),
        ("{{text}}|||{{ answer_choices[label-1] }}", {"label": 0}, "label-1 = '-1'"),
        ('{{text}}|||{{ answer_choices[{"A": 0, "B": 1}[key]] }}', {"key": "B"}, None),
        (
            '{{text}}|||{{ answer_choices[{"A": 0, "B": 1}[key]] }}',
            {"key": ""},
            '{"A": 0, "B": 1}[key] = \'\'',
        ),
        # What the template sets itself cannot be told, an empty target can.
        (
            "{% set m = {1: 0} %}{{text}}|||{{ answer_choices[m[label]] }}",
            {"label": 3},
            "m[label] = None",
        ),
        # The last choice may be the answer, whatever else the template asks about.
        ("{{text}}|||{{ answer_choices[-1] }}", {}, None),
        ("{{text}}|||{% if label < 0 %}yes{% else %}{{ answer_choices[label] }}{% endif %}",
         {"label": 1}, None),
        ("{{text}}|||{{ answer }}", {"answer": "yes"}, None),
        ("{{text}}|||{{ answer }}", {"answer": ""}, "the target is empty"),
        ("{{ answer_choices[label] }}|||{{ text }}", {"label": -1, "text": "no"}, None),
    ],
)  # fmt: skip
def test_expressions_in_the_brackets(jinja, row, expected):
    shown = missing(jinja, row)
    assert shown is None if expected is None else shown.startswith(expected + ";")


def test_an_empty_choice_may_be_the_answer():
    assert missing(BY_LABEL, {"label": 1}, "no ||| ") is None
    assert missing(BY_LABEL, {"label": -1}, "no ||| ").startswith("label = -1")
    assert missing(BY_LABEL, {"label": 2}, "no ||| ").startswith("label = 2")
