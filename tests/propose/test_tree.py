"""Scopes, attributes and calls in the syntax tree rung: what may be replaced, and what must not be."""

import ast
from typing import Any

import pytest
from torch import nn

from befit.propose.calls import bind, constant, keep_order, without_effect
from befit.propose.fingerprint import keys_of
from befit.propose.names import MODULE_NAMES, bindings, facts_of
from befit.propose.simplify import simplified
from befit.propose.tree import write

NET = """
import torch
from torch import nn
{before}
class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        {init}
    def forward(self, x):
        {forward}
"""


def net(before: str = "", init: str = "self.fc = nn.Linear(4, 2)", forward: str = "return self.fc(x)") -> str:
    deep = "\n        "
    return NET.format(before=before, init=init.replace("\n", deep), forward=forward.replace("\n", deep))


def same(a: str, b: str) -> bool:
    one, two = keys_of(a), keys_of(b)
    return (one.tree, one.recipe) == (two.tree, two.recipe)


def test_names_of_modules_are_pytorchs() -> None:
    # Other libraries add methods of their own to the class once they are imported.
    foreign = {
        n for n, value in vars(nn.Module).items() if not getattr(value, "__module__", "torch").startswith("torch")
    }
    real = {n for n in {*dir(nn.Module()), *nn.Module.__annotations__} - foreign if not n.startswith("__")}
    assert real <= MODULE_NAMES


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("return [i * 2 for i in x]", "return [j * 2 for j in x]"),
        ("return [x for x in x]", "return [y for y in x]"),
        ("return (lambda a: a + x)(x)", "return (lambda b: b + x)(x)"),
        ("def f(a):\n    return a + x\nreturn f(x)", "def g(b):\n    return b + x\nreturn g(x)"),
        (
            "try:\n    y = x\nexcept ValueError as e:\n    y = e\nreturn y",
            "try:\n    z = x\nexcept ValueError as w:\n    z = w\nreturn z",
        ),
        (
            "import torch.nn.functional as F\nreturn F.relu(x)",
            "from torch.nn import functional\nreturn functional.relu(x)",
        ),
        ("with torch.no_grad() as g:\n    y = x\nreturn y", "with torch.no_grad() as h:\n    z = x\nreturn z"),
        ("if (n := len(x)) > 1:\n    return n", "if (m := len(x)) > 1:\n    return m"),
        ("match x:\n    case [a, *b]:\n        return a", "match x:\n    case [c, *d]:\n        return c"),
        ("return {**{'a': x}}", 'return {**{"a": x}}'),
    ],
)
def test_variables_are_replaced(a: str, b: str) -> None:
    assert same(net(forward=a), net(forward=b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("y = x\nz = y\nreturn y + x", "y = x\nz = y\nreturn z + x"),
        ("return [i for i in x for j in i]", "return [j for i in x for j in i]"),
        ("return (lambda a, b: a - b)(x, 1)", "return (lambda a, b: b - a)(x, 1)"),
        ("return x.relu()", "return x.sigmoid()"),
        ("return torch.relu(x)", "return torch.tanh(x)"),
        ("return len(x)", "return sum(x)"),
        ("y = x * 2\nreturn x", "x = x * 2\nreturn x"),
        ("def f(a):\n    nonlocal x\n    x = a\nf(1)\nreturn x", "def f(a):\n    y = a\nf(1)\nreturn x"),
        ("return x[1]", "return x[True]"),
        ("return x * 1", "return x * 1.0"),
        ("return x * -0.0", "return x * 0.0"),
        ("return f'{x} a'", "return f'{x}a'"),
        ("return x if x else None", "return x or None"),
        ("torch = x\nreturn torch.relu", "y = x\nreturn torch.relu"),
    ],
)
def test_what_differs_stays_different(a: str, b: str) -> None:
    assert not same(net(forward=a), net(forward=b))


