"""The gate, step by step, and against the truth: what it refuses does not train, what it lets through does."""

import re
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from befit.budget import Budget
from befit.errors import BadBudget
from befit.propose.fingerprint import keys_of
from befit.propose.gate import Gate
from befit.propose.proposal import STAGES, Known, Proposal, Verdict
from befit.propose.sandbox.box import Sandbox
from befit.propose.sandbox.limits import MIB, Limits
from befit.propose.sandbox.tasks import TINY
from propose.mutations import CLASSES, PRM, sources, trained
from propose.pairs import BASE

SHAPE = (4, 3, 32, 32)


def unseen(rung: str, key: str) -> None:
    """Nothing was seen."""


def check(sandbox: Sandbox, source: str, **changed: object) -> Verdict:
    settings: dict = {"in_shape": SHAPE, "classes": CLASSES, "prm": PRM, **changed}
    seen = settings.pop("seen", unseen)
    return Gate(sandbox, **settings).check(source, seen)


def test_it_refuses_what_does_not_train_and_nothing_else(sandbox: Sandbox) -> None:
    """Each kind of mutation and as many sound networks; the truth is real training on the CPU."""
    found, reasons = Counter[bool](), Counter[str]()
    for source, kind, shape in sources(60, seed=5):
        verdict, result = check(sandbox, source, in_shape=shape), trained(sandbox, source, shape)
        assert verdict.passed == result.ok, (kind, verdict.said, result.message, source)
        assert verdict.passed == (verdict.said == "") and "\n" not in verdict.said
        found[verdict.passed] += 1
        reasons[verdict.reason] += 1
    assert min(found.values()) > 20 and set(reasons) == {"", "build"}


def test_what_is_known_of_a_network_that_passes(sandbox: Sandbox) -> None:
    verdict = check(sandbox, TINY)
    assert (
        verdict.passed and verdict.stage == STAGES[7] and verdict.reason == verdict.said == "" and verdict.seconds > 0
    )
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)
    assert verdict.params == sum(one.numel() for layer in layers for one in layer.parameters())
    assert verdict.flops == 2 * (32 * 32 * 4 * 3 * 9 + 4 * CLASSES)
    assert verdict.keys == keys_of(TINY)
    assert re.fullmatch("[0-9a-f]{32}", verdict.graph)
    told_more = check(sandbox, TINY, in_shape=(64, *SHAPE[1:]))
    assert (told_more.graph, told_more.flops) == (verdict.graph, verdict.flops), "the batch is no part of the network"


def tiny(*changes: tuple[str, str]) -> str:
    source = TINY
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


REFUSED = {
    "def f(:": ("returned", "parse", "not Python: .* in line 1"),
    "x = 1": ("returned", "contract", "no class Net at the top of the file; expected class Net"),
    "import os" + TINY: ("parsed", "policy", "line 1: os is not allowed"),
    tiny(("nn.Linear(4,", "nn.Linear(5,")): (
        "new-tree",
        "build",
        "cannot be built and run: line 10: RuntimeError: .*5",
    ),
    tiny(("out_shape[0]", "7")): (
        "new-tree",
        "build",
        r"run: for 2 images the output is \(2, 7\), expected .* \(2, 10\)",
    ),
    tiny(("return self.body(x)", "pass")): ("new-tree", "build", "run: forward gave NoneType, expected logits"),
    tiny(("return self.body(x)", "return 3")): ("new-tree", "build", "forward gave int"),
    tiny(("return self.body(x)", "return self.body(x).detach()")): ("new-tree", "build", "nothing to train"),
    tiny(("class Net(nn.Module)", "class Net")): ("new-tree", "build", ""),
    tiny(("        return", "        while True: pass\n        return")): ("new-tree", "timeout", "ended with timeout"),
    tiny(("        return", "        x = [0] * 10**9\n        return")): ("new-tree", "out-of-memory", "out-of-memory"),
    tiny(("        return", "        raise SystemExit(0)\n        return")): ("new-tree", "crash", "SystemExit"),
    tiny(("        return", "        print('a' * 3000000)\n        return")): (
        "new-tree",
        "output",
        "printed more than",
    ),
    "class Net: ...\ndel Net.__doc__, Net\n": ("parsed", "policy", "work at the top"),
}


