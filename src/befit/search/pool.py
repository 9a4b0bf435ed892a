"""What a study asks of whoever evaluates, and the boundary at which an error becomes a failed trial."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from befit.errors import BadData, TrialFailed
from befit.search.trial import Evaluate, Finished, Job, Pruned

Decide = Callable[[int, int, float], bool]
"""Trial number, epoch and value; whether the trial goes on."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who evaluates."""

    workers: int = 1
    """Processes, 0 for this one itself; on a cluster the most evaluations at once, 0 for as many as there is room for."""
    ray: str | None = None
    """Address of a Ray cluster (`auto`, `ray://host:10001`, …); this machine's processes if None."""
    threads: int = 1
    """CPU threads of an evaluation."""
    gpus: float = 0.0
    """GPUs of an evaluation on a Ray cluster; a fraction shares one."""

    def __post_init__(self) -> None:
        for name, told, least in (("workers", self.workers, 0), ("threads", self.threads, 1), ("gpus", self.gpus, 0)):
            if told < least:
                raise BadData(f"{name} must be at least {least}, got {told}")


class Pool(Protocol):
    """Runs evaluations. The study knows no more of processes and clusters than this."""

    @property
    def free(self) -> int:
        """How many more jobs can begin at once."""
        ...

    def submit(self, job: Job) -> None:
        """Begin an evaluation, at most `free` of them."""
        ...

    def wait(self, decide: Decide, seconds: float) -> list[Finished]:
        """What has ended, at least one if anything ends within `seconds`; `decide` is called for each report meanwhile."""
        ...

    def close(self) -> None:
        """End everything that is under way."""
        ...


def evaluated(evaluate: Evaluate, job: Job, report: Callable[[int, float], None]) -> Finished:
    """Make one evaluation: the boundary at which whatever it raises becomes a trial that failed."""
    begin = time.perf_counter()
    outcome = None
    with Boundary() as boundary:
        outcome = evaluate(job.arch, job.fidelity, report)
    seconds = time.perf_counter() - begin
    reason, message = boundary.verdict()
    return Finished(number=job.number, outcome=outcome, reason=reason, message=message, seconds=seconds)


class Boundary:
    """Catches every ordinary exception and says what it means. Ctrl-C and exits are none."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> "Boundary":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self.error = error
        return self.error is not None

    def verdict(self) -> tuple[str | None, str]:
        """Reason and message of the failure; no reason if there was none, or if the trial was pruned."""
        error = self.error
        if error is None or isinstance(error, Pruned):
            return None, ""
        if isinstance(error, TrialFailed):
            return error.reason, str(error)
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower():
            return "out-of-memory", text
        return "crash", text + _place(error)


def _place(error: Exception) -> str:
    """Where an exception was raised, for a reader who has no traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""


@dataclass
class InProcess:
    """Evaluates right here, one job at a time: for notebooks, for tests, for evaluators that cannot be sent elsewhere.

    A crash of the interpreter ends the study (it can be resumed), and there is no time limit.
    """

    evaluate: Evaluate
    _job: Job | None = None

    @property
    def free(self) -> int:
        return 1 if self._job is None else 0

    def submit(self, job: Job) -> None:
        self._job = job

    def wait(self, decide: Decide, seconds: float) -> list[Finished]:
        del seconds
        if (job := self._job) is None:
            return []
        self._job = None

        def report(epoch: int, value: float) -> None:
            if not decide(job.number, epoch, value) and job.prunable:
                raise Pruned(f"pruned after epoch {epoch}")

        return [evaluated(self.evaluate, job, report)]

    def close(self) -> None:
        self._job = None
