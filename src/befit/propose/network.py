"""A proposal's text as a network: the file is run here and now, and its `Net` is made as the contract says.

For processes that may run such code: those of the sandbox, and tests of code that befit wrote itself. The gate and the
training make a network by the same call, so that what was let through is what is trained.
"""

import sys
import warnings
import zlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from befit.errors import TrialFailed
from befit.propose.contract import HYPERPARAMETERS, NET
from befit.propose.sandbox.candidate import SOURCE_NAME

PRM: Mapping[str, float] = {"lr": 0.01, "momentum": 0.9, "dropout": 0.2, "batch": 64, "epoch": 8}
"""Values of the hyper-parameters that LEMUR's files know by name, where nobody says others; the network track reads `dropout`."""


class Hyperparameters(dict[str, Any]):
    """Values for the names that a file declares; for any name where it declares none.

    A name that nobody gave a value has a number between 0 and 1 of its own, so that a network that reads another
    hyper-parameter has another graph.
    """

    def __init__(self, declared: Iterable[str] | None, given: Mapping[str, Any] = PRM) -> None:
        super().__init__(given)
        self._open = declared is None
        for name in declared or ():
            self.setdefault(name, _value(name))

    def __missing__(self, name: str) -> Any:
        if self._open:
            return _value(name)
        raise KeyError(f"{name!r} is not in what {HYPERPARAMETERS}() returns: {sorted(self)}")


def _value(name: str) -> float:
    return round(0.1 + 0.8 * (zlib.crc32(name.encode()) % 997) / 997, 4)


def run(source: str, arguments: Mapping[str, Any] | None = None) -> ModuleType:
    """Run the source as a module named `candidate`, which finds `arguments` by that name."""
    module = ModuleType("candidate")
    module.__dict__["arguments"] = dict(arguments or {})
    sys.modules["candidate"] = module  # where dataclasses and pickle look for the module of a class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a backslash that escapes nothing, which models write often
        code = compile(source, SOURCE_NAME, "exec", dont_inherit=True)
    exec(code, module.__dict__)
    return module


class Maker:
    """A file that has been run, and makes its network on any device."""

    def __init__(self, source: str, arguments: Mapping[str, Any]) -> None:
        """Run the file. Whatever it raises passes.

        Args:
            source: Defines `Net`, and perhaps `supported_hyperparameters`.
            arguments: in_shape (N, channels, height, width), out_shape (classes,), prm (hyper-parameters).

        Raises:
            TrialFailed: There is no class `Net` (reason "invalid").
        """
        names = vars(run(source))
        if NET not in names:
            raise TrialFailed(f"there is no class {NET} after the file has run", reason="invalid")
        self._class = names[NET]
        self._shapes = tuple(arguments["in_shape"]), tuple(arguments["out_shape"])
        self.prm = Hyperparameters(names[HYPERPARAMETERS]() if HYPERPARAMETERS in names else None, arguments["prm"])

    def __call__(self, device: Any) -> Any:
        """`Net` with its weights on a torch.device."""
        with device:
            return self._class(*self._shapes, self.prm, device)