INIT, USE = "self.one = nn.Linear(4, 4)\nself.two = nn.Linear(4, 2)", "return self.two(self.one(x))"


@pytest.mark.parametrize(
    ("forward", "free"),
    [
        (USE, True),
        ("f = lambda: self.one(x)\nreturn self.two(f())", True),
        ("y = torch.nn.functional.relu(x)\n" + USE, True),
        ("y = x.one\n" + USE, False),  # the attribute of something else may be the same one
        ("y = getattr(self, 'one')\n" + USE, False),
        ("y = getattr(self, str(x))\n" + USE, False),
        ("for name, y in self.named_children():\n    print(name)\n" + USE, False),
        ("y = self.__dict__\n" + USE, False),
        ("y = vars(self)\n" + USE, False),
        ("self = x\n" + USE, False),
    ],
)
def test_when_attributes_are_replaced(forward: str, free: bool) -> None:
    source = net(init=INIT, forward=forward)
    assert same(source, source.replace("self.one", "self.first")) == free


def test_attributes_of_other_bases_stay() -> None:
    for base, free in (("nn.Module", True), ("object", True), ("nn.Linear", False), ("Unknown", False)):
        block = f"class B({base}):\n    def __init__(self):\n        self.one = 1\n"
        block += "    def forward(self, x):\n        return self.one\n"
        source = net(before=block, init="self.b = B()", forward="return self.b(x)")
        assert same(source, source.replace("self.one", "self.first")) == free, base


def test_inherited_attributes_go_together() -> None:
    family = (
        "class A(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.one = nn.ReLU()\n"
        "class B(A):\n    def forward(self, x):\n        return self.one(x)\n"
    )
    source = net(before=family, init="self.b = B()", forward="return self.b(x)")
    assert same(source, source.replace("self.one", "self.first"))
    assert not same(source, source.replace("return self.one", "return self.first"))


def test_buffers_are_attributes() -> None:
    source = net(init="self.register_buffer('mask', torch.ones(1))", forward="return x * self.mask")
    assert same(source, source.replace("mask", "window"))
    assert not same(source, source.replace("'mask'", "'window'"))


def test_calls_that_take_a_function_along_keep_its_parameters() -> None:
    block = "import functools\ndef block(width, depth=1):\n    return nn.Linear(width, depth)\n"
    source = net(before=block, init="self.fc = functools.partial(block, width=4)()")
    assert not same(source, source.replace("width, depth=1", "w, depth=1").replace("Linear(width", "Linear(w"))
    assert not same(source, source.replace("depth=1", "depth=2"))


def test_methods_of_helpers_are_followed() -> None:
    block = "class B:\n    def run(self, x):\n        return x\n    def idle(self):\n        return 1\n"
    source = net(before=block, init="self.b = B()", forward="return self.b.run(x)")
    assert same(source, source.replace("return 1", "return 2"))
    assert not same(source, source.replace("        return x\n", "        return x * 2\n", 1))


def test_effects_of_a_module_count_in_order() -> None:
    seeded = net(before="torch.manual_seed(1)\ntorch.set_num_threads(1)")
    assert not same(seeded, net())
    assert not same(seeded, net(before="torch.set_num_threads(1)\ntorch.manual_seed(1)"))


def test_the_forward_default_counts_and_the_contracts_does_not() -> None:
    assert same(net(), net().replace("prm, device)", "prm=None, device=None)"))
    a = net().replace("forward(self, x)", "forward(self, x, scale=2)").replace("self.fc(x)", "self.fc(x) * scale")
    assert not same(a, a.replace("scale=2", "scale=3"))


def test_a_global_variable_is_no_constant() -> None:
    counted = "N = 0\ndef more():\n    global N\n    N += 1\n    return N\n"
    source = net(before=counted, init="self.fc = nn.Linear(more(), N)")
    assert not same(source, source.replace("nn.Linear(more(), N)", "nn.Linear(more(), 0)"))


