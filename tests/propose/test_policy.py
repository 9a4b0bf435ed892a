"""What the lint refuses, with what it says, and that it lets through how networks are really written."""

import ast
import re
from random import Random

import pytest

from befit.errors import BadProposal
from befit.propose.contract import contract_text
from befit.propose.grammar import draw
from befit.propose.policy import MODULES, REFUSED, lint
from befit.propose.rendering import Style, render
from propose.pairs import BASE, PAIRS


def refused(source: str, *, recipe: bool = True) -> str:
    """What is said; empty if it is let through."""
    said = list[BadProposal]()
    try:
        lint(ast.parse(source), recipe=recipe)
    except BadProposal as error:
        said.append(error)
    assert all(error.reason == "policy" and "\n" not in str(error) for error in said)
    return str(said[0]) if said else ""


@pytest.mark.parametrize(
    "source",
    [
        "import torch, math, functools as ft\nimport torch.nn as nn\nimport torch.nn.functional as F",
        "from torch import nn, Tensor\nfrom torch.nn import init, functional\nfrom torch.nn import *",
        "import torch.utils.checkpoint as cp\nfrom torch.nn.modules.utils import _pair\nfrom torch.jit.annotations import List",
        "from torch.optim.lr_scheduler import _LRScheduler",
        "from collections import OrderedDict",
        "import numpy as np\nrate = np.linspace(0, 1, 5)\nfrom einops import rearrange",
        "torch.manual_seed(0)\ntorch.backends.cudnn.benchmark = True",
        "def f(input, open=True):\n    return input(open)",
        "x = torch.compiler\ny = torch.loading\nself_ = getattr(torch, 'relu')",
        "class A:\n    def load(self): self.load(); self.save(self.__class__.__name__, self.__dict__)",
        "try:\n    import einops\nexcept ImportError:\n    einops = None",
        "if __name__ == '__main__':\n    import os, torchinfo\n    print(open('x'))\n    for x in y: pass",
        "from befit.propose.genome import describe",
        "net = torch.jit.is_scripting() or torch.cuda.is_available()",
        "import re\nre.compile('a').sub(b, c)\nmodel.eval()\nself.exec(3)",
        "NOTE = 'open eval __import__ os.system'",
    ],
)
def test_how_networks_are_written(source: str) -> None:
    assert refused(source) == ""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os", "line 1: os is not allowed: a network needs no files"),
        ("import torch\nimport os.path as p", "line 2: os.path is not allowed"),
        ("import socket", "importing socket is not allowed: import torch and"),
        ("import torchvision.models as m", "write the layers with torch.nn"),
        ("from torchvision import models", "write the layers with torch.nn"),
        ("from timm.models import create_model", "write the layers with torch.nn"),
        ("from . import other", "a relative import is not allowed: the network is one file"),
        ("from math import *", "name what is needed"),
        ("import torch\ntorch.hub.load('a', 'b')", "line 2: torch.hub.load is not allowed"),
        ("import torch as t\nt.load('x')", "torch.load is not allowed: weights are trained here"),
        ("from torch import save as keep", "torch.save is not allowed: befit keeps"),
        ("from torch.utils import cpp_extension", "torch.utils.cpp_extension is not allowed"),
        ("import torch.distributed as dist", "torch.distributed is not allowed"),
        ("from torch.multiprocessing import spawn", "training is in one process"),
        ("import torch\nf = torch._C._jit", "use what PyTorch documents"),
        ("import torch\ng = torch.compile(f)", "befit runs the network as it is"),
        ("import numpy as np\nnp.load('x')", "there are no files"),
        ("def f():\n    return open('x')", "line 2: open is not allowed"),
        ("f = eval", "eval is not allowed"),
        ("exec('1')", "exec is not allowed"),
        ("__import__('os')", "__import__ is not allowed"),
        ("globals()['x']", "globals is not allowed"),
        ("input()", "nobody to ask"),
        ("breakpoint()", "breakpoint is not allowed"),
        ("().__class__.__bases__[0]", "__bases__ is not allowed: call methods and functions by their plain names"),
        ("f.__globals__", "__globals__ is not allowed"),
        ("getattr(f, '__globals__')", "'__globals__' is not allowed"),
        ("x.__subclasses__()", "__subclasses__ is not allowed"),
        ("for i in range(3):\n    pass", "work at the top of the file is not allowed: put it into Net"),
        ("while True: pass", "work at the top"),
        ("with torch.no_grad():\n    x = 1", "work at the top"),
        ("from befit.propose.sandbox import box", "importing befit.propose.sandbox is not allowed"),
        ("if True:\n    import os", "os is not allowed"),
        ("class Net:\n    def __init__(self):\n        import subprocess", "a network starts no programs"),
    ],
)
def test_what_is_refused_and_why(source: str, said: str) -> None:
    assert said in refused(source), refused(source)


def test_every_path_that_is_refused_says_what_to_do_instead() -> None:
    for path, instead in REFUSED.items():
        said = refused(f"import {path}" if not path.endswith("_") else f"import {path}pytree")
        assert instead in said and re.match(r"line 1: .* is not allowed: ", said), path


def test_what_may_be_imported_is_there() -> None:
    """A module that is allowed and missing would be a trap; einops is a matter of the machine."""
    for name in sorted(MODULES - {"einops", "typing_extensions"}):
        __import__(name)


def test_the_grammar_and_the_contract_and_the_pairs_pass() -> None:
    random = Random(3)
    for _ in range(60):
        assert refused(render(draw(random), Style.draw(random))) == ""
    assert refused(BASE) == "" and refused(contract_text(recipe=True)) == ""
    allowed = [pair.name for pair in PAIRS for text in (pair.a, pair.b) if refused(text) == ""]
    assert len(allowed) > 1.9 * len(PAIRS), "the table of pairs is ordinary code"


def test_training_that_never_runs_is_not_looked_at() -> None:
    """In the network track befit trains; in the recipe track the file does."""
    source = "class Net:\n    def learn(self, data):\n        torch.save(self, open('x', 'w'))\n"
    source = "import torch\n" + source
    assert refused(source, recipe=False) == "" and "not allowed" in refused(source, recipe=True)
    other = source.replace("class Net", "class Other")
    assert "not allowed" in refused(other, recipe=False)
