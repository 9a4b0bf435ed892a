"""Expressions and statements of a proposal as tokens: the part of the tree rung that knows Python's scopes.

A token is a kind of node, a bracket, a constant with its type, or a name: v0 a variable, a0 an attribute, g0 a definition of
the file, i:… something imported, n:… anything else (built-in functions), .… an attribute that keeps its name. Brackets
and the fixed fields of each kind of node make a row of tokens readable in one way only.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from befit.propose.calls import bind, constant, keep_order
from befit.propose.names import (
    REGISTERS,
    Facts,
    bindings,
    called_in_full,
    declared_global,
    foreign_modules,
    parameters,
    paths,
    signature_of,
)
from befit.propose.signatures import signature

SELF = "self"
INIT = "i:torch.nn.init"
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)


@dataclass
class Scope:
    """The names of one function, comprehension or class body."""

    names: dict[str, str | None]
    """Each name bound here, with its token once it has one."""
    imports: dict[str, str]
    outside: set[str]
    """Names declared global."""
    is_class: bool = False


class Nodes:
    """Appends to `out` what it is given; numbers names as it meets them."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.out = list[str]()
        self.phase = ""
        """Prefix of new numbers: those of the recipe must not depend on how many the network has."""
        self.group = ""
        """The group of classes whose method is being written."""
        self.scopes = list[Scope]()
        self.numbers = dict[tuple[str, str], str]()
        """(group of an attribute or "", name) to its token."""
        self.reached = list[str]()
        """Definitions of the file, in the order met."""
        self.wanted = dict[tuple[str, str], None]()
        """(group, attribute) used so far, in the order met; the group "" stands for any."""
        self.inits = list[str]()
        """Statements that initialise weights."""
        self._variables = 0
        self._counts = dict[str, int]()

    def begin(self, group: str) -> None:
        """A definition begins: its variables are numbered from zero."""
        self.group, self._variables = group, 0

    # Names

    def _new(self, letter: str) -> str:
        kind = self.phase + letter
        self._counts[kind] = self._counts.get(kind, -1) + 1
        return f"{kind}{self._counts[kind]}"

    def attribute_token(self, group: str, name: str) -> str:
        if name not in self.facts.own.get(group, ()):
            return f".{name}"
        if (group, name) not in self.numbers:
            self.numbers[group, name] = self._new("a")
        return self.numbers[group, name]

    def _local(self, name: str) -> Scope | None:
        """The scope that a name belongs to, None for the module."""
        for depth, scope in enumerate(reversed(self.scopes)):
            if name in scope.outside:
                return None
            if (name in scope.names or name in scope.imports) and not (scope.is_class and depth):
                return scope
        return None

    def name(self, name: str) -> None:
        """A reference to a name."""
        scope = self._local(name)
        if scope is not None and name in scope.imports:
            self.out.append(f"i:{scope.imports[name]}")
        elif scope is not None:
            if scope.names[name] is None:
                scope.names[name] = f"v{self._variables}"
                self._variables += 1
            self.out.append(scope.names[name] or "")
        elif name in self.facts.imports:
            self.out.append(f"i:{self.facts.imports[name]}")
        elif name in self.facts.functions or name in self.facts.classes or name in self.facts.values:
            if ("", name) not in self.numbers:
                self.numbers["", name] = self._new("g")
                self.reached.append(name)
            self.out.append(self.numbers["", name])
        else:
            self.out.append(f"n:{name}")

    def path(self, node: ast.expr) -> str | None:
        """The dotted path that an expression is imported from."""
        if isinstance(node, ast.Attribute):
            root = self.path(node.value)
            return root and f"{root}.{node.attr}"
        if not isinstance(node, ast.Name):
            return None
        scope = self._local(node.id)
        return self.facts.imports.get(node.id) if scope is None else scope.imports.get(node.id)

    def _module_value(self, name: str) -> ast.expr | None:
        return self.facts.values.get(name) if self._local(name) is None else None

    # Nodes

    def emit_all(self, nodes: Sequence[ast.AST]) -> None:
        self.out.append("[")
        for node in nodes:
            self.emit(node)
        self.out.append("]")

    def emit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name | ast.UnaryOp | ast.BinOp):
            folded = constant(node, self._module_value)
            if folded is not None:
                node = folded
        if isinstance(node, ast.Name):
            self.name(node.id)
        elif isinstance(node, ast.Constant):
            self.out.append(f"{type(node.value).__name__}:{node.value!r}")
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.name(node.name)
            self.function(node)
        elif isinstance(node, ast.Lambda):
            self._lambda(node)
        elif isinstance(node, ast.ClassDef):
            self._inner_class(node)
        elif isinstance(node, _COMPREHENSIONS):
            self._comprehension(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self._import(node)
        else:
            self._generic(node)

    def _generic(self, node: ast.AST) -> None:
        self.out.append(type(node).__name__)
        bound = isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar)
        for key in node._fields:
            value = node.__dict__.get(key)
            if key in ("ctx", "type_comment", "kind", "type_ignores"):
                continue
            if isinstance(value, str) and (bound or key == "rest"):
                self.name(value)
            elif isinstance(value, ast.AST):
                self.emit(value)
            elif not isinstance(value, list):
                self.out.append(repr(value))
            elif isinstance(node, ast.Global | ast.Nonlocal):
                for name in value:
                    self.name(name)
            elif isinstance(node, ast.Set) and all(isinstance(one, ast.Constant) for one in node.elts):
                self.emit_all(sorted(node.elts, key=ast.dump))
            elif all(isinstance(one, ast.AST) for one in value):
                self.emit_all(value)
            else:  # a dictionary with ** has None among its keys
                self.out.append("[")
                for one in value:
                    self.emit(one) if isinstance(one, ast.AST) else self.out.append(repr(one))
                self.out.append("]")

    def _attribute(self, node: ast.Attribute) -> None:
        path = self.path(node)
        if path is not None:
            self.out.append(f"i:{path}")
            return
        mine = self.is_self(node.value) and node.attr in self.facts.own.get(self.group, ())
        group = self.group if mine else ""
        self.out.append("Attribute")
        self.emit(node.value)
        self.out.append(self.attribute_token(group, node.attr))
        self.wanted[group, node.attr] = None

    def is_self(self, node: ast.expr) -> bool:
        """Whether an expression is the object whose method is being written."""
        scope = self._local(node.id) if isinstance(node, ast.Name) else None
        return scope is not None and isinstance(node, ast.Name) and scope.names.get(node.id) == SELF

    # Calls

    def _call(self, node: ast.Call) -> None:
        func = node.func
        path = self.path(func)
        known = signature(path) if path else None
        user = None
        if path is None and isinstance(func, ast.Name) and self._local(func.id) is None:
            user = signature_of(func.id, self.facts)
        if known is not None:
            found = bind(node, list(known), more=True)
            if found is not None and keep_order(node, list(found.values())):
                self._bound_call(node, {n: value for n, value in found.items() if not self._equal(value, known.get(n))})
                return
        elif user is not None and isinstance(func, ast.Name):
            names = [one.arg for one in parameters(user)][func.id in self.facts.classes :]
            found = bind(node, names)
            if found is not None:
                if not keep_order(
                    node, list(found.values())
                ):  # as the text has them, under the names of the parameters
                    source = [*node.args, *(one.value for one in node.keywords)]
                    found = dict(sorted(found.items(), key=lambda item: source.index(item[1])))
                if called_in_full(func.id, self.facts):
                    found |= {name: value for name, value in _defaults(user).items() if name not in found}
                    if keep_order(node, list(found.values())):
                        found = {name: found[name] for name in names if name in found}
                self._bound_call(node, {str(names.index(name)): value for name, value in found.items()})
                return
        self._plain_call(node)

    def _bound_call(self, node: ast.Call, found: dict[str, ast.expr]) -> None:
        """A call of a known function: each argument with the name of its parameter."""
        self.out.append("Call")
        self.emit(node.func)
        self.out.append("[")
        for name, value in found.items():
            self.out.append(f"p:{name}")
            self.emit(value)
        self.out.append("]")

    def _plain_call(self, node: ast.Call) -> None:
        func, arguments = node.func, node.args
        self.out.append("call")
        self.emit(func)
        self.out.append("[")
        if isinstance(func, ast.Attribute) and func.attr in REGISTERS and self.is_self(func.value):
            first = arguments[0] if arguments else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                self.out.append(self.attribute_token(self.group, first.value))
                arguments = arguments[1:]
        for argument in arguments:
            self.emit(argument)
        self.out.append("]")
        keywords = sorted(node.keywords, key=lambda one: one.arg or "")
        if not all(one.arg for one in keywords) or not keep_order(node, [*node.args, *(one.value for one in keywords)]):
            keywords = node.keywords
        self.emit_all(keywords)

    def _equal(self, value: ast.expr, default: ast.expr | None) -> bool:
        """Whether an argument is the default, written out. True is not 1."""
        found = constant(value, self._module_value)
        return default is not None and found is not None and ast.dump(found) == ast.dump(constant(default) or default)

    # Functions

    def function(
        self,
        node: ast.FunctionDef | ast.AsyncFunctionDef,
        *,
        me: str | None = None,
        drop_defaults: bool = False,
        leave_out: Callable[[ast.stmt], bool] | None = None,
    ) -> None:
        """Parameters and body. `me` is the parameter that is the object itself; `leave_out` says which statements of the
        body are not written.
        """
        self.out.append(type(node).__name__)
        self.emit_all(node.decorator_list)
        outermost = all(scope.is_class for scope in self.scopes)
        self._enter(node.args, node.body, me=me, drop_defaults=drop_defaults)
        self.out.append("[")
        for statement in node.body:
            at = len(self.out)
            if leave_out is None or not leave_out(statement):
                self.emit(statement)
            if outermost and any(one.startswith(INIT) for one in self.out[at:]):
                self.inits += self.out[at:]
        self.out.append("]")
        self.scopes.pop()

    def _enter(
        self, arguments: ast.arguments, body: Sequence[ast.AST], *, me: str | None = None, drop_defaults: bool = False
    ) -> None:
        """Write parameters and enter the scope of a function."""
        if not drop_defaults:
            self.emit_all(arguments.defaults)
            for one in arguments.kw_defaults:
                self.out.append("-") if one is None else self.emit(one)
        given = [one.arg for one in parameters(arguments)]
        local, imports = bindings(body), dict[str, str]()
        outside = declared_global(body) if self.facts.declared else set[str]()
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports |= {name: path for name, path in paths(node) if local[name] == 1 and name not in given}
        names: dict[str, str | None] = dict.fromkeys(name for name in [*local, *given] if name not in imports)
        self.scopes.append(Scope(names, imports, outside - {*given}))
        for kind in ("posonlyargs", "args", "vararg", "kwonlyargs", "kwarg"):
            found = arguments.__dict__[kind]
            self.out.append("(")
            for one in found if isinstance(found, list) else [found] if found else []:
                if one.arg == me:
                    names[one.arg] = SELF
                elif one.arg in self.facts.keywords:
                    names[one.arg] = f"k:{one.arg}"
                self.name(one.arg)
            self.out.append(")")

    def _lambda(self, node: ast.Lambda) -> None:
        self.out.append("Lambda")
        self._enter(node.args, [node.body])
        self.emit(node.body)
        self.scopes.pop()

    def _inner_class(self, node: ast.ClassDef) -> None:
        """A class inside a function: written as it stands, its attributes keep their names."""
        self.name(node.name)
        self.out.append("ClassDef")
        self.emit_all([*node.decorator_list, *node.bases, *node.keywords])
        self.scopes.append(Scope({name: f".{name}" for name in bindings(node.body)}, {}, set(), is_class=True))
        self.emit_all(node.body)
        self.scopes.pop()

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        self.out.append(type(node).__name__)
        self.emit(node.generators[0].iter)  # this one is evaluated outside
        targets = bindings([one.target for one in node.generators])
        self.scopes.append(Scope(dict.fromkeys(targets), {}, set()))
        for place, one in enumerate(node.generators):
            self.emit(one.target)
            if place:
                self.emit(one.iter)
            self.emit_all(one.ifs)
            self.out.append(str(one.is_async))
        for value in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.emit(value)
        self.scopes.pop()

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Nothing, where all the names are taken as paths; what may be missing is named."""
        self.out += sorted(f"needs:{name}" for name in foreign_modules(node))
        known = self.scopes[-1].imports if self.scopes else {}
        for name, path in paths(node):
            if name not in known:
                self.out.append(f"import:{path}")
                self.name(name)
        if not any(paths(node)):
            self.out.append(ast.dump(node))


def _defaults(arguments: ast.arguments) -> dict[str, ast.expr]:
    """Parameter to its default."""
    names = [one.arg for one in arguments.args]
    found = dict(zip(reversed(names), reversed(arguments.defaults), strict=False))
    return found | {
        one.arg: value for one, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value
    }
