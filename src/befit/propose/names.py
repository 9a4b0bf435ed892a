"""What the names in a proposal stand for, and which of them may be replaced without changing the program.

A name is replaceable when nothing can tell: a local variable always is; an attribute only if it is set on `self` in a class
that derives from `nn.Module` or from nothing, is used on `self` alone, and no code in the file looks attributes up by text.
In doubt a name stays. That can miss a duplicate, but it never takes two programs for one.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from befit.propose.contract import HYPERPARAMETERS, NET, NETWORK_METHODS, RECIPE_METHODS

_OF_MODULE = """
T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval
extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia
named_buffers named_children named_modules named_parameters parameters register_backward_hook register_buffer
register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory
state_dict to to_empty train training type xpu zero_grad
_apply _backward_hooks _backward_pre_hooks _buffers _call_impl _compiled_call_impl _forward_hooks
_forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks _forward_pre_hooks_with_kwargs
_get_backward_hooks _get_backward_pre_hooks _get_name _is_full_backward_hook _load_from_state_dict
_load_state_dict_post_hooks _load_state_dict_pre_hooks _maybe_warn_non_full_backward_hook _modules _named_members
_non_persistent_buffers_set _parameters _register_load_state_dict_pre_hook _register_state_dict_hook
_replicate_for_data_parallel _save_to_state_dict _slow_forward _state_dict_hooks _state_dict_pre_hooks _version
_wrapped_call_impl
"""

MODULE_NAMES = frozenset(_OF_MODULE.split())
"""Attributes that `nn.Module` gives a meaning; a test compares them with the installed PyTorch."""

API = MODULE_NAMES | {*NETWORK_METHODS, *RECIPE_METHODS, "criteria", "criterion", "optimizer"}
"""Attributes that others than the file itself use."""

_TEXT_ATTRIBUTES = {
    *(name for name in MODULE_NAMES if name.startswith(("_", "named_", "get_"))),
    *("__dict__", "state_dict", "load_state_dict", "set_submodule", "__getattr__", "__setattr__", "__getattribute__"),
    *("attrgetter", "methodcaller"),
}
"""Attributes through which other attributes are found by their text."""

REGISTERS = ("register_buffer", "register_parameter", "add_module", "register_module")
"""Methods of `nn.Module` whose first argument is the name of an attribute."""

_TEXT_FUNCTIONS = {"getattr", "hasattr", "setattr", "delattr"}
_FROZEN_NAMES = {"eval", "exec", "locals", "globals", "vars", "dir", "__import__", "compile", "__file__", "type"}
_FROZEN_ATTRIBUTES = {"__name__", "__qualname__", "__class__", "__code__", "__globals__", "_get_name", "getsource"}
_PLAIN_BASES = {"torch.nn.Module", "torch.nn.modules.Module", "object"}
_KNOWN_MODULES = {
    *("torch", "math", "typing", "collections", "functools", "itertools", "copy", "random", "numpy", "abc", "enum"),
    *("dataclasses", "os", "sys", "time", "warnings", "logging", "operator", "__future__"),
}
"""Modules that are there wherever a proposal runs, so that importing one without using it changes nothing."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(kw_only=True)
class Facts:
    """What the names of one file stand for."""

    imports: dict[str, str] = field(default_factory=dict)
    """Module-level name to the dotted path that it is imported from."""
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    values: dict[str, ast.expr] = field(default_factory=dict)
    """Names bound once, to an expression that does nothing but make a value."""
    effects: list[ast.stmt] = field(default_factory=list)
    """Everything else at module level, in order."""
    foreign: set[str] = field(default_factory=set)
    """Imported modules that may be missing."""
    groups: dict[str, str] = field(default_factory=dict)
    """Class to the class that names its group: classes that inherit from each other share attributes."""
    own: dict[str, set[str]] = field(default_factory=dict)
    """Group to the attributes that are replaceable in it."""
    keywords: set[str] = field(default_factory=set)
    """Keywords of calls whose target is not known: parameters of these names stay."""
    escaping: set[str] = field(default_factory=set)
    """Functions and classes that are used otherwise than in a plain call."""
    readers: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """Attribute to where it is read, as (class, method); ("", "") stands for outside of all classes."""
    declared: set[str] = field(default_factory=set)
    """Names that some function declares global."""
    frozen: bool = False
    """Whether the file looks at its own names as text: then nothing is replaced."""


