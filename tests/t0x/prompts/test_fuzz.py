"""Random templates over all of Jinja's grammar, on hostile rows, within the limits of one render.

T0X_FUZZ_EXAMPLES=1000000 python -m pytest tests/t0x/prompts/test_fuzz.py
"""

import os
import resource
import time
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from t0x.prompts import template as compiled
from t0x.prompts.cost import _RULES, FUNCTIONS
from t0x.prompts.program import Program
from t0x.prompts.sandbox import SANDBOX
from t0x.prompts.template import RenderError, Template
from t0x.prompts.worker import WORKER, WorkerError

EXAMPLES = int(os.environ.get("T0X_FUZZ_EXAMPLES", "10000"))
ALIKE = 2**61 - 1  # Python's integers hash modulo this
PLAIN = {
    "text": "some text, <b>&amp;</b> www.example.com %s {0} 'x' ",
    "wide": "ß\u00ad\u2028😀ΐ" * 20,
    "words": ["a", "b\n\t", "", "10", "a"] * 2,
    "numbers": [1, 2.5, -3, True, float("inf"), float("nan")],
    "nested": {"a": {"b": [1, {"c": "d"}], "items": 1}, "0": "x", "": None, "_x": 2},
    "pairs": [{"a": 1, "b": "x"}, {"a": 2}, {"b": None}, [1, 2], "ab"],
    "label": 1,
    "none": None,
}
HOSTILE = {
    **PLAIN,
    "wide": "ßΣς\u00ad\u2028😀ΐ" * 300,
    "words": ["a", "b\n\t", "", "Σ", "10", "a"] * 50,
    "numbers": [i * (2**61 - 1) for i in range(2000)],  # hash alike
    "floats": [2.0**e for e in range(0, 1000, 3)],
    "long": "ab)." * 10_000,
    "many": list(range(3000)),
    "label": 10**30,
}
NAMES = [
    *PLAIN,
    *PLAIN,
    *HOSTILE,
    "x",
    "y",
    "ns",
    "loop",
    "f",
    "missing",
    "self",
    "varargs",
    *FUNCTIONS,
]
METHODS = sorted({n for kind in (str, list, dict) for n in dir(kind) if n[0] != "_"} | {"cycle"})
TEXTS = ["", "a", ", ", "0.0.0", "a.b,a", "%s", "%5d%%", "%999999d", "{0}", "{:>99999}", "{0[0]}"]
TEXTS += ["0" + ".0" * 300, "😀", "ς", "x" * 70, "upper", "choice", "__class__", "a" * 2000, "\\n"]
NUMBERS = ["0", "1", "-1", "2", "3", "7", "64", "1000", "90000", "10**7", "2**61-1", "1e308", "0.5"]
EXPRESSIONS, STATEMENTS = "nnnlfffmmo[({aisct", "eeeeiffssnSmMwFcat"
_TAME = [rule.lstrip("*=") for rule in _RULES]
TAME_FILTERS = [name[1:] for name in _TAME if name[0] == "|"]
TAME_METHODS = [name[1:] for name in _TAME if name[0] == "."]
FILTERS, TESTS = sorted(SANDBOX.filters), sorted(filter(str.isidentifier, SANDBOX.tests))
OPERATORS = [*"+-*/%~<>", "//", "**", "==", "!=", "<=", ">=", "in", "not in", "and", "or"]


