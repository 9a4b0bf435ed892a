"""Arguments and parameters of a call, and expressions that are constants or have no effect."""

import ast
import operator
from collections.abc import Callable, Sequence

Lookup = Callable[[str], ast.expr | None]

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_LARGEST_POWER = 64
_HARMLESS = {
    "int",
    "float",
    "bool",
    "str",
    "len",
    "max",
    "min",
    "abs",
    "round",
    "sum",
    "tuple",
    "list",
    "range",
    "dict",
    "set",
}


def bind(node: ast.Call, names: Sequence[str], *, more: bool = False) -> dict[str, ast.expr] | None:
    """Parameter to argument, in the order of `names`; None for `*` or `**`, too many arguments or a name given twice.

    With `more`, keywords that `names` lacks are let through, in alphabetical order after the rest.
    """
    plain = not any(isinstance(one, ast.Starred) for one in node.args) and all(one.arg for one in node.keywords)
    if not plain or len(node.args) > len(names):
        return None
    given = dict(zip(names, node.args, strict=False))
    named = {one.arg or "": one.value for one in node.keywords}
    if named.keys() & given.keys() or not (more or named.keys() <= set(names)):
        return None
    given |= named
    return {name: given[name] for name in [*names, *sorted(given.keys() - set(names))] if name in given}


def keep_order(node: ast.Call, values: Sequence[ast.expr]) -> bool:
    """Whether the arguments of a call may be evaluated in the order of `values`: at most one of them does anything."""
    source = [*node.args, *(one.value for one in node.keywords)]
    return (
        all(a is b for a, b in zip(source, values, strict=False)) or sum(not without_effect(one) for one in values) <= 1
    )


def without_effect(value: ast.AST) -> bool:
    """Whether evaluating an expression changes nothing: no calls but those of harmless built-in functions and `.get`."""
    for node in ast.walk(value):
        if isinstance(node, ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr):
            return False
        if isinstance(node, ast.Call):
            func = node.func
            named = isinstance(func, ast.Name) and func.id in _HARMLESS
            if not named and not (isinstance(func, ast.Attribute) and func.attr == "get"):
                return False
    return True


def constant(node: ast.expr, lookup: Lookup | None = None) -> ast.Constant | None:
    """The constant that an expression is: a literal, arithmetic on numbers, or a name that `lookup` knows as one of these."""
    if isinstance(node, ast.Constant):
        return node
    if isinstance(node, ast.Name):
        value = lookup(node.id) if lookup else None
        return None if value is None else constant(value, lookup)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _number(constant(node.operand, lookup))
        return None if number is None else ast.Constant(value=-number if isinstance(node.op, ast.USub) else number)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _computed(type(node.op), _number(constant(node.left, lookup)), _number(constant(node.right, lookup)))
    return None


def _computed(kind: type[ast.operator], left: float | None, right: float | None) -> ast.Constant | None:
    if left is None or right is None or (kind is ast.Pow and not _small(left, right)):
        return None
    try:
        return ast.Constant(value=_ARITHMETIC[kind](left, right))
    except (ZeroDivisionError, OverflowError):
        return None


def _small(base: float, exponent: float) -> bool:
    return base > 0 and abs(base) <= 2**16 and abs(exponent) <= _LARGEST_POWER


def _number(found: ast.Constant | None) -> int | float | None:
    value = found.value if found else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
