"""`Sandbox`: run befit's own task on a source that nobody has read, and get back a checked answer or a named failure.

    with Sandbox() as sandbox:
        result = sandbox.run(inspect, source=text, arguments={"in_shape": (2, 3, 32, 32), "out_shape": (10,), "prm": {}})
        result.value["params"] if result.ok else (result.reason, result.message)

Labels and metric stay on this side: a candidate gets arrays to learn from and images to label, and what it returns is judged
here (`answers.accuracy`). What `value` says was said by a process that ran the candidate's code, so it is good for statistics
and gates, and never is a score.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from befit.errors import TrialFailed
from befit.propose.sandbox import backends, candidate, tasks
from befit.propose.sandbox.answers import Expected, read_answer, read_arrays
from befit.propose.sandbox.backends import NoSandbox
from befit.propose.sandbox.confine import MECHANISMS, Plan
from befit.propose.sandbox.limits import Limits

START_SECONDS = 180.0
GRACE_SECONDS = 40.0
"""How much longer than the candidate's own limit the fork server may take to say that it has ended."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one candidate."""

    ok: bool
    """Whether it answered, and in the form that was expected."""

    reason: str | None = None
    """One of `errors.REASONS` where it did not: invalid (its code raised), timeout, out-of-memory, crash (ended without an
    answer), output (printed or left what it should not), nan."""

    message: str = ""
    """One line on that; it may quote the candidate."""

    value: Mapping[str, Any] = field(default_factory=dict)
    """What the task returned."""

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The arrays that were expected, checked."""

    seconds: float = 0.0
    """Wall clock of the candidate, since it was ready where `Limits.start_seconds` lets it start first."""

    start_seconds: float = 0.0
    """Wall clock until then."""

    cpu_seconds: float = 0.0
    """CPU time of all its processes."""

    peak_bytes: int = 0
    """Largest memory of all its processes, as sampled every 20 ms; 0 if it was done before the first sample."""

    output: str = ""
    """The last 2000 bytes of what it printed."""


class Sandbox:
    """A fork server and the folder in which its candidates live, one candidate at a time (open several for more)."""

    def __init__(
        self,
        *,
        backend: str = "native",
        without: Sequence[str] = (),
        warm: Sequence[Callable[[], None]] = (tasks.warm,),
        gpu: bool = False,
    ) -> None:
        """Nothing is started yet.

        Args:
            backend: "native", "bwrap", "docker:IMAGE" or "none".
            without: Mechanisms (`confine.MECHANISMS`) to leave out, to see what each is worth.
            warm: Functions called once in the server, to import what tasks need; tasks of other modules add theirs.
            gpu: Let candidates see NVIDIA's devices; they must then be run `fresh`.
        """
        self.backend, self.without, self.gpu = backend, tuple(without), gpu
        self.warm = [candidate.name_of(one) for one in warm]
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._read = b""
        self._number = 0
        self.plan = Plan()
        self.threads = 0

    def __enter__(self) -> "Sandbox":
        self._folder = Path(tempfile.mkdtemp(prefix="befit-sandbox-")).resolve()
        self._folder.chmod(0o711)  # candidates that are other users pass through, and see nothing
        try:
            self._start()
        finally:
            if self._server is None:
                self.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server and remove its folder."""
        with self._lock:
            self._stop()
            if self._folder is not None:
                _remove(self._folder)
                self._folder = None

    def run(
        self,
        task: candidate.Task,
        *,
        source: str,
        arguments: Mapping[str, Any] | None = None,
        files: Mapping[str, np.ndarray] | None = None,
        expects: Mapping[str, Expected] | None = None,
        limits: Limits | None = None,
        fresh: bool = False,
    ) -> Result:
        """Do `task` on `source` in a process of its own.

        Args:
            task: A module-level function (source, arguments, folder) -> dictionary.
            source: The candidate's code.
            arguments: Told to the task; must be JSON.
            files: Arrays that it finds as NAME.npy.
            expects: Arrays that it must leave in answer.safetensors.
            limits: What it may use.
            fresh: Start Python anew in that process (a GPU needs it; 3 to 6 seconds).

        Raises:
            NoSandbox: The fork server does not start.
        """
        request = {"task": candidate.name_of(task), "source": source, "arguments": dict(arguments or {})}
        limits = limits or Limits()
        with self._lock:
            if self._folder is None:
                raise NoSandbox("the sandbox is closed: use it as `with Sandbox() as sandbox:`")
            if self._server is None:
                self._start()
            self._number += 1
            folder = self._folder / str(self._number)
            folder.mkdir(mode=0o700)
            try:
                _write(folder, request, files or {})
                told = self._ask({"folder": str(folder), "limits": asdict(limits), "fresh": fresh}, limits)
                return _result(told, folder, expects or {})
            finally:
                _remove(folder)

    def _start(self) -> None:
        assert self._folder is not None
        variables = backends.environment(self._folder, gpu=self.gpu)
        argv = backends.command(self.backend, self._folder, variables, gpu=self.gpu)
        with (self._folder / "server.log").open("wb") as log:
            self._server = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C is for befit, which ends the server in order
            )
        self._read = b""
        tried = () if self.backend == "none" else MECHANISMS
        mechanisms = [name for name in tried if name not in self.without]
        request = {"folder": str(self._folder), "mechanisms": mechanisms, "warm": self.warm, "gpu": self.gpu}
        told: dict[str, Any] = {"message": "it was interrupted"}
        try:
            told = self._exchange(request, time.monotonic() + START_SECONDS)
        finally:
            if "plan" not in told:
                self._stop()
        if "plan" not in told:
            raise NoSandbox(f"the sandbox {self.backend} does not start: {told['message']}")
        self.plan, self.threads = Plan(**told["plan"]), told["threads"]

    def _ask(self, request: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
        """One request; where the server itself was ended, the next run starts another."""
        told: dict[str, Any] = {"lost": True}
        try:
            told = self._exchange(
                request, time.monotonic() + limits.start_seconds + limits.wall_seconds + GRACE_SECONDS
            )
        finally:
            if told.get("lost"):  # or interrupted: an answer that comes late must not be taken for the next one
                self._stop()
        return told

    def _exchange(self, request: Mapping[str, Any], until: float) -> dict[str, Any]:
        server = self._server
        assert self._folder and server and server.stdin and server.stdout
        try:
            server.stdin.write(json.dumps(request).encode() + b"\n")
            server.stdin.flush()
        except BrokenPipeError:
            return {"lost": True, "reason": "crash", "message": "the fork server had been ended"}
        while b"\n" not in self._read:
            ready = select.select([server.stdout], [], [], max(0.0, until - time.monotonic()))[0]
            chunk = os.read(server.stdout.fileno(), 65536) if ready else b""
            if not chunk:
                reason, how = ("crash", "was ended") if ready else ("timeout", "did not answer")
                said = " ".join((self._folder / "server.log").read_text(errors="replace").split()[-40:])
                return {
                    "lost": True,
                    "reason": reason,
                    "message": f"the fork server {how}; it said: {said or 'nothing'}",
                }
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def _stop(self) -> None:
        server, self._server = self._server, None
        if server is None or server.stdin is None or server.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):  # a request that a dead server did not take
            server.stdin.close()  # the server, and a watcher that is at work, end when this closes
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        server.stdout.close()


