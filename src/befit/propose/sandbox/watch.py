"""Watching one candidate from outside: time, memory, processes, disk and what it prints; and ending it, with all it started.

The watcher is the candidate's parent, and orphans are adopted by it (PR_SET_CHILD_SUBREAPER) or by the first process of
their namespace, a child of its: whatever leaves the process group, changes session or forks twice is still below it in the
tree of processes, and is killed until nothing is left.
"""

import os
import select
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from befit.propose.sandbox import nvml
from befit.propose.sandbox.candidate import READY
from befit.propose.sandbox.limits import MIB, Limits

SAMPLE_SECONDS = 0.02
DISK_SECONDS = 0.25
TAIL_BYTES = 2000
MOST_FILES = 10_000
GIVE_UP_SECONDS = 20.0
CONTEXT_BYTES = 1024 * MIB
"""GPU memory that CUDA and its libraries take beside a candidate's arrays."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a candidate ended."""

    reason: str | None
    """Why it was ended from outside; None where it ended by itself."""

    message: str
    """One line on that."""

    status: int
    """Exit code, or minus the signal that ended it."""

    seconds: float
    """Wall clock, since it was ready where it may start first."""

    start_seconds: float
    """Wall clock until it was ready."""

    cpu_seconds: float
    """Of it and the children that it waited for."""

    peak_bytes: int
    """Largest memory of all its processes together, as sampled; what they share with the fork server is divided among them."""

    tail: str
    """The last of what it printed."""


