"""The second rung of the fingerprint: the syntax tree, written so that programs that differ in names and form alone are equal.

The writer starts at `Net.__init__` and `Net.forward` and follows what they use, so that what is never reached does not
count and the order of definitions does not matter. Everything replaceable gets a number in the order in which it is met:
variables v0, v1, …, attributes a0, …, functions and classes g0, …. Imported names become dotted paths; calls are written as
parameter and argument, with defaults left out; arithmetic on constants is done.

Network and recipe are written apart, with the same numbers: two files with equal network keys and equal recipe keys do the
same. The recipe is `train_setup`, `learn`, `supported_hyperparameters`, how weights are initialised (statements that use
`torch.nn.init`), what `Net.__init__` keeps only for them, and module-level statements such as a seed.

What stays different here, and meets at the next rung: a loop and its copies, another way to write the same operation, layers
that are made and never used.
"""

import ast
import inspect
from dataclasses import dataclass, replace

from befit.errors import BadProposal
from befit.propose.calls import without_effect
from befit.propose.contract import HYPERPARAMETERS, NET, NETWORK_METHODS, RECIPE_METHODS, Contract, parse
from befit.propose.names import API, Facts, bindings, called_in_full, facts_of, is_opaque, methods, self_name
from befit.propose.nodes import SELF, Nodes, Scope
from befit.propose.simplify import simplified

_PASSED = {name: len(inspect.signature(vars(Contract)[name]).parameters) for name in NETWORK_METHODS + RECIPE_METHODS}
"""How many arguments, `self` among them, the evaluator passes to a method of the contract."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file as two rows of tokens."""

    network: tuple[str, ...]
    recipe: tuple[str, ...]


def write(source: str) -> Written:
    """The canonical tokens of a proposal. `BadProposal` for what is not Python or has no `Net`."""
    try:
        tree = simplified(parse(source))
        facts = facts_of(tree)
        if facts.frozen:  # the file looks at its own names: it is its text
            as_it_stands = tuple(ast.dump(tree).split("("))
            return Written(network=as_it_stands, recipe=as_it_stands)
        file = _File(facts)
        return Written(network=tuple(file.network()), recipe=tuple(file.recipe()))
    except RecursionError:
        raise BadProposal("nested too deeply to be read", reason="parse") from None


