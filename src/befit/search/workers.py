"""Where evaluations run: processes of their own, so that a crash, a hang or a memory leak costs one trial and nothing else.

Workers only evaluate. They get the evaluator once, then one job after another, and answer through a pipe; the study's
storage is the coordinator's alone. Each worker leads a process group: whatever an evaluation starts dies with it. A worker
whose coordinator has died ends itself, so that a study that is resumed meets no leftovers.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from befit.arch.space import Arch
from befit.errors import BefitError
from befit.search.pool import Boundary, Crew, Decide, InProcess, Pool, evaluated
from befit.search.trial import Evaluate, Fidelity, Finished, Job, Outcome, Pruned, Report

STARTING = "BEFIT_WORKER_STARTING"
"""Set in the environment of a worker until it is ready to work: a script that is imported there must start no search."""
UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
"""What pickle raises for functions and classes that another process cannot find by name."""
STILL_BORN = 75
"""Exit code of a worker that found itself running the user's script (EX_TEMPFAIL of sysexits.h)."""


class Unready(BefitError):
    """Workers that cannot begin: the evaluator cannot be sent to another process."""


@dataclass
class _Worker:
    """One process, as the coordinator sees it."""

    process: Any
    connection: Connection
    job: Job | None = None
    begun: float | None = None
    """When the evaluation began, by the coordinator's monotonic clock; None while the worker still starts."""