@pytest.mark.parametrize("source", REFUSED, ids=[f"{stage} {reason}" for stage, reason, _ in REFUSED.values()])
def test_every_refusal_has_its_stage_its_code_and_its_line(sandbox: Sandbox, source: str) -> None:
    stage, reason, said = REFUSED[source]
    limits = Limits(wall_seconds=2 if reason == "timeout" else 10, memory_bytes=1024 * MIB)
    verdict = check(sandbox, source, limits=limits)
    assert (verdict.stage, verdict.reason) == (stage, reason), verdict
    assert re.search(said, verdict.said) and "\n" not in verdict.said and not verdict.passed
    assert (verdict.keys is None) == (stage == "returned")
    assert verdict.params is None and verdict.graph == ""


def test_a_network_that_was_seen_costs_nothing(sandbox: Sandbox) -> None:
    asked = list[tuple[str, str]]()
    known = Known(number=3, accuracy=0.712)

    def by_tree(rung: str, key: str) -> Known | None:
        asked.append((rung, key))
        return known if rung == "tree" else None

    renamed = tiny(("self.body", "self.layers"))
    verdict = check(sandbox, renamed, seen=by_tree)
    assert (verdict.stage, verdict.reason, verdict.same_as) == ("allowed", "seen-tree", known)
    assert asked == [("tree", keys_of(TINY).tree)] and verdict.params is None
    assert "proposal 3: 71.2% accuracy; propose one that computes something else" in verdict.said

    by_graph = check(
        sandbox,
        tiny(("        super().__init__()\n", "        super().__init__()\n        self.dead = nn.Linear(2, 2)\n")),
    )
    graph = check(sandbox, TINY).graph
    assert by_graph.graph == graph, "a layer that is not used changes the tree alone"
    failed = Known(number=4, accuracy=None, reason="timeout")
    verdict = check(sandbox, TINY, seen=lambda rung, key: failed if (rung, key) == ("graph", graph) else None)
    assert (verdict.stage, verdict.reason, verdict.same_as) == ("in-budget", "seen-graph", failed)
    assert "no score (timeout)" in verdict.said and verdict.params and verdict.graph == graph


def test_budget(sandbox: Sandbox) -> None:
    plain = check(sandbox, TINY)
    assert plain.params and plain.flops
    for text, over in {
        f"params<={plain.params}": False,
        f"params<={plain.params - 1}": True,
        f"flops<={plain.flops}, weights<={plain.params * 4}B": False,
        f"macs<={plain.flops // 2 - 1}": True,
        f"weights<={plain.params * 4 - 1}B": True,
    }.items():
        verdict = check(sandbox, TINY, budget=Budget.parse(text))
        assert (verdict.stage, verdict.reason) == (("built", "budget") if over else ("new-graph", "")), text
        assert ("make the network smaller" in verdict.said) == over and verdict.params == plain.params
    for text in ("latency<=3ms", "params<=50%"):
        with pytest.raises(BadBudget, match=r"bound params|no parent"):
            check(sandbox, TINY, budget=Budget.parse(text))


RECIPE_CHANGES = {
    "": "",
    "lr=prm['lr']": "lr=prm['rate']",
    "self.criteria[0](self(": "self.criteria[1](self(",
    "self(inputs.to(self.device))": "self(inputs.to(self.device))[:, :1, 0]",
    "def learn(": "def lern(",
}


@pytest.mark.parametrize("old", RECIPE_CHANGES)
def test_the_recipe_track(sandbox: Sandbox, old: str) -> None:
    """A file's own training must run, and counts for being new; in the network track it is not looked at."""
    assert old in BASE
    source = BASE.replace(old, RECIPE_CHANGES[old]) if old else BASE
    asked = dict[str, str]()
    verdict = check(sandbox, source, recipe=True, seen=lambda rung, key: asked.update({rung: key}))
    assert verdict.passed == (old == ""), verdict
    assert verdict.reason == ("" if not old else "contract" if "def" in old else "build")
    keys = keys_of(source)
    if verdict.passed:
        assert asked == {"tree": f"{keys.tree}+{keys.recipe}", "graph": f"{verdict.graph}+{keys.recipe}"}
    assert check(sandbox, source).passed


