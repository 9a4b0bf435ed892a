"""What a syntax tree says beyond what the program does: docstrings, annotations, `pass`, the long form of `super`."""

import ast
from collections.abc import Sequence

_ANNOTATED_CLASSES = {"NamedTuple", "TypedDict", "Protocol"}


def simplified(tree: ast.Module) -> ast.Module:
    """The tree, changed in place: docstrings, annotations and `pass` gone, `super()` without arguments."""
    visited = _Simplify().visit(tree)
    assert isinstance(visited, ast.Module)
    return visited


class _Simplify(ast.NodeTransformer):
    def __init__(self) -> None:
        self._within: list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda] = []

    def visit(self, node: ast.AST) -> ast.AST | None:
        nested = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if nested:
            self._within.append(node)
        result = super().visit(node)
        if nested:
            self._within.pop()
        blocks = result.__dict__ if result is not None else {}
        for name in ("body", "orelse", "finalbody"):
            if isinstance(blocks.get(name), list):
                setattr(result, name, _without_idle(blocks[name]))
        return result

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        last = node.body[-1]
        if isinstance(last, ast.Return) and _is_none(last.value) and len(node.body) > 1:
            node.body.pop()
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        if _is_none(node.value):
            node.value = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        owner = self._within[-1] if self._within else None
        if isinstance(owner, ast.ClassDef) and _reads_annotations(owner):
            return node
        if node.value is not None:
            return ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node)
        if isinstance(owner, ast.ClassDef) or not isinstance(node.target, ast.Name):
            return None
        node.annotation = ast.Constant(value=None)  # without a value it still makes the name a local one
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "super" and len(node.args) == 2 and not node.keywords:
            names = [one.id if isinstance(one, ast.Name) else None for one in node.args]
            method, owner = [*reversed(self._within), None, None][:2]
            direct = isinstance(method, ast.FunctionDef) and isinstance(owner, ast.ClassDef) and method.args.args
            if direct and names == [owner.name, method.args.args[0].arg]:
                node.args = []
        return node


def _without_idle(block: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Statements that do something: no docstrings or other bare constants, no `pass`; one `pass` if nothing is left."""
    kept = [one for one in block if not (isinstance(one, ast.Pass) or _bare_constant(one))]
    return kept or [ast.Pass() for _ in block[:1]]


def _bare_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _reads_annotations(owner: ast.ClassDef) -> bool:
    """Whether a class is made from its annotations, as dataclasses and named tuples are."""
    bases = {ast.unparse(base).rpartition(".")[2] for base in owner.bases}
    return bool(owner.decorator_list or owner.keywords or bases & _ANNOTATED_CLASSES)