def bindings(body: Iterable[ast.AST]) -> Counter[str]:
    """How often each name is bound in a scope, nested scopes left out."""
    found, outside, queue = Counter[str](), set[str](), list(body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Name):
            found[node.id] += not isinstance(node.ctx, ast.Load)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] += 1
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            queue.extend(one.target for one in ast.walk(node) if isinstance(one, ast.NamedExpr))
        elif isinstance(node, ast.Global | ast.Nonlocal):
            outside.update(node.names)
        elif not isinstance(node, ast.Lambda):
            named = node.__dict__
            found.update(named[key] for key in ("rest",) if named.get(key))
            if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
                found[node.name] += 1
            queue.extend(ast.iter_child_nodes(node))
    return Counter({name: count for name, count in found.items() if count and name not in outside})


def declared_global(body: Iterable[ast.AST]) -> set[str]:
    """Names that a scope declares global, nested scopes left out."""
    found, queue = set[str](), list(body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Global):
            found.update(node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            queue.extend(ast.iter_child_nodes(node))
    return found


def paths(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """(name, dotted path) of what a statement imports; nothing for a star or a relative import."""
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            whole = alias.name if alias.asname else alias.name.partition(".")[0]
            yield alias.asname or whole, whole
        elif not statement.level and alias.name != "*":
            yield alias.asname or alias.name, f"{statement.module}.{alias.name}"


def foreign_modules(statement: ast.Import | ast.ImportFrom) -> set[str]:
    """Imported modules that need not be there."""
    names = (
        [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else [statement.module or "."]
    )
    return {name for name in names if name.partition(".")[0] not in _KNOWN_MODULES}


def parameters(arguments: ast.arguments) -> list[ast.arg]:
    """All of them, in the order of the text."""
    stars = [one for one in (arguments.vararg, arguments.kwarg) if one]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *stars]


def self_name(method: ast.stmt) -> str | None:
    """The parameter that is the object itself, if this is a plain method that never binds it anew."""
    if not isinstance(method, ast.FunctionDef) or not method.args.args:
        return None
    if any(isinstance(one, ast.Name) and one.id in ("staticmethod", "classmethod") for one in method.decorator_list):
        return None
    name = method.args.args[0].arg
    return None if bindings(method.body)[name] else name


def methods(owner: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """Methods that are defined in the class itself, by name."""
    return {one.name: one for one in owner.body if isinstance(one, ast.FunctionDef)}


def is_opaque(owner: ast.ClassDef) -> bool:
    """Whether a class may be more than its body says: decorated, with a metaclass, or with a name bound twice."""
    twice = any(count > 1 for count in bindings(owner.body).values())
    return bool(owner.decorator_list or owner.keywords or twice)


def signature_of(name: str, facts: Facts) -> ast.arguments | None:
    """What a plain call of a function or class of this file binds, `self` included for a class; None where it is not plain."""
    made = facts.functions.get(name)
    if made is None and name in facts.classes and not is_opaque(facts.classes[name]):
        made = methods(facts.classes[name]).get("__init__")
    if made is None or made.decorator_list or made.args.vararg or made.args.kwarg or made.args.posonlyargs:
        return None
    return made.args if made.name in facts.functions or made.args.args else None


def called_in_full(name: str, facts: Facts) -> bool:
    """Whether every call of a function or class of this file can be written with all its arguments: its defaults are
    constants, and it is used in plain calls alone.
    """
    arguments = signature_of(name, facts)
    if arguments is None or name in facts.escaping:
        return False
    return all(isinstance(one, ast.Constant) for one in [*arguments.defaults, *filter(None, arguments.kw_defaults)])


def facts_of(tree: ast.Module) -> Facts:
    """Read a file whose tree has been simplified."""
    facts = Facts()
    bound = bindings(tree.body)
    facts.declared = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    bound.update(facts.declared)
    seen = dict[str, set[str]]()
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for name, path in paths(statement):
                seen.setdefault(name, set()).add(path)
    same = {name for name, found in seen.items() if len(found) == 1 and bound[name] == _imports_of(tree, name)}
    for statement in tree.body:
        _sort_in(statement, facts, {name for name, count in bound.items() if count == 1}, same)
    _Uses(facts).read(tree)
    return facts


def _imports_of(tree: ast.Module, name: str) -> int:
    statements = [one for one in tree.body if isinstance(one, ast.Import | ast.ImportFrom)]
    return sum(bindings([one])[name] for one in statements)


def _sort_in(statement: ast.stmt, facts: Facts, once: set[str], same: set[str]) -> None:
    """Put one module-level statement where it belongs; what is in no other class is an effect."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        found = dict(paths(statement))
        facts.foreign |= foreign_modules(statement)
        facts.imports |= {name: path for name, path in found.items() if name in same}
        if not found or not found.keys() <= same:
            facts.effects.append(statement)
    elif isinstance(statement, ast.FunctionDef) and statement.name in once:
        facts.functions[statement.name] = statement
    elif isinstance(statement, ast.ClassDef) and statement.name in once:
        facts.classes[statement.name] = statement
    elif (
        isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name)
    ):
        name = statement.targets[0].id
        if name in once and _makes_a_value(statement.value):
            facts.values[name] = statement.value
        else:
            facts.effects.append(statement)
    elif not _is_main(statement):
        facts.effects.append(statement)


def _makes_a_value(value: ast.expr) -> bool:
    """Whether it can be evaluated at any time, any number of times, with nothing else noticing: displays and arithmetic."""
    allowed = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop)
    return all(isinstance(node, (*allowed, ast.expr_context)) for node in ast.walk(value))


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) in (
        "__name__ == '__main__'",
        "'__main__' == __name__",
    )


class _Uses:
    """One walk over a file that finds how its names are used."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._elsewhere = set[str]()
        """Attributes used on something other than `self`."""
        self._by_text = False
        self._shadowed = set[str]()
        """Names that are bound somewhere inside a function: they may hide an import."""
        self._place = ("", "")
        self._set = dict[str, set[str]]()
        """Class to the attributes that its methods set on `self`."""

    def read(self, tree: ast.Module) -> None:
        facts = self.facts
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                body = node.body if isinstance(node.body, list) else [node.body]
                self._shadowed |= {*bindings(body), *(one.arg for one in parameters(node.args))}
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef) and statement.name in facts.classes:
                self._class(statement)
            else:
                self._walk(statement, None, None)
        self._group()

    def _class(self, owner: ast.ClassDef) -> None:
        self._set.setdefault(owner.name, set()).update(bindings(owner.body))
        for node in [*owner.bases, *owner.keywords, *owner.decorator_list]:
            self._walk(node, None, None)
        for statement in owner.body:
            self._place = (owner.name, statement.name if isinstance(statement, ast.FunctionDef) else "")
            self._walk(statement, self_name(statement), owner.name)
        self._place = ("", "")

    def _walk(self, node: ast.AST, me: str | None, owner: str | None, *, top: bool = True) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not top:
            me = None if me in {one.arg for one in parameters(node.args)} else me
        if isinstance(node, ast.ClassDef):
            me = None
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute):
            self.facts.readers.setdefault(node.target.attr, set()).add(self._place)
        if isinstance(node, ast.Attribute):
            self._attribute(node, me, owner)
        elif isinstance(node, ast.Call):
            self._call(node, me, owner)
        elif isinstance(node, ast.Name):
            self.facts.frozen |= node.id in _FROZEN_NAMES
            self._by_text |= node.id in _TEXT_FUNCTIONS and isinstance(node.ctx, ast.Load)
            if isinstance(node.ctx, ast.Load):
                self.facts.escaping.add(node.id)
        for child in ast.iter_child_nodes(node):
            # The callee of a plain call was looked at with the call.
            if not (isinstance(node, ast.Call) and child is node.func and isinstance(child, ast.Name)):
                self._walk(child, me, owner, top=False)

    def _attribute(self, node: ast.Attribute, me: str | None, owner: str | None) -> None:
        self.facts.frozen |= node.attr in _FROZEN_ATTRIBUTES
        self._by_text |= node.attr in _TEXT_ATTRIBUTES
        if not isinstance(node.ctx, ast.Store):
            self.facts.readers.setdefault(node.attr, set()).add(self._place)
        root = node.value
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in self.facts.imports and root.id not in self._shadowed:
            return  # torch.nn.functional.relu says nothing about self.relu
        if me is None or owner is None or not (isinstance(node.value, ast.Name) and node.value.id == me):
            self._elsewhere.add(node.attr)
        elif isinstance(node.ctx, ast.Store):
            self._set[owner].add(node.attr)

    def _call(self, node: ast.Call, me: str | None, owner: str | None) -> None:
        facts, func = self.facts, node.func
        plain = not any(isinstance(one, ast.Starred) for one in node.args) and all(one.arg for one in node.keywords)
        if isinstance(func, ast.Name):
            facts.frozen |= func.id in _FROZEN_NAMES
            if not plain:
                facts.escaping.add(func.id)
            if func.id in _TEXT_FUNCTIONS:
                named = node.args[1] if len(node.args) > 1 else None
                if isinstance(named, ast.Constant) and func.id != "delattr":
                    self._elsewhere.add(str(named.value))
                else:
                    self._by_text = True
            if plain and signature_of(func.id, facts) is not None:
                return
        elif isinstance(func, ast.Attribute):
            if isinstance(func.value, ast.Name) and func.value.id == me and owner and func.attr in REGISTERS:
                if node.args and isinstance(node.args[0], ast.Constant):
                    self._set[owner].add(str(node.args[0].value))
                else:
                    self._by_text = True
            root = dotted(func, facts.imports)
            if root and root.startswith(("torch.nn.", "torch.optim.")) and root.rpartition(".")[2] != "Parameter":
                return
        facts.keywords |= {one.arg for one in node.keywords if one.arg}

    def _group(self) -> None:
        """Classes that inherit from one another form one group; its attributes are replaceable if all its bases are plain."""
        facts = self.facts
        names = {name: name for name in facts.classes}

        def first(name: str) -> str:
            while names[name] != name:
                name = names[name]
            return name

        closed = set[str]()
        for name, owner in facts.classes.items():
            for base in owner.bases:
                if isinstance(base, ast.Name) and base.id in names:
                    names[first(name)] = first(base.id)
                elif (dotted(base, facts.imports) or ast.unparse(base)) not in _PLAIN_BASES:
                    closed.add(name)
            if is_opaque(owner):
                closed.add(name)
        facts.groups = {name: first(name) for name in names}
        shut = {facts.groups[name] for name in closed}
        for name, own in self._set.items():
            group = facts.groups[name]
            if not self._by_text and group not in shut:
                mine = {one for one in own if not one.startswith("__")}
                facts.own.setdefault(group, set()).update(mine - API - self._elsewhere)
        facts.frozen |= bool({NET, HYPERPARAMETERS} & facts.imports.keys()) or NET not in facts.classes


def dotted(node: ast.expr, imports: dict[str, str]) -> str | None:
    """The dotted path of a name that is imported at module level, or of an attribute of one."""
    if isinstance(node, ast.Attribute):
        root = dotted(node.value, imports)
        return root and f"{root}.{node.attr}"
    return imports.get(node.id) if isinstance(node, ast.Name) else None
