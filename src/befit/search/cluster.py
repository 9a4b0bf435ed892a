"""Evaluations on a Ray cluster: the same small interface as local processes have.

Each evaluation is one Ray task, never retried by Ray itself: a trial that crashes is data. What a task reports goes through a
small actor, and so does the answer. A node that goes away takes its trials with it as `killed`, so the study tries their
archs again; everything else that ends a task is a crash of its trial. befit must be importable on every node.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from befit.errors import BefitError
from befit.search.pool import Crew, Decide, evaluated
from befit.search.trial import Evaluate, Finished, Job, Pruned

POLL_SECONDS = 0.1
"""How often the reports of running tasks are looked at."""


class Mailbox:
    """An actor between tasks and the coordinator: what was begun and reported, and what was answered."""

    def __init__(self) -> None:
        self._told = list[tuple[int, int, float]]()
        self._begun = list[int]()
        self._answers = dict[int, asyncio.Future[bool]]()

    async def begin(self, number: int) -> None:
        self._begun.append(number)

    async def report(self, number: int, epoch: int, value: float, waits: bool) -> bool:
        """From a task; waits for the coordinator's answer if told so."""
        self._told.append((number, epoch, value))
        if not waits:
            return True
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        return await answer

    async def take(self) -> tuple[list[int], list[tuple[int, int, float]]]:
        """By the coordinator: the trials begun and the reports made since it last asked."""
        taken = self._begun, self._told
        self._begun, self._told = [], []
        return taken

    async def answer(self, number: int, goes_on: bool) -> None:
        if (answer := self._answers.pop(number, None)) is not None and not answer.done():
            answer.set_result(goes_on)


def run_task(evaluate: Evaluate, job: Job, mailbox: Any) -> Finished:
    """One evaluation, on the node that Ray chose."""
    import ray

    ray.get(mailbox.begin.remote(job.number))

    def report(epoch: int, value: float) -> None:
        told = mailbox.report.remote(job.number, int(epoch), float(value), job.prunable)
        if job.prunable and not ray.get(told):
            raise Pruned(f"pruned after epoch {epoch}")

    return evaluated(evaluate, job, report)


@dataclass
class _Task:
    """One evaluation, as the coordinator sees it."""

    job: Job
    reference: Any
    begun: float | None = None
    """By the coordinator's monotonic clock; None while it waits for a node."""


class Cluster:
    """A Ray cluster as a pool. Raises `BefitError` if Ray is not installed, or there is no cluster at the address."""

    def __init__(self, evaluate: Evaluate, crew: Crew, *, timeout: float | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise BefitError(f"--ray needs Ray: pip install 'befit[ray]' ({error})") from error

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address=crew.ray, log_to_driver=False)
            except (ConnectionError, ValueError) as error:
                raise BefitError(f"there is no Ray cluster at {crew.ray!r}: {error}") from error
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._crew, self._timeout = crew, timeout
        self._evaluate = ray.put(evaluate)
        # Beside the coordinator: another machine may go away, and the study with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        self._remote = ray.remote(run_task).options(num_cpus=crew.threads, num_gpus=crew.gpus, max_retries=0)
        self._tasks = dict[int, _Task]()

    @property
    def free(self) -> int:
        return max(0, self._places() - len(self._tasks))

    @property
    def begun(self) -> list[int]:
        """Trials that a node has taken up, and that have not ended."""
        return [number for number, task in self._tasks.items() if task.begun is not None]

    def submit(self, job: Job) -> None:
        self._tasks[job.number] = _Task(job, self._remote.remote(self._evaluate, job, self._mailbox))

    def wait(self, decide: Decide, seconds: float) -> list[Finished]:
        end = time.monotonic() + seconds
        while self._tasks:
            self._hear(decide)
            references = [task.reference for task in self._tasks.values()]
            ready, _ = self._ray.wait(references, num_returns=1, timeout=POLL_SECONDS)
            # Reports may have arrived just before the end of their task.
            self._hear(decide)
            ended = [self._collect(task) for task in list(self._tasks.values()) if task.reference in ready]
            ended += [self._cancel(task) for task in list(self._tasks.values()) if self._overdue(task)]
            if ended or time.monotonic() >= end:
                return ended
        return []

    def close(self) -> None:
        for task in list(self._tasks.values()):
            self._cancel(task)
        self._ray.kill(self._mailbox)
        if self._ours:
            self._ray.shutdown()

    def _places(self) -> int:
        """Evaluations that may be under way at once, by what the cluster has now."""
        there = self._ray.cluster_resources()
        room = int(there.get("CPU", 0) // self._crew.threads)
        if self._crew.gpus:
            room = min(room, int(there.get("GPU", 0) / self._crew.gpus))
        return max(1, min(room, self._crew.workers or room))

    def _hear(self, decide: Decide) -> None:
        from ray.exceptions import ActorUnavailableError

        try:
            begun, told = self._ray.get(self._mailbox.take.remote())
        except ActorUnavailableError:  # for a moment; what it holds is heard the next time
            return
        for number in begun:
            if number in self._tasks:
                self._tasks[number].begun = time.monotonic()
        for number, epoch, value in told:
            if number in self._tasks:
                goes_on = decide(number, epoch, value)
                if self._tasks[number].job.prunable:
                    self._mailbox.answer.remote(number, goes_on)

    def _collect(self, task: _Task) -> Finished:
        from ray import exceptions

        del self._tasks[task.job.number]
        try:
            return self._ray.get(task.reference)
        except (exceptions.NodeDiedError, exceptions.ObjectLostError) as error:
            return self._lost(task, "killed", error)
        except exceptions.OutOfMemoryError as error:
            return self._lost(task, "out-of-memory", error)
        except exceptions.RayError as error:
            return self._lost(task, "crash", error)

    def _lost(self, task: _Task, reason: str, error: Exception) -> Finished:
        seconds = 0.0 if task.begun is None else time.monotonic() - task.begun
        message = f"{type(error).__name__}: {error}"
        return Finished(number=task.job.number, reason=reason, message=message, seconds=seconds)

    def _overdue(self, task: _Task) -> bool:
        return self._timeout is not None and task.begun is not None and time.monotonic() > task.begun + self._timeout

    def _cancel(self, task: _Task) -> Finished:
        self._ray.cancel(task.reference, force=True)
        del self._tasks[task.job.number]
        limit = self._timeout or 0.0
        return Finished(number=task.job.number, reason="timeout", message=f"not done after {limit:g} s", seconds=limit)
