"""An upper bound of a template's work, read off its syntax tree before anything is rendered.

A template is bounded if it keeps to a part of Jinja in which every operation takes time and room in
proportion to its operands, and no value lives on from one turn of a loop to the next. Its work is
then at most a factor, found here, times the size of row and text; a loop's factor holds for each of
its turns. What else Jinja offers is not priced: it raises `Unbounded`, and `t0x.prompts.worker`
renders the template under limits that the kernel enforces.
"""

import datetime
import decimal
from collections.abc import Iterable
from typing import Any

from jinja2 import nodes

DEEPEST = 40  # nested nodes, or lists in a row
SCALAR = 96  # characters of a printed number or date, at most
CONSTANT = 400  # characters of any other value made of nothing: 1e308 as an integer
_LONGEST = 64  # characters of a literal given to a filter or method
FUNCTIONS = frozenset({"cycler", "dict", "joiner", "namespace", "range", "zip"})
_SPECIAL = FUNCTIONS | {"self", "super", "caller", "varargs", "kwargs", "loop"}
_LOOP = {"index", "index0", "revindex", "revindex0", "first", "last", "length"}

# What takes time in proportion to its operands: steps of 5 ns, and size of the result, each for one
# character or item of the operands, as repr() prints them. Filters and methods with a "*" take any
# arguments, those with a "=" short literals, which may lengthen the result, others none.
_RULES: dict[str, tuple[int, int]] = {}
for _steps, _growth, _names in (
    (1, 1, "And Or Not Neg Pos Add Sub Div FloorDiv CondExpr Getitem Slice Getattr TemplateData"),
    (1, 1, "List Tuple Dict Pair Operand Mul Mod |abs |choice *|d *|default |first |last |length"),
    (1, 1, "|random is:defined is:undefined is:none is:string is:number is:mapping is:sequence"),
    (1, 2, "Concat Output |string =|truncate"),
    (20, 1, "Compare |count |float |int |list |max |min |reverse =|round |sum"),
    (20, 2, "=|join =|replace *.count *.find *.get *.index *.join =.replace =.strip =.startswith"),
    (20, 4, "=.endswith .items .keys =.split .splitlines .values .lower .upper .title .capitalize"),
    (20, 6, "|capitalize |lower |title =|trim |upper |highlight"),
    (99, 6, "=|map"),
    (500, 1, "|sort"),
):
    _RULES |= dict.fromkeys(_names.split(), (_steps, _growth))


class Unbounded(Exception):
    """The template says something whose work is not known beforehand."""


def measure(value: Any, depth: int = 0) -> float:
    """Size of a row's value: characters and items of what repr() prints, at most.

    Infinite for what only the worker may meet: big integers, deep nesting, and sigmas, for each of
    which lower() looks back. Raises TypeError for what is no plain data.
    """
    kind = type(value)
    if kind is str:
        if value.isascii():
            return 4 * len(value)
        return float("inf") if any(sigma in value for sigma in "Σσς") else 10 * len(value)
    if kind in _SCALARS:
        return float("inf") if kind is int and not -(1 << 63) <= value < 1 << 64 else SCALAR
    if kind is bytes:
        return 4 * len(value)
    if kind is decimal.Decimal and value.is_finite():
        # What arithmetic makes of 1e999999 has a million digits.
        digits, exponent = value.as_tuple()[1:]
        return SCALAR if max(len(digits), abs(exponent)) < SCALAR - 8 else float("inf")
    if kind not in (list, tuple, dict):
        raise TypeError(f"a value of type {kind.__name__}")
    if depth > DEEPEST:
        return float("inf")
    total = 4.0 * len(value) + 2
    for items in (value, value.values()) if kind is dict else (value,):
        total += sum([measure(item, depth + 1) for item in items])
    return total


_DATES = {datetime.date, datetime.datetime, datetime.time, datetime.timedelta}
_SCALARS = frozenset({bool, int, float, type(None), *_DATES})


def bound(tree: nodes.Template) -> int:
    """Steps for each character of row and text that everything outside of loops takes together.

    Changes `tree`: what a loop goes through is filtered by `turns(steps of a turn)`. Raises
    Unbounded.
    """
    level: list[nodes.Node] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in node.iter_child_nodes()]
    if level:
        raise Unbounded("deep nesting")
    bounds = _Bounds()
    bounds.all(tree.body)
    return bounds.steps