def test_a_file_that_looks_at_itself_is_its_text() -> None:
    source = net(forward="return eval('self.fc')(x)")
    assert not same(source, source.replace("x)", "y)").replace("self, x", "self, y"))
    assert write(source).network == write(source).recipe


def test_simplified_keeps_what_is_read() -> None:
    source = "from typing import NamedTuple\nclass P(NamedTuple):\n    a: int\n    b: int = 2\n"
    assert "a: int" in ast.unparse(simplified(ast.parse(source)))
    plain = ast.unparse(
        simplified(ast.parse("class P:\n    a: int\n    b: int = 2\ndef f(x: int) -> int:\n    'doc'\n    pass"))
    )
    assert plain == "class P:\n    b = 2\n\ndef f(x):\n    pass"


def test_bindings() -> None:
    code = "a = b = 1\nfor c, (d, *e) in f: pass\nwith g as h: import i.j, k as l"
    code += "\nq = [m for m in n if (o := m)]\ndef p(z): y = 1"
    assert set(bindings(ast.parse(code).body)) == set("abcdehilopq")
    assert set(bindings(ast.parse("global a\na = 1\nb = 2").body)) == {"b"}


def test_facts() -> None:
    facts = facts_of(ast.parse("import torch\nimport torch.nn as nn\nA = 1\nB = f()\nclass Net(nn.Module): pass"))
    assert facts.imports == {"torch": "torch", "nn": "torch.nn"} and set(facts.values) == {"A"}
    assert len(facts.effects) == 1 and not facts.frozen


def _call(text: str) -> ast.Call:
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return node.value


def test_bind() -> None:
    def shown(found: dict[str, ast.expr] | None) -> Any:
        return found and {name: ast.unparse(value) for name, value in found.items()}

    assert shown(bind(_call("f(1, c=3)"), ["a", "b", "c"])) == {"a": "1", "c": "3"}
    for wrong in ("f(*x)", "f(**x)", "f(1, a=2)", "f(1, 2, 3, 4)", "f(z=1)"):
        assert bind(_call(wrong), ["a", "b", "c"]) is None
    assert list(bind(_call("f(z=1, y=2, b=3)"), ["a", "b"], more=True) or ()) == ["b", "y", "z"]


def test_order_of_evaluation() -> None:
    call = _call("f(b=g(), a=h())")
    assert not keep_order(call, [call.keywords[1].value, call.keywords[0].value])
    call = _call("f(b=g(), a=1)")
    assert keep_order(call, [call.keywords[1].value, call.keywords[0].value])
    assert without_effect(ast.parse("prm.get('lr', int(3))")) and not without_effect(ast.parse("f(x)"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * 3 + 1", 7),
        ("-(1 / 2)", -0.5),
        ("7 // 2", 3),
        ("2 ** 10", 1024),
        ("1 / 0", None),
        ("2 ** 9999", None),
        ("True + 1", None),
        ("'a' + 'b'", None),
        ("x", None),
    ],
)
def test_constants(text: str, value: float | None) -> None:
    found = constant(ast.parse(text, mode="eval").body)
    assert (found.value if found else None) == value
    assert found is None or type(found.value) is type(value)


def test_a_decorated_parent_keeps_the_attributes_of_its_children() -> None:
    family = (
        "import functools\n@functools.total_ordering\nclass A(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.one = nn.ReLU()\n"
        "class B(A):\n    def forward(self, x):\n        self.one = self.one or x\n        return self.one(x)\n"
    )
    source = net(before=family, init="self.b = B()", forward="return self.b(x)")
    renamed = source.replace(
        "self.one = self.one or x\n        return self.one", "self.two = self.two or x\n        return self.two"
    )
    assert renamed != source and not same(source, renamed)


def test_a_global_name_is_not_the_local_one_around_it() -> None:
    source = net(forward="N = x\ndef f():\n    global N\n    return N\nreturn f() + N")
    assert same(source, source.replace("N = x", "M = x").replace("f() + N", "f() + M"))