def _write(folder: Path, request: Mapping[str, Any], files: Mapping[str, np.ndarray]) -> None:
    (folder / candidate.REQUEST).write_text(json.dumps(request))
    for name, array in files.items():
        if not name.isidentifier():
            raise ValueError(f"a file named {name!r}: letters, digits and _ were expected")
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    for path in folder.iterdir():
        path.chmod(0o644)


def _result(told: Mapping[str, Any], folder: Path, expects: Mapping[str, Expected]) -> Result:
    """Judge what was left, in this order: was it ended, did it end in order, is the answer whole, are the arrays right."""
    seen = Result(
        ok=False,
        seconds=told.get("seconds", 0.0),
        start_seconds=told.get("start_seconds", 0.0),
        cpu_seconds=told.get("cpu_seconds", 0.0),
        peak_bytes=told.get("peak_bytes", 0),
        output=told.get("tail", ""),
    )
    try:
        if told["reason"]:
            raise TrialFailed(told["message"], reason=told["reason"])
        if told["status"]:
            raise TrialFailed(_ending(told["status"], seen.output))
        value = read_answer(folder / candidate.ANSWER)
        return replace(seen, ok=True, value=value, arrays=read_arrays(folder, expects))
    except TrialFailed as error:
        return replace(seen, reason=error.reason, message=str(error))


def _ending(status: int, output: str) -> str:
    how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
    last = output.strip().splitlines()[-1:]
    return f"{how}, without an answer" + (f"; its last words: {last[0][:200]}" if last else "")


def _remove(folder: Path) -> None:
    """Remove what was left, however deep and whatever its modes."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", str(folder)], stderr=subprocess.DEVNULL, check=False)