def children(process: int) -> list[int]:
    """Process ids of the children of all threads of `process`; empty if it is gone."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            found += [int(word) for word in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/thread-self/children").exists():
            return found
        return _children_by_scan(process)  # a kernel without CONFIG_PROC_CHILDREN
    return found


def _children_by_scan(process: int) -> list[int]:
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (place / "stat").read_text().rpartition(")")[2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(after_name.split()[1]) == process:
            found.append(int(place.name))
    return found


def descendants(process: int) -> list[int]:
    """Everything below `process`, nearest first."""
    found = children(process)
    for one in found:  # grows as it is read
        found += children(one)
    return found


def end_all(keep: Collection[int] = ()) -> None:
    """Kill everything below this process but `keep`, until nothing is left.

    Raises:
        TimeoutError: Something could not be killed (a process stuck in the kernel).
    """
    until = time.monotonic() + GIVE_UP_SECONDS
    while left := [process for process in descendants(os.getpid()) if process not in keep]:
        if time.monotonic() > until:
            raise TimeoutError(f"processes {left} cannot be killed")
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue  # gone already
        while os.waitpid(-1, os.WNOHANG)[0] if children(os.getpid()) else 0:
            pass
        time.sleep(0.0005)


def _memory(process: int, *, exact: bool) -> int:
    """Anonymous and shared memory, bytes: quickly, all that is mapped; exactly, shared pages divided among their users."""
    wanted = ("Pss_Anon:", "Pss_Shmem:") if exact else ("RssAnon:", "RssShmem:")
    try:
        text = Path(f"/proc/{process}/{'smaps_rollup' if exact else 'status'}").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return _memory(process, exact=False) if exact and Path(f"/proc/{process}/status").exists() else 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(wanted))


def _folder_bytes(folder: Path) -> int:
    """Bytes of all files below; huge where there are too many to count, which is as bad."""
    total = seen = 0
    for place, folders, files in os.walk(folder):
        seen += len(files) + len(folders)
        if seen > MOST_FILES:
            return 1 << 62
        for name in files:
            try:
                total += Path(place, name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


class Watch:
    """One candidate under watch, from its fork to the death of its last process."""

    def __init__(
        self,
        candidate: int,
        printed: int,
        limits: Limits,
        folder: Path,
        *,
        keep: Collection[int] = (),
        lifeline: int | None = None,
    ) -> None:
        """Begin.

        Args:
            candidate: The process, a child of this one.
            printed: Reading end of what it prints; closed at the end.
            limits: What it may use.
            folder: What its files are counted in.
            keep: Children of this process that are not the candidate's.
            lifeline: A pipe that closes when nobody wants an answer any more.
        """
        self.candidate, self.printed, self.limits, self.folder, self.keep = candidate, printed, limits, folder, keep
        self.begun = time.monotonic()
        self.ready = self.begun if limits.start_seconds == 0 else None
        self.peak = self.printed_bytes = 0
        self.tail = b""
        self.silent = False  # nobody holds the writing end any more
        self.looked_at_disk = self.begun
        self.lifeline = lifeline
        self.poll = select.poll()
        self.poll.register(printed, select.POLLIN)
        self.ended = os.pidfd_open(candidate)
        self.poll.register(self.ended, select.POLLIN)
        if lifeline is not None:
            self.poll.register(lifeline, 0)  # reports only that the other end has closed
        os.set_blocking(printed, False)

    def until_end(self) -> End:
        """Wait, sample, and end it where it goes beyond its limits."""
        fault: tuple[str, str] | None = None
        alive = True
        while alive and fault is None:
            ready = dict(self.poll.poll(1000 * min(SAMPLE_SECONDS, max(0.0, self._left()))))
            alive = self.ended not in ready
            if self.lifeline in ready:
                fault = "killed", "befit itself has gone"
            fault = fault or (self._read() if self.printed in ready else None) or (self._sample() if alive else None)
        spent, status = self._reap(alive)
        fault = fault or self._read()
        os.close(self.printed)
        out_of_cpu = spent > self.limits.cpu_seconds - 0.3  # the kernel looks at every tick
        if fault is None and out_of_cpu and status in (-signal.SIGKILL, -signal.SIGXCPU):
            fault = "timeout", f"used its {self.limits.cpu_seconds} CPU seconds"
        reason, message = fault or (None, "")
        return End(
            reason=reason,
            message=message,
            status=status,
            seconds=time.monotonic() - (self.ready or self.begun),
            start_seconds=0.0 if self.ready is None else self.ready - self.begun,
            cpu_seconds=spent,
            peak_bytes=self.peak,
            tail=self.tail.decode("utf-8", "replace"),
        )

    def _reap(self, alive: bool) -> tuple[float, int]:
        if alive:
            os.kill(self.candidate, signal.SIGKILL)
        _, code, used = os.wait4(self.candidate, 0)
        os.close(self.ended)
        end_all(self.keep)
        return used.ru_utime + used.ru_stime, os.waitstatus_to_exitcode(code)

    def _left(self) -> float:
        """Seconds until it must be done; until it is ready, those of its start come on top."""
        begun = self.begun + self.limits.start_seconds if self.ready is None else self.ready
        return begun + self.limits.wall_seconds - time.monotonic()

    def _read(self) -> tuple[str, str] | None:
        """Take what was printed, up to the bound."""
        while not self.silent and self.printed_bytes <= self.limits.output_bytes:
            try:
                chunk = os.read(self.printed, 65536)
            except BlockingIOError:
                return None
            if not chunk:
                self.silent = True
                self.poll.unregister(self.printed)
            self.printed_bytes += len(chunk)
            self.tail = (self.tail + chunk)[-TAIL_BYTES:]
        if self.silent:
            return None
        return "output", f"printed more than {self.limits.output_bytes} bytes"

    def _sample(self) -> tuple[str, str] | None:
        """Time, processes, memory and disk, each against its bound."""
        if self.ready is None and os.access(self.folder / READY, os.F_OK):
            self.ready = time.monotonic()
        if self._left() <= 0:
            started = "" if self.ready is not None else f", {self.limits.start_seconds:g} s for its start on top"
            return "timeout", f"was not done after {self.limits.wall_seconds:g} s{started}"
        tree = [process for process in descendants(os.getpid()) if process not in self.keep]
        if len(tree) > self.limits.processes:
            return "crash", f"ran {len(tree)} processes at once, at most {self.limits.processes} are allowed"
        memory = sum(_memory(process, exact=False) for process in tree)
        if memory > self.limits.memory_bytes:
            memory = sum(_memory(process, exact=True) for process in tree)
        self.peak = max(self.peak, memory)
        if memory > self.limits.memory_bytes:
            return "out-of-memory", f"used {memory // MIB} MiB, at most {self.limits.memory_bytes // MIB} are allowed"
        now = time.monotonic()
        if now - self.looked_at_disk < DISK_SECONDS:
            return None
        self.looked_at_disk = now
        if _folder_bytes(self.folder) > self.limits.folder_bytes:
            return "output", f"left more than {self.limits.folder_bytes // MIB} MiB, or too many files, in its folder"
        return self._on_gpu(tree)

    def _on_gpu(self, tree: list[int]) -> tuple[str, str] | None:
        """GPU memory of the processes of `tree`, where it can be told."""
        bound = self.limits.gpu_bytes
        if bound and (nvml.used(tree) or 0) > bound + CONTEXT_BYTES:
            return "out-of-memory", f"used more than {bound // MIB} MiB of GPU memory"
        return None
