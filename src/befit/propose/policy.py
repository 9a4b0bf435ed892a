"""What a proposal may import and name, read from its syntax tree: a lint, not a wall.

It turns down, before anything is run, what no network needs (files, processes, the network, code made of text) and says in
one line what to write instead, which a model can act on. Whoever wants to get around it can; what a proposal is kept from is
the sandbox's affair, and holds without this.
"""

import ast
from collections.abc import Iterator

from befit.errors import BadProposal
from befit.propose.contract import NET, RECIPE_METHODS
from befit.propose.names import dotted, paths

_MODULES = """
__future__ abc bisect cmath collections contextlib copy dataclasses decimal einops enum fractions functools heapq itertools
math numbers numpy operator random re statistics string time torch typing typing_extensions warnings
"""

MODULES = frozenset(_MODULES.split())
"""What may be imported, with everything below."""

GENOMES = "befit.propose.genome"
"""The one module of befit: networks that are written from a genome need it."""

REFUSED = {
    "torch.hub": "nothing can be downloaded",
    "torch.utils.model_zoo": "nothing can be downloaded",
    "torch.utils.cpp_extension": "use PyTorch's own operators",
    "torch.utils.tensorboard": "nothing is kept of what is logged",
    "torch.utils._": "use what PyTorch documents",
    "torch._C": "use what PyTorch documents",
    "torch._dynamo": "use what PyTorch documents",
    "torch._inductor": "use what PyTorch documents",
    "torch.distributed": "training is on one device",
    "torch.multiprocessing": "training is in one process",
    "torch.compile": "befit runs the network as it is",
    "torch.jit.load": "weights are trained here, from nothing",
    "torch.jit.save": "befit keeps the weights itself",
    "torch.export": "befit runs the network as it is",
    "torch.onnx": "befit runs the network as it is",
    "torch.profiler": "befit measures the network itself",
    "torch.library": "use PyTorch's own operators",
    "torch.ops": "use torch.nn and torch.nn.functional",
    "torch.classes": "use torch.nn and torch.nn.functional",
    "torch.package": "there are no files to read or write",
    "torch.serialization": "there are no files to read or write",
    "torch.load": "weights are trained here, from nothing",
    "torch.save": "befit keeps the weights itself",
    "torch.from_file": "there are no files to read or write",
    "torch.overrides": "use torch.nn and torch.nn.functional",
    "numpy.load": "there are no files to read or write",
    "numpy.save": "there are no files to read or write",
    "numpy.fromfile": "there are no files to read or write",
    "numpy.memmap": "there are no files to read or write",
    "numpy.loadtxt": "there are no files to read or write",
    "numpy.genfromtxt": "there are no files to read or write",
    "numpy.ctypeslib": "use PyTorch's own operators",
    "numpy.f2py": "use PyTorch's own operators",
    "numpy.distutils": "use PyTorch's own operators",
    "torchvision": "it is not there; write the layers with torch.nn",
    "timm": "it is not there; write the layers with torch.nn",
    "transformers": "write the layers with torch.nn",
    "torchinfo": "leave it out, befit counts parameters itself",
    "torchsummary": "leave it out, befit counts parameters itself",
    "os": "a network needs no files and no environment",
    "sys": "a network needs nothing of the interpreter",
    "subprocess": "a network starts no programs",
    "logging": "leave it out, nobody reads what is logged",
}
"""What is refused although it lies below an allowed module, and what is asked for often, each with what to do instead."""

_NAMES = "open eval exec compile __import__ globals input breakpoint exit quit help __builtins__ __loader__"

NAMES = frozenset(_NAMES.split())
"""Built-in names that a file may use only where it has given them a meaning of its own."""

_ATTRIBUTES = """
__subclasses__ __globals__ __builtins__ __code__ __closure__ __bases__ __base__ __mro__ __import__ __loader__ __spec__
__getattribute__ __reduce__ __reduce_ex__ __self__ f_globals f_locals f_back f_builtins gi_frame cr_frame tb_frame
"""

ATTRIBUTES = frozenset(_ATTRIBUTES.split())
"""Attributes that lead from an object to the interpreter."""

_WORK = (ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Raise, ast.Assert, ast.Delete)


def lint(tree: ast.Module, *, recipe: bool) -> None:
    """Turn down a file that imports, names or does what no network needs.

    Args:
        tree: A file that `contract.parse` has read.
        recipe: Whether the file's own training runs; where it does not, `train_setup` and `learn` are not looked at.

    Raises:
        BadProposal: What in which line, and what to do instead (reason "policy").
    """
    nodes = list(_reached(tree, recipe))
    own = {name for node in nodes for name in _bound(node)}
    imports = {
        name: path
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name, path in paths(node)
        if name not in own
    }
    for statement in tree.body:
        if isinstance(statement, _WORK):
            _refuse(statement, "work at the top of the file", f"put it into {NET} or a function that {NET} calls")
    for node in nodes:
        _look(node, imports, own)


def _reached(tree: ast.Module, recipe: bool) -> Iterator[ast.AST]:
    """All nodes but those that never run: `if __name__ == "__main__":`, and the recipe where befit trains."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and _is_name(node.test.left, "__name__"):
            queue += node.orelse
            continue
        left_out = isinstance(node, ast.ClassDef) and node.name == NET and not recipe
        queue += [
            one
            for one in ast.iter_child_nodes(node)
            if not (left_out and isinstance(one, ast.FunctionDef) and one.name in RECIPE_METHODS)
        ]


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _bound(node: ast.AST) -> set[str]:
    """Names that this node gives a meaning to."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            return {name}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case _:
            return set()


def _look(node: ast.AST, imports: dict[str, str], own: set[str]) -> None:
    """Refuse one node. `imports` has the dotted path of each imported name that is in no other way bound, as `own` are."""
    match node:
        case ast.Import(names=names):
            for one in names:
                _check_import(node, one.name)
        case ast.ImportFrom(level=level) if level:
            _refuse(node, "a relative import", "the network is one file")
        case ast.ImportFrom(module=str(module), names=names):
            for one in names:
                if one.name == "*" and module.partition(".")[0] != "torch":
                    _refuse(node, f"from {module} import *", "name what is needed")
                _check_import(node, module)
                _check_path(node, f"{module}.{one.name}")
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES and name not in own and name not in imports:
            _refuse(node, name, "a network needs no files, no code made of text and nobody to ask")
        case ast.Attribute(attr=name):
            if name in ATTRIBUTES:
                _refuse(node, name, "call methods and functions by their plain names")
            _check_path(node, dotted(node, imports) or "")
        case ast.Constant(value=str(text)) if text in ATTRIBUTES:
            _refuse(node, repr(text), "call methods and functions by their plain names")
        case _:
            pass


def _check_import(node: ast.AST, module: str) -> None:
    _check_path(node, module)
    if module.partition(".")[0] not in MODULES and module != GENOMES:
        _refuse(node, f"importing {module}", "import torch and Python's math, random, functools or collections only")


def _check_path(node: ast.AST, path: str) -> None:
    """Refuse a dotted path at or below a refused one."""
    for refused, instead in REFUSED.items():
        below = path.startswith(refused) if refused.endswith("._") else f"{path}.".startswith(f"{refused}.")
        if below:
            _refuse(node, path, instead)


def _refuse(node: ast.AST, what: str, instead: str) -> None:
    raise BadProposal(f"line {getattr(node, 'lineno', 0)}: {what} is not allowed: {instead}", reason="policy")
