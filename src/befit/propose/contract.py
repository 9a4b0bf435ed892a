"""The form in which a network is proposed: one Python file with a class `Net`, as in LEMUR's collection of networks.

Two tracks share it. In the *network* track befit trains, and only `Net.__init__` and `forward` count. In the *recipe* track
the file brings its own training too: `train_setup`, `learn` and `supported_hyperparameters`. The order and names of the
parameters are those that LEMUR's evaluator calls with (github.com/ABrain-One/nn-dataset), so its files run here as they are.

`Contract` below is the contract itself: `contract_text` prints its signatures and docstrings for a prompt, and the evaluator
calls by them, so that what a model is told and what is called cannot drift apart.
"""

import ast
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from befit.errors import BadProposal

NET = "Net"
"""Name of the class that a file must define."""

HYPERPARAMETERS = "supported_hyperparameters"
"""Name of the module-level function of the recipe track."""

LARGEST = 200_000
"""Characters of source above which a file is refused unread: reading it would take seconds, and one without end minutes."""


class Contract:
    """What a class `Net(torch.nn.Module)` must offer. Nothing here runs: the bodies are the documentation."""

    def __init__(self, in_shape: tuple, out_shape: tuple, prm: dict, device: Any) -> None:
        """in_shape is (N, C, H, W): N images in a batch, C channels, H x W pixels; out_shape is (classes,); prm holds the
        value of each hyper-parameter by name; device is a torch.device. Call super().__init__() first.
        """

    def forward(self, x: Any) -> Any:
        """x is a float tensor (N, C, H, W), for any N; returns logits (N, classes)."""

    def train_setup(self, prm: dict) -> None:
        """Sets self.criteria, a tuple with the loss, and self.optimizer."""

    def learn(self, train_data: Iterable[tuple[Any, Any]]) -> None:
        """Trains for one epoch; train_data yields (images (N, C, H, W), labels (N,))."""


def supported_hyperparameters() -> set:
    """Returns the names of the keys of prm that the file reads, such as {'lr', 'momentum'}; values lie in [0, 1]."""
    return set()


NETWORK_METHODS = ("__init__", "forward")
RECIPE_METHODS = ("train_setup", "learn")


def contract_text(*, recipe: bool = False) -> str:
    """The contract for a prompt: signatures and what they mean, taken from `Contract` itself."""
    methods = NETWORK_METHODS + (RECIPE_METHODS if recipe else ())
    lines = ["import torch", "from torch import nn", ""]
    if recipe:
        lines += [*_stub(supported_hyperparameters, ""), ""]
    lines.append(f"class {NET}(nn.Module):")
    for name in methods:
        lines += [*_stub(vars(Contract)[name], "    "), ""]
    return "\n".join(lines).rstrip() + "\n"


def _stub(function: Callable[..., Any], indent: str) -> list[str]:
    """Its `def` line without annotations, and its docstring as comments."""
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    shown = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    said = inspect.cleandoc(function.__doc__ or "").splitlines()
    return [f"{indent}def {function.__name__}{shown}:", *(f"{indent}    # {line}" for line in said), f"{indent}    ..."]


def parse(source: str, *, recipe: bool = False) -> ast.Module:
    """The syntax tree of a proposal; `recipe` if it must bring its own training.

    Raises:
        BadProposal: Larger than `LARGEST` (reason "too-large"), not Python ("parse"), or without a class `Net` at the top or
            without its training ("contract").
    """
    if len(source) > LARGEST:
        raise BadProposal(f"{len(source):,} characters of code; at most {LARGEST:,}", reason="too-large")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash that escapes nothing, which models write often
            tree = ast.parse(source)
    except SyntaxError as error:
        where = "" if error.lineno is None else f" in line {error.lineno}"  # a null byte has none
        raise BadProposal(f"not Python: {error.msg}{where}", reason="parse") from None
    except ValueError as error:  # a null byte
        raise BadProposal(f"not Python: {error}", reason="parse") from None
    except (RecursionError, MemoryError):
        raise BadProposal("nested too deeply to be read", reason="parse") from None
    if not any(isinstance(node, ast.ClassDef) and node.name == NET for node in tree.body):
        raise BadProposal(
            f"no class {NET} at the top of the file; expected class {NET}(nn.Module) with "
            f"__init__{inspect.signature(Contract)} and forward(self, x)",
            reason="contract",
        )
    if recipe:
        _require_recipe(tree)
    return tree


def _require_recipe(tree: ast.Module) -> None:
    """The training may stand in any class of the file, which `Net` then inherits."""
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for name, like in {
        **{name: vars(Contract)[name] for name in RECIPE_METHODS},
        HYPERPARAMETERS: supported_hyperparameters,
    }.items():
        if name not in defined:
            raise BadProposal(f"no {name}; expected {_stub(like, '')[0].removesuffix(':')}", reason="contract")