LOOKS = "        if x.std() > 0.5:\n            x = x * 2\n        return"


def test_networks_that_look_at_numbers(sandbox: Sandbox) -> None:
    """They have no graph, and are nothing worse."""
    verdict = check(sandbox, tiny(("        return", LOOKS)))
    assert verdict.passed and verdict.graph == "" and verdict.params == check(sandbox, TINY).params
    built = tiny(("        self.body", "        self.rates = torch.linspace(0, 1, 3).tolist()\n        self.body"))
    verdict = check(sandbox, "import torch" + built)
    assert verdict.passed and verdict.graph == check(sandbox, TINY).graph
    broken = tiny(("        return", LOOKS), ("nn.Linear(4,", "nn.Linear(5,"))
    assert check(sandbox, broken).reason == "build"


LAYERS = {
    "lstm": ("nn.LSTM(32, 8, batch_first=True)", "self.made(x.mean(1))[0][:, -1]", 8),
    "attention": ("nn.MultiheadAttention(32, 4, batch_first=True)", "self.made(*[x.mean(1)] * 3)[0].mean(1)", 32),
    "encoder": ("nn.TransformerEncoderLayer(32, 4, 16, batch_first=True)", "self.made(x.mean(1)).mean(1)", 32),
    "weight norm": ("nn.utils.parametrizations.weight_norm(nn.Linear(32, 8))", "self.made(x.mean((1, 2)))", 8),
    "spectral norm": ("nn.utils.parametrizations.spectral_norm(nn.Linear(32, 8))", "self.made(x.mean((1, 2)))", 8),
    "fourier": ("nn.Identity()", "torch.fft.rfft2(x).abs().mean((1, 2))[:, :8]", 8),
    "script": ("nn.Identity()", "torch.einsum('bchw,bchv->bwv', x, x).softmax(-1).mean(1)", 32),
    "lazy": ("nn.LazyConv2d(8, 3)", "self.made(x).amax((2, 3))", 8),
    "sdpa": ("nn.Identity()", "F.scaled_dot_product_attention(x, x, x).mean((1, 2))", 32),
    "upsampling": ("nn.ConvTranspose2d(3, 8, 2, 2)", "F.interpolate(self.made(x), scale_factor=0.5).mean((2, 3))", 8),
    "vmap": ("nn.Linear(32, 8)", "torch.vmap(lambda one: self.made(one).sum((0, 1)))(x)", 8),
    "generator": ("nn.Identity()", "sum(x[:, :, k].mean(1) for k in range(4))", 32),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_every_kind(sandbox: Sandbox, name: str) -> None:
    """What trains passes, whichever operators of PyTorch it needs; FLOPs are those of PyTorch's counter."""
    made, forward, width = LAYERS[name]
    source = f"""
import torch
from torch import nn
import torch.nn.functional as F
class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.made = {made}
        self.head = nn.Linear({width}, out_shape[0])
    def forward(self, x):
        return self.head({forward})
"""
    verdict, result = check(sandbox, source), trained(sandbox, source, SHAPE)
    assert result.ok, result.message
    assert verdict.passed, verdict.said
    if name in ("lstm", "attention", "encoder", "upsampling", "lazy"):
        assert verdict.graph
    spaces: dict = {}
    exec(source, spaces)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network, images = spaces["Net"](SHAPE, (CLASSES,), PRM, torch.device("meta")), torch.zeros(2, *SHAPE[1:])
        network(images)  # lazy layers have no parameters before
        before = counter.get_total_flops()
        network.train()(images)
    assert verdict.flops == (counter.get_total_flops() - before) // 2 > 0


def test_rows_of_proposals() -> None:
    row = Proposal(arm="shots=3", dataset="digits", seed=1, number=7)
    assert row.key == ("shots=3", "digits", 1, 7) and row.stage == STAGES[0] and not row.done
    assert len(set(STAGES)) == 10
    assert [stage for stage in STAGES if Verdict(stage=stage).passed] == ["new-graph"]