class _File:
    """Writes the definitions of one file in the order in which they are reached."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._nodes = Nodes(facts)
        self._written = set[tuple[str, str]]()
        """(definition, "") and (class, method) that are done."""
        self._effects = list[str]()
        self._kept = list[tuple[ast.Assign, list[Scope]]]()
        """Statements of Net.__init__ that only the recipe may need, with the scopes they stand in."""

    def network(self) -> list[str]:
        nodes = self._nodes
        nodes.out = ["network", *sorted(f"needs:{name}" for name in self._facts.foreign)]
        start = len(nodes.out)
        nodes.emit_all(self._facts.effects)
        self._effects = nodes.out[start:]
        nodes.name(NET)
        self._follow()
        return nodes.out

    def recipe(self) -> list[str]:
        nodes = self._nodes
        nodes.out, nodes.phase = ["recipe", *self._effects, *nodes.inits], "r"
        own = methods(self._facts.classes[NET])
        for name in RECIPE_METHODS:
            if name in own:
                self._method(NET, name)
        if HYPERPARAMETERS in self._facts.functions:
            nodes.name(HYPERPARAMETERS)
        self._follow()
        return [*nodes.out, *self._kept_for_the_recipe()]

    def _follow(self) -> None:
        """Write definitions until everything that is used is there."""
        done, classes = 0, self._facts.classes
        while True:
            reached = self._nodes.reached
            if done < len(reached):
                self._definition(reached[done])
                done += 1
                continue
            pending = (
                (owner, name)
                for group, name in self._nodes.wanted
                for owner in reached
                if owner in classes and group in ("", self._facts.groups[owner]) and name in methods(classes[owner])
                if (owner, name) not in self._written
            )
            found = next(pending, None)
            if found is None:
                return
            self._method(*found)

    def _definition(self, name: str) -> None:
        if (name, "") in self._written:
            return
        self._written.add((name, ""))
        nodes, facts = self._nodes, self._facts
        nodes.out += ["define", nodes.numbers["", name]]
        nodes.begin("")
        if name in facts.functions:
            nodes.function(facts.functions[name], drop_defaults=called_in_full(name, facts))
        elif name in facts.classes:
            self._class(facts.classes[name])
        else:
            nodes.emit(facts.values[name])

    def _class(self, owner: ast.ClassDef) -> None:
        nodes, found = self._nodes, methods(owner)
        nodes.out.append("class")
        nodes.emit_all(owner.bases)
        nodes.emit_all(owner.keywords)
        nodes.emit_all(owner.decorator_list)
        if is_opaque(owner):
            nodes.scopes.append(Scope({}, {}, set()))
            nodes.emit_all(owner.body)
            nodes.scopes.pop()
            self._written |= {(owner.name, name) for name in found}
            return
        nodes.begin(self._facts.groups[owner.name])
        names = {name: nodes.attribute_token(nodes.group, name) for name in bindings(owner.body) if name not in found}
        nodes.scopes.append(Scope({**names}, {}, set(), is_class=True))
        nodes.emit_all([one for one in owner.body if not isinstance(one, ast.FunctionDef)])
        nodes.scopes.pop()
        private = self._facts.own.get(nodes.group, set())
        for name in sorted(found, key=lambda name: (name != "__init__", name != "forward", name)):
            if name not in private and not (owner.name == NET and name in RECIPE_METHODS):
                self._method(owner.name, name)

    def _method(self, owner: str, name: str) -> None:
        self._written.add((owner, name))
        nodes, made = self._nodes, methods(self._facts.classes[owner])[name]
        nodes.begin(self._facts.groups[owner])
        nodes.out += ["method", nodes.numbers["", owner], nodes.attribute_token(nodes.group, name)]
        if owner == NET and name in _PASSED:
            drop = len(made.args.args) <= _PASSED[name] and not made.args.kwonlyargs
        else:
            drop = name == "__init__" and called_in_full(owner, self._facts)
        leave_out = self._only_for_the_recipe if (owner, name) == (NET, "__init__") else None
        nodes.function(made, me=self_name(made), drop_defaults=drop, leave_out=leave_out)

    # The recipe's share of Net.__init__

    def _only_for_the_recipe(self, statement: ast.stmt) -> bool:
        """Whether it is `self.x = …` of something without effect or of a loss, where the network never looks at x.

        It is put aside for the recipe then.
        """
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            return False
        target, value, nodes = statement.targets[0], statement.value, self._nodes
        if not isinstance(target, ast.Attribute) or not nodes.is_self(target.value) or self._network_reads(target.attr):
            return False
        names = nodes.scopes[-1].names
        free = {one.id for one in ast.walk(value) if isinstance(one, ast.Name) and nodes.path(one) is None}
        if any(name in names and names[name] in (None, SELF) for name in free):
            return False  # of a variable, not of a parameter
        if not (without_effect(value) or self._is_loss(value)):
            return False
        self._kept.append((statement, [replace(scope, names={**scope.names}) for scope in nodes.scopes]))
        return True

    def _network_reads(self, name: str) -> bool:
        """Whether any code but `train_setup` and `learn` of Net may read an attribute."""
        group = self._facts.groups[NET]
        replaceable = name in self._facts.own.get(group, ())
        if not replaceable and not (name in API and group in self._facts.own):
            return True
        return not self._facts.readers.get(name, set()) <= {(NET, method) for method in RECIPE_METHODS}

    def _is_loss(self, value: ast.expr) -> bool:
        if isinstance(value, ast.Tuple):
            return all(self._is_loss(one) for one in value.elts)
        if not isinstance(value, ast.Call):
            return False
        if isinstance(value.func, ast.Attribute) and value.func.attr == "to":
            return self._is_loss(value.func.value)
        path = self._nodes.path(value.func) or ""
        return path.startswith("torch.nn.") and path.endswith("Loss")

    def _kept_for_the_recipe(self) -> list[str]:
        """What was put aside and is read by the recipe, in an order of its own."""
        nodes, found = self._nodes, list[list[str]]()
        nodes.group = self._facts.groups[NET]
        read = set(nodes.out)
        for statement, scopes in self._kept:
            target = statement.targets[0]
            assert isinstance(target, ast.Attribute)
            if nodes.numbers.get((nodes.group, target.attr), f".{target.attr}") in read:
                nodes.out, nodes.scopes = [], scopes
                nodes.emit(statement)
                found.append(nodes.out)
        return [token for tokens in sorted(found) for token in tokens]