class _Bounds:
    """A walk over a tree. Sizes are multiples of that of row and text."""

    def __init__(self) -> None:
        self.steps = 0
        self._variables: dict[str, int] = {}
        self._branches = self._loops = 0

    def all(self, items: Iterable[nodes.Node | None]) -> int:
        """Size of the values, or of what is printed, together."""
        return sum([self._size(item) for item in items if item is not None])

    def _size(self, node: nodes.Node) -> int:
        self.steps += 1
        if self.steps >> 60:
            raise Unbounded("growth")
        kind = type(node).__name__
        special = getattr(self, f"_size_{kind.lower()}", None)
        return special(node) if special else self._apply(kind, node.iter_child_nodes())

    def _apply(self, rule: str, operands: Iterable[nodes.Node | None], times: int = 1) -> int:
        if rule not in _RULES:
            raise Unbounded(rule)
        steps, growth = _RULES[rule]
        size = self.all(operands) + 1
        self.steps += (steps + growth * times) * size
        return size * growth * times

    def _size_if(self, node: nodes.If) -> int:
        self._size(node.test)
        self._branches += 1
        printed = self.all([*node.body, *node.elif_, *node.else_])
        self._branches -= 1
        return printed

    def _size_assign(self, node: nodes.Assign) -> int:
        return self._set(node.target, self._size(node.node))

    def _set(self, target: nodes.Node, size: int) -> int:
        names = [target] if isinstance(target, nodes.Name) else getattr(target, "items", [None])
        if not all(isinstance(name, nodes.Name) for name in names):
            raise Unbounded("assignment")
        for name in [name.name for name in names]:
            before = self._variables.get(name, 1) if self._branches else 0
            self._variables[name] = size + before
        return 0

    def _size_for(self, node: nodes.For) -> int:
        items, taken = node.iter, [node.iter]
        if isinstance(items, nodes.Call) and items.node == nodes.Name("range", "load"):
            taken = items.args  # the range itself is as long as it is when the loop starts
            if items.kwargs or items.dyn_args or items.dyn_kwargs or "range" in self._variables:
                raise Unbounded("range")
        if node.recursive or node.else_:
            raise Unbounded("loop")
        size = self.all(taken)
        kept = self.steps, self._variables.copy(), self._branches
        self.steps, self._branches, self._loops = 1, 0, self._loops + 1
        self._set(node.target, size)
        self.all([node.test, *node.body])
        turn = [nodes.Const(self.steps)]
        node.iter = nodes.Filter(items, "turns", turn, [], None, None, lineno=node.lineno)
        self.steps, self._variables, self._branches = kept
        self._loops -= 1
        return 0

    def _size_const(self, node: nodes.Const) -> int:
        if measure(node.value) == float("inf"):
            raise Unbounded("literal")
        return 10

    def _size_name(self, node: nodes.Name) -> int:
        if node.name not in self._variables and node.name in _SPECIAL:
            raise Unbounded(node.name)
        return self._variables.get(node.name, 1)

    def _size_getattr(self, node: nodes.Getattr) -> int:
        if self._loops and node.attr in _LOOP and getattr(node.node, "name", "") == "loop":
            return 1
        return self._apply("Getattr", [node.node])

    def _size_test(self, node: nodes.Test) -> int:
        return self._called(f"is:{node.name}", node.node, node)

    def _size_filter(self, node: nodes.Filter) -> int:
        return self._called(f"|{node.name}", node.node, node)

    def _size_call(self, node: nodes.Call) -> int:
        return self._called(
            f".{getattr(node.node, 'attr', '')}", getattr(node.node, "node", None), node
        )

    def _called(self, name: str, owner: nodes.Node | None, node: Any) -> int:
        """Size of what a test, filter or method makes of its owner and arguments."""
        keys = [pair.key for pair in node.kwargs]
        if owner is None or node.dyn_args or node.dyn_kwargs or (keys and name != "|map"):
            raise Unbounded(name)
        if name == "|map" and (node.args or keys != ["attribute"]):
            raise Unbounded(name)
        rule = next((mark + name for mark in ("", "*", "=") if mark + name in _RULES), name)
        given = [*node.args, *(pair.value for pair in node.kwargs)]
        fixed = [owner] if name == ".join" else given if rule[0] == "=" else []
        literals = [getattr(part, "value", "x" * 99) for part in fixed]
        longest = max(map(len, map(str, literals)), default=0)
        if (given and rule[0] not in "*=") or longest > (3 if name == "|round" else _LONGEST):
            raise Unbounded(f"arguments of {name}")
        longest = max([len(text) for text in literals if isinstance(text, str)], default=0)
        return self._apply(rule, [owner, *given], 1 + longest)
