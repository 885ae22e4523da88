"""Templates nobody vouches for: what they cannot reach, what they cannot take."""

import json
import os
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from t0x.prompts import cost, program
from t0x.prompts import template as compiled
from t0x.prompts.sandbox import SANDBOX
from t0x.prompts.template import RenderError, Template
from t0x.prompts.worker import WORKER

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [json.loads(line) for line in (GOLDEN / "hostile_templates.jsonl").open(encoding="utf-8")]
ROW = {"text": "some text", "array": np.arange(1000.0)}

# What is Python's own

INTERNALS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ [text] | map(attribute='__class__') | list }}",
    "{{ '{0.__class__}'.format(text) }}",
    "{{ '{x.__init__.__globals__}'.format(x=cycler) }}",
    "{{ '{0[__class__]}'.format(text) }}",
    "{{ cycler.__init__.__globals__.os.popen('touch pwned') }}",
    "{{ namespace.__init__ }}",
    "{{ zip.__self__ }}",
    "{{ dict.mro() }}",
    "{{ self._TemplateReference__context }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ lipsum.__globals__ }}",
    "{{ array.tofile('pwned') }}",
    "{{ array.dump('pwned') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends 'x' %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
]


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("source", INTERNALS)
def test_internals_are_out_of_reach(source, truncate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RenderError, match="template 'hostile': "):
        Template("hostile", source).apply(ROW, truncate=truncate)
    assert not list(tmp_path.iterdir())


def test_row_with_what_is_no_data_is_refused():
    with pytest.raises(RenderError, match="field f holds a value of type function"):
        Template("t", "{{ f() }}").apply({"f": lambda: Path("pwned").touch()})
    with pytest.raises(RenderError, match="field f holds a value of type"):
        Template("t", "x").apply({"f": [{"a": Path.cwd()}]})


# What takes too much

