"""Changes to a network's source as language models get them wrong, and changes that only look alarming.

Whether a changed network can be trained is not said here: that is found out by training it.
"""

import ast
from collections.abc import Callable, Iterator
from random import Random

import numpy as np

from befit.propose.fitting import fit
from befit.propose.grammar import Bounds, draw
from befit.propose.rendering import Style, render
from befit.propose.sandbox.answers import Expected
from befit.propose.sandbox.box import Result, Sandbox
from befit.propose.sandbox.limits import Limits

CLASSES = 10
PRM = {"lr": 0.01, "momentum": 0.9}

Mutation = Callable[[ast.Module, Random], bool]
"""Changes a tree where it applies, and says whether it did."""


def mutated(source: str, kind: str, random: Random) -> str | None:
    """The source after a mutation of that kind; None where it does not apply."""
    tree = ast.parse(source)
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n" if MUTATIONS[kind](tree, random) else None


def _calls(tree: ast.Module, *names: str) -> list[ast.Call]:
    """Calls of functions or classes whose last name is one of these."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")) in names
    ]


def _method(tree: ast.Module, name: str) -> ast.FunctionDef:
    net = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Net")
    return next(node for node in net.body if isinstance(node, ast.FunctionDef) and node.name == name)


def argument(names: tuple[str, ...], place: int, template: str) -> Mutation:
    """Replace an argument of one call: `old` in the template stands for what is there."""

    def change(tree: ast.Module, random: Random) -> bool:
        calls = [call for call in _calls(tree, *names) if len(call.args) > place]
        if not calls:
            return False
        call = random.choice(calls)
        text = template.replace("old", f"({ast.unparse(call.args[place])})")
        call.args[place] = ast.parse(text, mode="eval").body
        return True

    return change


def called(names: tuple[str, ...], template: str) -> Mutation:
    """Replace one call: `old` in the template stands for it."""

    def change(tree: ast.Module, random: Random) -> bool:
        calls = _calls(tree, *names)
        if not calls:
            return False
        call = random.choice(calls)
        made = ast.parse(template.replace("old", ast.unparse(call)), mode="eval").body
        for parent in ast.walk(tree):
            for field, value in ast.iter_fields(parent):
                if value is call:
                    setattr(parent, field, made)
                elif isinstance(value, list) and any(one is call for one in value):
                    value[:] = [made if one is call else one for one in value]
        return True

    return change


def at_start(*lines: str, method: str = "forward") -> Mutation:
    """Put statements before all others of a method; X stands for its first argument."""

    def change(tree: ast.Module, random: Random) -> bool:
        found = _method(tree, method)
        text = "\n".join(lines).replace("X", found.args.args[1].arg)
        after_super = 1 if method == "__init__" else 0
        found.body[after_super:after_super] = ast.parse(text).body
        return True

    return change


def at_end(template: str) -> Mutation:
    """Replace what forward returns: `old` in the template stands for it."""

    def change(tree: ast.Module, random: Random) -> bool:
        for node in ast.walk(_method(tree, "forward")):
            if isinstance(node, ast.Return) and node.value is not None:
                node.value = ast.parse(template.replace("old", ast.unparse(node.value)), mode="eval").body
        return True

    return change


def both(*changes: Mutation) -> Mutation:
    """All of them, if all apply."""
    return lambda tree, random: all(change(tree, random) for change in changes)


def top(text: str) -> Mutation:
    """Put statements before the classes."""

    def change(tree: ast.Module, random: Random) -> bool:
        tree.body[2:2] = ast.parse(text).body
        return True

    return change


def without_return(tree: ast.Module, random: Random) -> bool:
    body = _method(tree, "forward").body
    assert isinstance(body[-1], ast.Return) and body[-1].value is not None
    body[-1] = ast.Expr(body[-1].value)
    return True


def without_super(tree: ast.Module, random: Random) -> bool:
    _method(tree, "__init__").body.pop(0)
    return True


def misspelt(tree: ast.Module, random: Random) -> bool:
    """A name or attribute that is used where nothing of that name is."""
    inside = [*ast.walk(_method(tree, "forward")), *ast.walk(_method(tree, "__init__"))]
    used = [node for node in inside if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)]
    node = random.choice(used)
    if isinstance(node, ast.Name):
        node.id += "_"
    else:
        node.attr += "_" if node.attr != "softmax" else "es"
    return True


CONV, POOL = ("Conv2d",), ("MaxPool2d", "AvgPool2d")

MUTATIONS: dict[str, Mutation] = {
    # mostly broken
    "channels in": argument((*CONV, "Block"), 0, "old + 1"),
    "batch for channels": argument((*CONV, "Block"), 0, "5"),
    "channels out": argument((*CONV, "Block"), 1, "old + 4"),
    "linear in": argument(("Linear",), 0, "old * 2"),
    "linear out": argument(("Linear",), 1, "old - 1"),
    "groups": argument(("GroupNorm",), 0, "old + 1"),
    "group of conv": called(CONV, "nn.Conv2d(8, 16, 3, groups=3)"),
    "norm of another width": argument(("BatchNorm2d", "BatchNorm1d", "LayerNorm"), 0, "old + 1"),
    "norm of other dimensions": called(("BatchNorm2d", "LayerNorm"), "nn.BatchNorm1d(8)"),
    "no flatten": called(("Flatten",), "nn.Identity()"),
    "flatten all": called(("Flatten",), "nn.Flatten(0)"),
    "no global pool": called(("AdaptiveAvgPool2d",), "nn.Identity()"),
    "another global pool": called(("AdaptiveAvgPool2d",), "nn.AdaptiveAvgPool2d(2)"),
    "kernel too large": called(CONV, "nn.Conv2d(3, 16, 51)"),
    "pool too large": argument(POOL, 0, "48"),
    "pooled away": called((*POOL, "AdaptiveAvgPool2d"), "nn.Sequential(nn.MaxPool2d(8), nn.MaxPool2d(8))"),
    "mean of too much": at_end("(old).mean(-1)"),
    "one class more": at_end("torch.cat([old, (old)[:, :1]], 1)"),
    "mixed cat": at_start("X = torch.cat([X, X[:, :, 1:]], 1)"),
    "more channels": at_start("X = torch.cat([X, X], 1)"),
    "transposed": at_start("X = X.transpose(1, 2)"),
    "no batch": at_start("X = X[0]"),
    "batch fixed": both(
        at_start("self.images = in_shape[0]", method="__init__"), at_start("X = X.reshape(self.images, *X.shape[1:])")
    ),
    "batch remembered": at_start(
        "if not hasattr(self, 'shift'):", "    self.shift = torch.zeros(X.shape[0], 1, 1, 1)", "X = X + self.shift"
    ),
    "no return": without_return,
    "no super": without_super,
    "misspelt": misspelt,
    "unknown layer": called(("ReLU", "GELU", "SiLU", "LeakyReLU", "Hardswish"), "nn.Activation()"),
    "unknown keyword": called(CONV, "nn.Conv2d(3, 16, 3, pad=1)"),
    "second input": lambda tree, random: not _method(tree, "forward").args.args.append(ast.arg(arg="mask")),
    "detached": at_end("(old).detach()"),
    "in place": at_end("torch.sigmoid(old).add_(1)"),
    "tuple": at_end("(old, X)".replace(", X", ",")),
    "heads": argument(("unflatten",), 1, "(3, 5, -1)"),
    "unknown hyper-parameter": at_start("self.rate = prm['no_such_rate']", method="__init__"),
    "batch of one for statistics": at_end("nn.BatchNorm1d(7)(old)"),
    # mostly sound
    "dead layer": at_start("self.unused = nn.Linear(3, 5)", method="__init__"),
    "sign": at_start("X = X if X.mean() > 0 else -X"),
    "item": at_start("X = X / (1 + X.abs().mean().item())"),
    "numpy": both(top("import numpy as np"), at_start("X = X * float(np.sqrt(X.detach().cpu().numpy().var() + 1))")),
    "mask": at_start("X = X.masked_fill(X[X > 0].sum() > 0, 0.5)"),
    "rates": at_start("self.rates = [one.item() for one in torch.linspace(0, 1, 3)]", method="__init__"),
    "device": at_start("assert device.type in ('cpu', 'cuda')", method="__init__"),
    "built when run": at_start(
        "if not hasattr(self, 'late'):", "    self.late = nn.Conv2d(X.shape[1], X.shape[1], 1)", "X = self.late(X)"
    ),
    "noise": at_start("X = X + 0.1 * torch.randn_like(X) if self.training else X"),
    "buffer": both(
        at_start("self.register_buffer('scale', torch.tensor([2.0]))", method="__init__"), at_start("X = X * self.scale")
    ),
    "moved": at_start("X = X.to(self.device).float()"),
    "module list": at_start("self.more = nn.ModuleList([nn.Identity() for _ in range(2)])", method="__init__"),
    "constants": both(top("import math\nSCALE = math.sqrt(2)"), at_start("X = X * SCALE")),
    "checked": at_start("assert X.dim() == 4, 'images are expected'"),
    "checkpoint": both(
        top("from torch.utils.checkpoint import checkpoint"), at_end("checkpoint(lambda z: z * 1.0, old, use_reentrant=False)")
    ),
    "log": at_end("torch.log_softmax(old, dim=1)"),
    "autocast off": at_start("X = X.contiguous(memory_format=torch.channels_last)"),
}  # fmt: skip


def sources(count: int, seed: int) -> Iterator[tuple[str, str, tuple[int, int, int, int]]]:
    """Generated networks, all but each fourth with one mutation: (source, kind, in_shape).

    The kinds take turns; images are CIFAR's and those of the digits.
    """
    random, kinds = Random(seed), [*MUTATIONS]
    made = 0
    while made < count:
        kind = "none" if made % 4 == 0 else kinds[(made - made // 4 - 1) % len(kinds)]
        shape = random.choice(((4, 3, 32, 32), (4, 1, 8, 8)))
        found = None
        while found is None:
            style = Style(seed=random.randrange(2**31), remarks=0.1, long_super=random.random() < 0.5)
            source = render(draw(random, Bounds(in_shape=shape, params=100_000)), style)
            found = source if kind == "none" else mutated(source, kind, random)
        yield found, kind, shape
        made += 1


def trained(sandbox: Sandbox, source: str, in_shape: tuple[int, int, int, int]) -> Result:
    """The truth: a pass over a few images as a run trains, then logits for images that were not trained on."""
    random = np.random.default_rng(0)
    images = random.normal(size=(2 * in_shape[0] + 3 + 6, *in_shape[1:])).astype("float32")
    channels = in_shape[1]
    arguments = {
        "in_shape": in_shape,
        "out_shape": (CLASSES,),
        "prm": PRM,
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
    }
    training = {"epochs": 1, "batch": in_shape[0], "lr": PRM["lr"]}
    return sandbox.run(
        fit,
        source=source,
        arguments={**arguments, "training": training, "recipe": False, "keep": False, "seed": 0, "device": "cpu"},
        files={
            "train_images": images[:-6],
            "train_labels": np.arange(len(images) - 6) % CLASSES,
            "validation_images": images[-6:],
        },
        expects={"validation": Expected(shape=(6, CLASSES), finite=False)},
        limits=Limits(wall_seconds=60),
    )
