"""Studies that take milliseconds: a small space, and evaluators that leave a file for every evaluation they finish.

They stand in a module of their own because worker processes import them by name, and import no torch.
"""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from befit.arch.space import Arch, Choice, Space
from befit.arch.task import ImageTask
from befit.cost.images import Counts
from befit.errors import TrialFailed
from befit.rundir import digest
from befit.search.spec import StudySpec
from befit.search.trial import Fidelity, Outcome, Report, TrialRecord

SPACE = Space(
    {
        "width": Choice(8, 16, 24, 32, 48, 64),
        "depth": Choice(1, 2, 3, 4),
        "mixer": Choice("conv", "pool"),
        "kernel": Choice(3, 5, 7, when={"mixer": "conv"}),
    }
)
SMALL = {"population": 3, "sample": 2}
"""Settings of evolution with which it begins to mutate after three trials."""
TASK = ImageTask(channels=1, height=8, width=8, classes=10)


def value(arch: Arch) -> float:
    """Something to be found: wide and deep is good, kernels of 5 are best."""
    kernel = {3: 0.0, 5: 0.1, 7: 0.05}.get(int(arch.get("kernel", 0)), -0.1)
    return int(arch["width"]) / 128 + int(arch["depth"]) / 20 + kernel + 0.1


def counts(arch: Arch, task: ImageTask = TASK) -> Counts:
    params = int(arch["width"]) ** 2 * int(arch["depth"]) * int(arch.get("kernel", 1)) ** 2
    return Counts(params=params, macs=params * task.height * task.width, memory_bytes=params * 4)


def blueprint() -> Any:
    """As much of a blueprint as pricing looks at."""
    return SimpleNamespace(name="toy", space=SPACE, count=counts)


@dataclass(frozen=True)
class Toy:
    """Sleeps, reports three epochs, and leaves a file named by its arch."""

    folder: Path
    seconds: float = 0.02
    epochs: int = 3

    def __call__(self, arch: Arch, fidelity: Fidelity, report: Report) -> Outcome:
        self.folder.mkdir(exist_ok=True)
        for epoch in range(1, self.epochs + 1):
            time.sleep(self.seconds / self.epochs)
            report(epoch, value(arch) * epoch / self.epochs)
        (self.folder / f"{digest(arch.to_json())}-{uuid.uuid4().hex}").write_text(str(os.getpid()))
        return Outcome(value=value(arch), epochs=self.epochs, details={"pid": os.getpid()})


@dataclass(frozen=True)
class Gated:
    """A `Toy` whose evaluations after the first few wait for a file called `go`; each says when it has begun."""

    folder: Path
    first: int = 3
    """Evaluations that do not wait."""

    def __call__(self, arch: Arch, fidelity: Fidelity, report: Report) -> Outcome:
        done, begun = self.folder / "done", self.folder / "begun"
        begun.mkdir(exist_ok=True)
        own = uuid.uuid4().hex
        (self.folder / own).write_text(str(os.getpid()))
        (self.folder / own).replace(begun / f"{digest(arch.to_json())}-{own}")  # whoever finds it there finds it whole
        while done.exists() and len(list(done.iterdir())) >= self.first and not (self.folder / "go").exists():
            time.sleep(0.01)
        return Toy(done, seconds=0.01)(arch, fidelity, report)


@dataclass(frozen=True)
class Moody:
    """Fails in the way that the depth of an arch names."""

    folder: Path

    def __call__(self, arch: Arch, fidelity: Fidelity, report: Report) -> Outcome:
        (self.folder / f"{uuid.uuid4().hex}").write_text(str(os.getpid()))
        if arch["mixer"] == "pool":
            return Outcome(value=value(arch))
        match arch["depth"]:
            case 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case 2:
                raise TrialFailed("the loss is NaN after step 3", reason="nan")
            case 3 if arch["kernel"] == 3:
                return Outcome(value=float("nan"))
            case 3 if arch["kernel"] == 5:
                raise MemoryError("no room")
            case 3:
                raise ZeroDivisionError("a bug in the user's own code")
            case _ if arch["kernel"] == 7:
                time.sleep(60)
        return Outcome(value=value(arch))


def spec(folder: Path, **changes: Any) -> StudySpec:
    told: dict[str, Any] = {"storage": str(folder / "study.sqlite"), "searcher": "random", "trials": 8}
    return StudySpec(**(told | {name: value for name, value in changes.items() if value is not None}))


def archs(records: Iterable[TrialRecord]) -> list[dict[str, Any]]:
    """Of the trials that count, in order."""
    return [dict(one.arch or {}) for one in records if one.counts]


def finished(folder: Path) -> list[str]:
    """The arch of every evaluation that was finished."""
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