@st.composite
def templates(draw: st.DrawFn) -> str:
    """A template; most compile."""
    index = st.integers(0, 2**16)
    left = 16  # expressions and statements that it may still grow by
    tame = draw(st.booleans())  # mostly what renders in this process
    expressions, statements = ("nnlfffmo[ist", "eeeiffsst") if tame else (EXPRESSIONS, STATEMENTS)
    filters, methods = (TAME_FILTERS, TAME_METHODS) if tame else (FILTERS, METHODS)

    def pick(options):
        return options[draw(index) % len(options)]

    def arguments(most: int) -> str:
        if tame and pick("yn") == "y":
            return literal() if pick("yn") == "y" else ""
        given = [expression() for _ in range(pick(range(most + 1)))]
        if pick(range(8)) == 0:
            key = pick(["attribute", "start", "reverse", "width", "by", "indent", "key"])
            given.append(f"{key}={expression()}")
        return ", ".join(given)

    def literal() -> str:
        if pick("nt") == "n":
            return pick(NUMBERS)
        return "'" + pick(TEXTS) + "'"

    def expression() -> str:
        nonlocal left
        left -= 1
        kind = pick(expressions) if left > 0 else pick("nnl")
        if kind == "n":
            return pick(NAMES)
        if kind == "l":
            return literal()
        if kind == "f":
            given = arguments(2)
            return f"({expression()} | {pick(filters)}{f'({given})' if given else ''})"
        if kind == "m":
            return f"({expression()}).{pick(methods)}({arguments(2)})"
        if kind == "o":
            return f"({expression()} {pick(OPERATORS)} {expression()})"
        if kind == "[":
            return f"[{expression()}, {expression()}]"
        if kind == "(":
            return f"({expression()},)"
        if kind == "{":
            return f"{{{expression()}: {expression()} }}"
        if kind == "a":
            return f"{pick(NAMES)}.{pick([*METHODS, 'a', 'b', 'x', 'first', '_x', '__init__'])}"
        if kind == "i":
            return f"{expression()}[{expression()}]"
        if kind == "s":
            return f"({expression()})[{expression()}:{expression()}]"
        if kind == "t":
            return f"({expression()} is {pick(TESTS)}({arguments(1)}))"
        if kind == "c":
            return f"{pick([*FUNCTIONS, 'f', 'loop', 'caller', 'ns.x'])}({arguments(3)})"
        return literal()

    def block() -> str:
        return "".join(statement() for _ in range(pick([1, 1, 2, 3])))

    def statement() -> str:
        nonlocal left
        left -= 1
        kind = pick(statements) if left > 0 else "e"
        if kind == "i":
            middle = f"{{% elif {expression()} %}}{block()}" if pick("01") == "0" else ""
            return f"{{% if {expression()} %}}{block()}{middle}{{% else %}}{block()}{{% endif %}}"
        if kind == "f":
            turns = pick([f"range({pick(NUMBERS)})", pick(NAMES), expression()])
            end = pick(["", "", f" if {expression()}", " recursive"])
            return f"{{% for x in {turns}{end} %}}{block()}{{% endfor %}}"
        if kind == "s":
            return f"{{% set {pick(['x', 'y', 'text'])} = {expression()} %}}"
        if kind == "n":
            return f"{{% set ns = namespace(x={expression()}) %}}{{% set ns.x = {expression()} %}}"
        if kind == "S":
            return f"{{% set y %}}{block()}{{% endset %}}"
        if kind == "m":
            return f"{{% macro f(x, y) %}}{block()}{{% endmacro %}}{{{{ f({arguments(2)}) }}}}"
        if kind == "M":
            return (
                f"{{% set ns = namespace(x=[]) %}}{{% for i in range(50) %}}{block()}{{% endfor %}}"
            )
        if kind == "w":
            return f"{{% with y = {expression()} %}}{block()}{{% endwith %}}"
        if kind == "F":
            return f"{{% filter {pick(filters)} %}}{block()}{{% endfilter %}}"
        if kind == "c":
            return f"{{% call f({arguments(1)}) %}}{block()}{{% endcall %}}"
        if kind == "a":
            return f"{{% autoescape true %}}{block()}{{% endautoescape %}}"
        if kind == "t":
            return pick(["text ", "|||", "{# c #}", "{% raw %}{{{% endraw %}", "\n", "😀"])
        return f"{{{{ {expression()} }}}}"

    return block() + " ||| " + block()


class Spent:
    """Processor seconds and the most memory of this process and its workers."""

    def __init__(self) -> None:
        self._start, self._most = self._seconds(), self.megabytes()

    def since(self) -> tuple[float, float]:
        """Seconds, and megabytes more than before."""
        return self._seconds() - self._start, self.megabytes() - self._most

    @staticmethod
    def _seconds() -> float:
        ended, worker = resource.getrusage(resource.RUSAGE_CHILDREN), WORKER._process
        seconds = time.process_time() + ended.ru_utime + ended.ru_stime
        if worker is not None:
            times = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            seconds += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        return seconds

    @staticmethod
    def megabytes() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    @staticmethod
    def largest_worker() -> float:
        """Megabytes of the largest child that has ended."""
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def text_of_worker(template: Template, program: Program) -> list[str] | None:
    """What the worker makes of a template for PLAIN; None where it raises."""
    seed = template._seed(PLAIN)
    try:
        text = WORKER.ask(program._source, {**PLAIN, "answer_choices": None}, seed)
    except WorkerError:
        return None
    return [part.strip() for part in text.split("|||")]


@given(source=templates(), row=st.sampled_from([PLAIN, PLAIN, HOSTILE]), truncate=st.booleans())
@settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
def test_random_template_ends_within_the_limits(source, row, truncate):
    template, before, largest = Template("random", source), Spent(), Spent.largest_worker()
    try:
        parts = template.apply(row, truncate=truncate)
    except RenderError as error:
        assert "\n" not in str(error)
        parts = None
    seconds, megabytes = before.since()
    assert seconds < 1.5
    assert megabytes < 100
    # Until it runs its own program, a child counts as being as large as its parent.
    assert Spent.largest_worker() < max(250, largest + 1, Spent.megabytes() + 1)
    program = compiled._compile(source, truncate)
    place = "refused" if program.error else "here" if program._code else "worker"
    event(f"{place}, {'an error' if parts is None else 'a text'}")
    if row is PLAIN and program._code is not None:
        assert text_of_worker(template, program) == parts