GROW = (
    "{% set ns = namespace(x=[1]) %}"
    "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
)
TUPLES = GROW.replace("[1]", "(1,)").replace("[ns.x, ns.x]", "(ns.x, ns.x)")
LONG = "{% set s = 'a' * 4000000 %}{% for i in range(99999) %}"
LIST = "{% set s = range(99999) | list %}{% for i in range(99999) %}"
END = "{% endfor %}"
HOSTILE = [
    # loops
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% set l = [1] %}{% for i in l %}{% set _ = l.append(i) %}{% endfor %}",
    "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "{% for i in range(99999) %}{{ text * 99 }}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}" + "static text " * 99 + "{% endfor %}{% endset %}",
    "{% for i in range(99999) %}{{ caller }}{{ i.x.y }}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% macro f(n) %}{% call f(n-1) %}{{ caller() }}{% endcall %}{% endmacro %}{{ f(9) }}",
    # sizes
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**10 }}",
    "{{ 10**(10**10) }}",
    "{{ (9**9**9**9**9**9**9)|string }}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ ('f' * 3000000) | int(base=16) % 7 }}",
    GROW.replace("[1]", "'aa'").replace("[ns.x, ns.x]", "ns.x ~ ns.x"),
    GROW.replace("[1]", "'aa'").replace("[ns.x, ns.x]", "ns.x + ns.x"),
    GROW.replace("[ns.x, ns.x]", "ns.x + ns.x"),
    "{% set l = [1] %}{% for i in range(60) %}{% set _ = l.extend(l) %}{% endfor %}",
    "{% set l = ['a'] %}{% for i in range(60) %}{% set _ = l.append(l | join) %}{% endfor %}",
    "{{ 'x'.center(10**10) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    "{{ '\t'.expandtabs(tabsize=10**10) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x\n\nx' | indent(10**10) }}",
    "{{ ['a'] | batch(10**9, 'x') | list }}",
    "{{ ['a'] | slice(10**9, 'x') | list }}",
    "{{ 1.5 | round(10**9, 'ceil') }}",
    "{{ [1] | tojson(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%.*f' % (10**9, 1) }}",
    "{{ '%(a)99999999999d' % {'a': 1} }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '%999999999d' is odd }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w='1000000000') }}",
    "{{ range(99999) | join('a' * 100000) }}",
    "{{ ('a' * 100000).join(range(99999) | map('string')) }}",
    "{{ ('a' * 100000).replace('a', 'a' * 100000) }}",
    "{{ ('a' * 100000) | replace('', 'a' * 100000) }}",
    "{{ ('<!---->' * 200000) | striptags }}",
    "{{ ('a' * 4000000) | wordwrap(1) }}",
    "{{ ('www.a.' * 500000) | urlize }}",
    "{{ zip(*[range(99999)] * 10000) | list }}",
    "{{ range(99999) | batch(2) | sum(start=[]) }}",
    "{{ text.split('') or (text * 10**6).split('e') }}",
    # values that refer to themselves or to one part many times
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "{% set l = [] %}{% set _ = l.append(l) %}{{ l }}{{ [l] | sort }}{{ l | tojson }}",
    GROW + "{{ ns.x }}",
    GROW + "{{ ns.x == ns.x | list }}",
    GROW + "{{ '%s' % ns.x }}",
    GROW + "{{ '{!r}'.format(ns.x) }}",
    GROW + "{{ ns.x | string | length }}",
    GROW + "{{ ns.x | tojson }}",
    GROW + "{{ ns.x | pprint }}",
    GROW + "{{ ns.x is lower }}",
    GROW + "{{ ns.x ~ '' }}",
    GROW + "{{ ns.x in [ns.x | list] }}",
    GROW + "{{ [1].index(ns.x) }}",
    TUPLES + "{{ {ns.x: 1} }}",
    TUPLES + "{{ {}[ns.x] }}",
    TUPLES + "{{ {}.get(ns.x) }}",
    TUPLES + "{{ [ns.x] | unique | list }}",
    TUPLES + "{{ [ns.x, ns.x] | most_frequent }}",
    # much work in few steps
    LONG + "{% if s == s ~ '' %}{% endif %}" + END,
    LONG + "{% set t = s[1:] %}" + END,
    LONG + "{{ 'ab' in s }}" + END,
    LONG + "{{ s.find('ab') }}" + END,
    LONG + "{{ s is lower }}" + END,
    LIST + "{{ -1 in s }}" + END,
    LIST + "{{ s.index(99998) }}" + END,
    LIST + "{{ s | sort | first }}" + END,
    LIST + "{{ -1 in s | map('abs') }}" + END,
    LIST + "{% set _ = s.insert(0, 1) %}" + END,
    "{% set s = range(99999) | list %}{{ s | select('in', s) | list | length }}",
    "{% set s = range(99999) | list %}{% set _ = s.sort(key=dict) %}",
    # the text itself
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "not " * 7000 + "1 }}",
    "{{ " + "1+" * 9000 + "1 }}",
    "{{ x" + ".a" * 9000 + " }}",
    "{% for i in [1] %}" * 200 + "{% endfor %}" * 200,
    "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "{{ " + "9" * 20000 + " }}",
    "{{ x" + " | upper" * 3000 + " }}",
    "x" * 40000,
]


class Worst:
    """Seconds and megabytes that this process and its worker take while the block runs."""

    def __enter__(self) -> "Worst":
        self.megabytes, self._over = 0.0, False
        self._base, self._started = self._resident(os.getpid()), time.monotonic()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self._over = time.monotonic() - self._started, True
        self._thread.join()

    def _watch(self) -> None:
        while not self._over:
            process = WORKER._process
            now = self._resident(os.getpid()) + (self._resident(process.pid) if process else 0)
            self.megabytes = max(self.megabytes, now - self._base)
            time.sleep(0.002)

    @staticmethod
    def _resident(process: int) -> float:
        try:
            return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 2**20
        except (OSError, IndexError):  # it has just ended
            return 0.0


def check_limits(source: str, row: dict) -> list[str] | None:
    """The parts, or None where the render raises; either way soon and without much memory."""
    with Worst() as worst:
        try:
            parts = Template("hostile", source).apply(row)
        except RenderError as error:
            assert "template 'hostile': " in str(error)
            parts = None
    assert worst.seconds < 8  # 0.4 of the worker's own; a machine may be busy with other things
    assert worst.megabytes < 300
    return parts


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: source[:60])
def test_hostile_template_ends_soon(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_limits(source, ROW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_hostile_case_ends_soon(case):
    check_limits(case["jinja"], case["row"])


ATTACKS = {
    # against the bound: growth, sharing, turns, what the row makes of it
    "doubling sets": "{% set x = text %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "doubling lists": "{% set x = [text] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "doubling in branches": "{% if t %}{% set t = t ~ t %}{% endif %}" * 60 + "{{ t }}",
    "growing replaces": "{{ text" + " | replace('e', 'ee')" * 60 + " }}",
    "growing joins": "{{ text" + " | join('abc')" * 30 + " }}",
    "growing cases": "{{ sharp" + " | upper | replace('S', 'ß')" * 60 + " }}",
    "many turns": "{% for i in range(99999) %}" + "{% if a %}{% endif %}" * 250 + "{% endfor %}",
    "nested turns": "{% for a in many %}{% for b in many %}{{ text }}{% endfor %}{% endfor %}",
    "characters as items": "{% for a in long %}{% for b in long %}{% endfor %}{% endfor %}",
    "long list": "{{ many | join(', ') | replace(',', '" + "x" * 60 + "') | list }}",
    "search": "{{ (long ~ 'b' ~ long) in (long ~ long) }}",
    "times a number of the row": "{{ text * big }}",
    "format by a row": "{{ form % 1 }}",
    "keywords of range": "{% for i in range(3, x='a' * 10**9) %}{% endfor %}",
    "default's arguments": "{{ text | default('x', 'a' * 10**9) }}",
    "sigma by case": "{{ (greek | upper ~ hyphens) | lower }}",
    "sigma by literal": "{{ hyphens | replace('a', '\\u03a3') | lower }}",
    "hashes of the row": "{{ alike | unique | list | length }}",
    "regular expression": "{{ ('a' * 50000 ~ '<' * 50000) | striptags | urlize | wordcount }}",
    "cycler": "{% set c = cycler(*range(99999)) %}{% for i in range(9999) %}{{ c }}{% endfor %}",
    "dates": "{{ day.strftime('%Y' * 10**7) }}",
    "recursion": "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}",
    "deep row": "{{ deep }}{{ deep == deep }}{{ deep | tojson }}",
    "big integer": "{{ huge * huge }}{{ huge }}",
}
ATTACKED = {
    "text": "see the tree " * 20,
    "sharp": "ß" * 2000,
    "many": list(range(100_000)),
    "long": "a" * 100_000,
    "big": 2**62,
    "form": "%999999999d",
    "greek": "σ" * 40_000,
    "hyphens": "\u00ada" * 40_000,
    "alike": [i * (2**61 - 1) for i in range(60_000)],
    "day": date(2020, 1, 2),
    "deep": json.loads("[" * 900 + "]" * 900),
    "huge": 10**4000,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_on_the_bound_ends_soon(name):
    fields = [field for field in ATTACKED if field in ATTACKS[name]]  # others would make it large
    check_limits(ATTACKS[name], {field: ATTACKED[field] for field in fields})


@pytest.mark.parametrize(
    "source", ["{{ 'a' * 10**10 }} ||| b", "{{ ''.__class__ }}", LIST + "{{ s | sort }}" + END]
)
def test_hostile_answer_choices_end_too(source):
    template = Template("t", "x ||| y", source)
    with pytest.raises(RenderError):
        template.get_answer_choices_list({})
    with pytest.raises(RenderError):
        template.get_fixed_answer_choices_list()
    with pytest.raises(RenderError):
        template.apply({})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LIST + LIST + END + END, "the render took more than 0.4 s"),
        ("{{ 'x' * 10**10 }}", "MemoryError"),
        ("{{ 'x' * 10**7 }}", "renders to more than 4,194,304 characters"),
        ("{% include 'x' %}", "line 1: include is not available to prompts"),
        ("\n{{ ''.__class__ }}", "line 2: __class__ is not available to prompts"),
        ("{{ x | nonesuch }}", "line 1: No filter named 'nonesuch'"),
    ],
)
def test_error_says_what_is_wrong(source, message):
    with pytest.raises(RenderError, match=f"template 't': {message}"):
        Template("t", source).apply({}, truncate=False)


# What is ordinary


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("{{ text }} ||| {{ answer_choices[label] }}", "here"),
        ("{% for w in words %}{{ loop.index }}. {{ w | capitalize }}{% endfor %}", "here"),
        ("{% if label != -1 %}{{ words | join(', ') }}{% endif %}", "here"),
        (
            "{{ text.split(' ')[0].lower() | replace('a', 'b') }}{{ (label / 2) | round(1) }}",
            "here",
        ),
        ("{% for i in range(words | length) %}{{ words[i] }}{% endfor %}", "here"),
        ("{{ day.year }}{% for k, v in nested.items() %}{{ k }}{{ v }}{% endfor %}", "here"),
        ("{% set _ = words.append('x') %}{{ words | length }}", "worker"),
        ("{{ '%s and %s' | format(text, label) }}{{ words | unique | list }}", "worker"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + label %}{{ ns.n }}", "worker"),
        ("{% for g in pairs | groupby('a') %}{{ g.grouper }}{{ g.list }}{% endfor %}", "worker"),
    ],
)
def test_ordinary_template_renders_alike_in_both_places(source, where):
    row = {
        "text": "Now a text",
        "words": ["b", "a", "a"],
        "label": 1,
        "pairs": [{"a": 1}, {"a": 2}],
        "nested": {"x": 1},
        "day": date(2020, 1, 2),
        "answer_choices": ["no", "yes"],
    }
    made = compiled._compile(source, True)
    assert ("worker" if made._code is None else "here") == where
    text = made.render(row, 1000, str)
    assert text == WORKER.ask(made._source, row, "")
    assert text


