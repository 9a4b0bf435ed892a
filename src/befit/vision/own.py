"""A network of one's own as a search space: a class or function whose keyword defaults are `Choice`s.

    class Net(nn.Module):
        def __init__(self, task, width=Choice(16, 32), mixer=Choice("conv", "pool"), kernel=Choice(3, 5, when={"mixer": "conv"})):
            ...

    blueprint = own(Net)

The choices are those of the signature, in its order. A parameter named `task` receives the `ImageTask` (sizes and classes),
other defaults stay as they are, and a choice that is closed in an arch arrives as None. Nothing else is asked of the network
but that it turns images (B, channels, height, width) into logits (B, classes).
"""

import functools
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from befit.arch.space import Arch, Choice, Space
from befit.arch.task import ImageTask
from befit.cost.images import Counts
from befit.errors import IllegalArch, TrialFailed
from befit.vision.blueprint import Blueprint
from befit.vision.count import count_module

UNFIT = (RuntimeError, ValueError, AssertionError, ArithmeticError)
"""What a network raises for options that do not go together: a shape that does not match, heads that do not divide a width."""


def own(build: Callable[..., nn.Module], *, legal: Callable[[Arch], bool] | None = None) -> Blueprint:
    """The blueprint of a user's class or function; `legal` may refuse combinations.

    Raises `IllegalArch` for a signature without choices, or with parameters that nothing can be given to. Building or
    counting an arch whose options do not go together raises `TrialFailed` (reason "invalid").
    """
    name = _name(build)
    choices, wants_task = _read(build, name)
    made = _Own(build=build, name=name, choices=tuple(choices), wants_task=wants_task)
    return Blueprint(name=name, space=Space(choices, legal=legal), build=made.network, count=made.counts)


@dataclass(frozen=True, kw_only=True)
class _Own:
    """The user's network with what its signature says; pickled by the name under which another process imports it."""

    build: Callable[..., nn.Module]
    name: str
    choices: tuple[str, ...]
    wants_task: bool

    def network(self, arch: Arch, task: ImageTask) -> nn.Module:
        try:
            return self.made(arch, task)
        except IllegalArch:
            raise
        except UNFIT as error:
            raise self.unfit(arch, error) from error

    def made(self, arch: Arch, task: ImageTask) -> nn.Module:
        """The network, or whatever the user's code raises."""
        told: dict[str, Any] = {name: arch.get(name) for name in self.choices}
        network = self.build(**told, **({"task": task} if self.wants_task else {}))
        if not isinstance(network, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance] - users need not check types
            raise IllegalArch(f"{self.name}: expected a torch.nn.Module, got {type(network).__name__}")
        return network

    def counts(self, arch: Arch, task: ImageTask) -> Counts:
        return _counts(self, arch, task)

    def unfit(self, arch: Arch, error: Exception) -> TrialFailed:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return TrialFailed(f"{self.name}: cannot build or run {arch.to_json()}: {reason}", reason="invalid")

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            pickle.dumps(self.build)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise IllegalArch(
                f"{self.name}: other processes cannot import it ({error}); "
                "define it at the top level of a module, or use one worker"
            ) from error
        return _again, (self.build, self.name, self.choices, self.wants_task)


def _again(build: Callable[..., nn.Module], name: str, choices: tuple[str, ...], wants_task: bool) -> _Own:
    return _Own(build=build, name=name, choices=choices, wants_task=wants_task)


@functools.lru_cache(maxsize=20_000)
def _counts(made: _Own, arch: Arch, task: ImageTask) -> Counts:
    """Counted once for each arch: a searcher asks for the same ones again and again."""
    try:
        return count_module(functools.partial(made.made, arch, task), task)
    except IllegalArch:
        raise
    except UNFIT as error:
        raise made.unfit(arch, error) from error


def _name(build: Callable[..., nn.Module]) -> str:
    if isinstance(build, functools.partial):
        return _name(build.func)
    return build.__name__ if inspect.isclass(build) or inspect.isroutine(build) else type(build).__name__


def _read(build: Callable[..., nn.Module], name: str) -> tuple[dict[str, Choice], bool]:
    """The choices of a signature, and whether it has a `task`."""
    choices, wants_task = dict[str, Choice](), False
    for parameter in inspect.signature(build).parameters.values():
        kind, default = parameter.kind, parameter.default
        by_keyword = kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if isinstance(default, Choice) and by_keyword:
            choices[parameter.name] = default
        elif parameter.name == "task" and by_keyword:
            wants_task = True
        elif default is inspect.Parameter.empty or isinstance(default, Choice):
            raise IllegalArch(
                f"{name}: nothing can be given to its parameter {str(parameter)!r}; expected keyword parameters with a "
                "Choice or another default, and `task` for the image sizes and classes"
            )
    if not choices:
        raise IllegalArch(
            f"{name}: no default of its parameters is a Choice; write for example width=Choice(16, 32, 64)"
        )
    return choices, wants_task
