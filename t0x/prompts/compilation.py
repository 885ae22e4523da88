"""Compiling templates so that what Jinja leaves to plain Python goes through the sandbox too.

Loops, comparisons, concatenations, slices, literals used as keys and the methods that change their
object become calls of `t0x.prompts.sandbox.Sandbox`, which pays for them from the render's budget.
"""

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateSyntaxError

from t0x.prompts.budget import CHARACTERS_PER_UNIT, MUTATOR_NAMES

LONGEST_VARIABLE = 2048  # characters of a substituted value, promptsource's TEXT_VAR_LENGTH
DEEPEST_NESTING = 100
DEEPEST_LOOP = 8
_FORBIDDEN = (nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)


class MeteredGenerator(CodeGenerator):
    """Jinja's code generator, with the operations it leaves to plain Python made to pay."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._turn_units: dict[int, int] = {}
        self._units: dict[int, int] = {}

    def visit(self, node: nodes.Node, *arguments: Any, **keywords: Any) -> Any:
        units = self._turn_units.pop(id(node), None)
        if units is None:
            return super().visit(node, *arguments, **keywords)
        self.write("environment.loop(context, ")
        super().visit(node, *arguments, **keywords)
        self.write(f", {units})")
        return None

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        self._units = count_units(node)
        super().visit_Template(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        self._turn_units[id(node.iter)] = self._units[id(node)]
        super().visit_For(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("environment.compare(context, ")
        self.visit(node.expr, frame)
        for operand in node.ops:
            # The right side of `a < b < c` is evaluated only when it is reached.
            late = "lambda: " if len(node.ops) > 1 else ""
            self.write(f", {operand.op!r}, {late}")
            self.visit(operand.expr, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:
        if node.attr not in MUTATOR_NAMES:
            return super().visit_Getattr(node, frame)
        self.write("environment.mutator(")
        self.visit(node.node, frame)
        self.write(f", {node.attr!r})")
        return None

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            return super().visit_Getitem(node, frame)
        self.write("environment.slice(context, ")
        self.visit(node.node, frame)
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if bound is None:
                self.write("None")
            else:
                self.visit(bound, frame)
        self.write(")")
        return None

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("{")
        for item in node.items:
            self.write("environment.key(")
            self.visit(item.key, frame)
            self.write("): ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("}")

    def visit_Filter(self, node: nodes.Filter, frame: Frame) -> None:
        if not _is_truncation(node):
            return super().visit_Filter(node, frame)
        self.write("environment.truncate(context, ")
        self.visit(node.node.node, frame)
        self.write(")")
        return None


def _is_truncation(node: nodes.Filter) -> bool:
    """Whether this is `… | string | truncate(2048)`, appended to nearly every expression."""
    return (
        node.name == "truncate"
        and isinstance(node.node, nodes.Filter)
        and node.node.name == "string"
        and node.node.node is not None
        and not (node.kwargs or node.dyn_args or node.dyn_kwargs or node.node.args)
        and [getattr(argument, "value", None) for argument in node.args] == [LONGEST_VARIABLE]
    )


def count_units(tree: nodes.Node) -> dict[int, int]:
    """Units that running through a node once costs, by the node's id.

    Raises TemplateSyntaxError for statements that need other templates, and where nodes or loops
    are nested deeper than any prompt needs: the compiler's work grows with the square of the depth.
    """
    units: dict[int, int] = {}
    order: list[tuple[nodes.Node, list[nodes.Node]]] = []
    pending = [(tree, 0, 0)]
    while pending:
        node, depth, loops = pending.pop()
        loops += isinstance(node, nodes.For)
        if isinstance(node, _FORBIDDEN):
            statement = type(node).__name__.lower()
            raise TemplateSyntaxError(f"{statement} is not available to prompts", node.lineno)
        if depth > DEEPEST_NESTING or loops > DEEPEST_LOOP:
            raise TemplateSyntaxError("nested too deep", node.lineno)
        children = list(node.iter_child_nodes())
        order.append((node, children))
        pending += [(child, depth + 1, loops) for child in children]
    for node, children in reversed(order):  # children before their parents
        own = 1 + len(getattr(node, "data", "")) // CHARACTERS_PER_UNIT
        units[id(node)] = own + sum(units[id(child)] for child in children)
    return units