class Processes:
    """Local worker processes. Raises `Unready` if the evaluator cannot be sent to them."""

    def __init__(self, evaluate: Evaluate, *, workers: int, timeout: float | None = None, threads: int = 1) -> None:
        try:
            self._payload = pickle.dumps(evaluate)
        except UNPICKLABLE as error:
            raise Unready(f"the evaluator cannot be sent to another process ({error})") from error
        self._timeout, self._threads = timeout, threads
        self._workers = list[_Worker]()
        with ExitStack() as left_behind:
            left_behind.callback(self.close)
            # All start at once; each is then waited for, so that what is wrong with all is told before any trial.
            self._workers += [self._start() for _ in range(workers)]
            for worker in self._workers:
                self._await(worker)
            left_behind.pop_all()

    @property
    def free(self) -> int:
        return sum(worker.job is None for worker in self._workers)

    def submit(self, job: Job) -> None:
        worker = next(worker for worker in self._workers if worker.job is None)
        if not worker.process.is_alive():
            worker = self._replace(worker)
        worker.job, worker.begun = job, None
        try:
            worker.connection.send_bytes(pickle.dumps(job))
        except (BrokenPipeError, ConnectionResetError):
            worker = self._replace(worker)
            worker.job = job
            worker.connection.send_bytes(pickle.dumps(job))

    def wait(self, decide: Decide, seconds: float) -> list[Finished]:
        end = time.monotonic() + seconds
        ended = list[Finished]()
        while not ended and (busy := [worker for worker in self._workers if worker.job is not None]):
            until = min([end, *(deadline for worker in busy if (deadline := self._deadline(worker)))])
            ready = wait([worker.connection for worker in busy], timeout=max(0.0, until - time.monotonic()))
            for worker in busy:
                found = self._receive(worker, decide) if worker.connection in ready else None
                found = found or self._overdue(worker)
                ended += [] if found is None else [found]
            if time.monotonic() >= end:
                break
        return ended

    def close(self) -> None:
        for worker in self._workers:
            self._end(worker)
        self._workers.clear()

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(
            target=_serve, args=(there, self._payload, self._threads), name="befit-worker", daemon=False
        )
        with _environment({STARTING: "1", "OMP_NUM_THREADS": str(self._threads)}):
            process.start()
        there.close()
        return _Worker(process=process, connection=here)

    def _await(self, worker: _Worker) -> None:
        """Wait until a worker has loaded the evaluator."""
        try:
            told = pickle.loads(worker.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            worker.process.join()
            if worker.process.exitcode == STILL_BORN:
                raise Unready(
                    "the script that starts the search is run again by each worker; put the call under "
                    "if __name__ == '__main__':"
                ) from None
            raise Unready(f"a worker ended before its first trial: {_how(worker.process.exitcode)}") from None
        if told[0] == "unready":
            raise Unready(f"the evaluator cannot be loaded in another process ({told[1]})")

    def _receive(self, worker: _Worker, decide: Decide) -> Finished | None:
        """Take one message of a worker, or notice its death."""
        assert worker.job is not None
        job = worker.job
        try:
            kind, *told = pickle.loads(worker.connection.recv_bytes())
            if kind == "report":
                goes_on = decide(job.number, *told)
                if job.prunable:
                    worker.connection.send_bytes(pickle.dumps(goes_on))
                return None
        except (EOFError, ConnectionResetError, BrokenPipeError):
            worker.process.join()
            how = _how(worker.process.exitcode)
            seconds = 0.0 if worker.begun is None else time.monotonic() - worker.begun
            self._replace(worker)
            return Finished(number=job.number, reason="crash", message=f"the worker died: {how}", seconds=seconds)
        if kind == "begun":
            worker.begun = time.monotonic()
            return None
        if kind == "unready":  # a replacement: the first ones were waited for
            raise Unready(f"a new worker cannot load the evaluator, as the first ones could ({told[0]})")
        if kind == "ready":
            return None
        worker.job = None
        return told[0]

    def _deadline(self, worker: _Worker) -> float | None:
        return None if self._timeout is None or worker.begun is None else worker.begun + self._timeout

    def _overdue(self, worker: _Worker) -> Finished | None:
        deadline = self._deadline(worker)
        if deadline is None or time.monotonic() < deadline or worker.job is None:
            return None
        number = worker.job.number
        self._replace(worker)
        limit = self._timeout or 0.0
        return Finished(number=number, reason="timeout", message=f"not done after {limit:g} s", seconds=limit)

    def _replace(self, worker: _Worker) -> _Worker:
        self._end(worker)
        self._workers[self._workers.index(worker)] = fresh = self._start()
        return fresh

    def _end(self, worker: _Worker) -> None:
        """End a worker and everything it started."""
        worker.connection.close()
        pid = worker.process.pid
        if pid is not None and worker.process.exitcode is None:
            _kill_group(pid)
            worker.process.kill()
        worker.process.join()
        worker.process.close()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # it has not become the leader of a group yet: there is only itself


def _how(code: int | None) -> str:
    """The end of a process in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    hint = " (by the system when memory runs out, or by hand)" if name == "SIGKILL" else ""
    return f"signal {name}{hint}"


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set variables for a process that is about to start."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def refuse_in_worker() -> None:
    """End a worker that is about to start a search of its own, because it runs the script that started it."""
    if STARTING in os.environ:
        sys.exit(STILL_BORN)


def _serve(connection: Connection, payload: bytes, threads: int) -> None:
    """A worker's life: load the evaluator, then evaluate until the pipe is closed."""
    del os.environ[STARTING]
    os.setpgid(0, 0)
    # Ctrl-C is the coordinator's: it decides what becomes of the trials.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, name="befit-follow", daemon=True).start()

    def tell(*told: Any) -> None:
        connection.send_bytes(pickle.dumps(told))

    evaluate: Evaluate = _nothing
    with Boundary() as boundary:
        evaluate = pickle.loads(payload)
    if boundary.error is not None:
        tell("unready", f"{type(boundary.error).__name__}: {boundary.error}")
        return
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    tell("ready")
    while True:
        try:
            job: Job = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        tell("begun")

        def report(epoch: int, value: float, job: Job = job) -> None:
            tell("report", int(epoch), float(value))
            if job.prunable and not pickle.loads(connection.recv_bytes()):
                raise Pruned(f"pruned after epoch {epoch}")

        tell("done", evaluated(evaluate, job, report))


def _nothing(arch: Arch, fidelity: Fidelity, report: Report) -> Outcome:
    raise NotImplementedError


def _follow() -> None:
    """Die with the coordinator, however it died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.killpg(0, signal.SIGKILL)


def open_pool(evaluate: Evaluate, crew: Crew, *, timeout: float | None = None) -> Pool:
    """The crew's pool; this process itself, after a warning, if the evaluator cannot be sent to another one.

    `timeout`: wall-clock seconds after which an evaluation is ended.
    """
    if crew.ray is not None:
        from befit.search.cluster import Cluster

        return Cluster(evaluate, crew, timeout=timeout)
    if crew.workers == 0:
        return InProcess(evaluate)
    try:
        return Processes(evaluate, workers=crew.workers, timeout=timeout, threads=crew.threads)
    except Unready as error:
        limits = " and no time limit holds" if timeout is not None else ""
        warnings.warn(
            f"{error}; trials run in this process, one after another: a crash ends the search{limits}", stacklevel=2
        )
        return InProcess(evaluate)