def test_row_too_large_for_this_process_renders_all_the_same():
    row = {"documents": ["word " * 400] * 200, "text": "word " * 100_000}
    source = "{% for d in documents %}{{ loop.index }}: {{ d }} {% endfor %}{{ text }}"
    parts = Template("t", source + " ||| {{ text[:4] }}").apply(row)
    assert len(parts[0]) > 350_000
    assert parts[1] == "word"


def test_bounds_are_of_filters_and_tests_that_there_are():
    names = [rule.lstrip("*=") for rule in cost._RULES]
    assert {name[1:] for name in names if name[0] == "|"} <= set(SANDBOX.filters)
    assert {name[3:] for name in names if name[:3] == "is:"} <= set(SANDBOX.tests)


def test_a_fork_has_a_worker_of_its_own():
    template = Template("t", "{% set _ = [].append(1) %}{{ x }}")
    assert template.apply({"x": 1}) == ["1"]
    child = os.fork()
    if not child:
        os._exit(0 if WORKER._process is None and template.apply({"x": 2}) == ["2"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert template.apply({"x": 3}) == ["3"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ words | map('lower') }}", "generator is no text"),
        ("{{ text.upper }}", "is no text"),
        ("{{ (d.keys() - ['a']) | list }}", "has no order"),
    ],
)
def test_text_does_not_depend_on_the_process(source, message):
    with pytest.raises(RenderError, match=message):
        Template("t", source).apply({"words": ["A"], "text": "a", "d": {"a": 1, "b": 2}})


def test_size_of_a_row():
    assert program.admit({"a": np.int64(3), "b": np.array(["x"])})[0] == {"a": 3, "b": ["x"]}
    assert cost.measure("ab") < cost.measure(["ab"]) < cost.measure({"k": ["ab", 1.0]})
    assert cost.measure(10**30) == cost.measure(["Σ"]) == float("inf")
