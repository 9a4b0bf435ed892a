"""Building proposals in another process, for their graphs.

One process imports torch and forks for each file, so that a file that crashes, hangs or ends the process costs its own
answer and nothing else. The environment is empty but for what Python needs; time, memory and file size are bounded; what a
file prints is dropped.

This is not a wall: a file runs with the user's rights, can read what the user can and can reach the network. Files that are not
trusted belong in befit's sandbox.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from befit.errors import BadProposal
from befit.propose.contract import HYPERPARAMETERS, NET

if TYPE_CHECKING:
    from befit.propose.graph import Graph

START_SECONDS = 300.0
"""Longest time for importing torch."""
MEMORY_BYTES = 16 * 2**30
"""Address space of a child; torch alone maps several GiB."""
MOST_ANSWER_BYTES = 2**16
USUAL: Mapping[str, Any] = {"lr": 0.01, "momentum": 0.9, "batch": 64, "epoch": 1, "transform": "norm"}
"""Values of hyper-parameters that every file is given; others get a number between 0 and 1 of their own."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What building one file gave: key, operations and params of its graph, or the reason why there is none."""

    key: str | None = None
    operations: int = 0
    params: int = 0
    error: str | None = None


def built_in_child(
    sources: Sequence[str],
    in_shape: tuple[int, ...] = (2, 3, 32, 32),
    out_shape: tuple[int, ...] = (10,),
    *,
    seconds: float = 60.0,
) -> list[Built]:
    """Graphs of files, each built for `in_shape` (N, C, H, W) and `out_shape` (classes,) within `seconds`."""
    if not sources:
        return []
    asked = {"sources": list(sources), "in_shape": in_shape, "out_shape": out_shape, "seconds": seconds}
    limit = START_SECONDS + (seconds + 5) * len(sources)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "befit.propose.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
        try:
            told, _ = process.communicate(json.dumps(asked).encode(), timeout=limit)
        except subprocess.TimeoutExpired:
            told = b""
        finally:
            _kill_group(process.pid)
            process.wait()
    try:
        answers = [Built(**one) for one in json.loads(told)]
    except (ValueError, TypeError):
        answers = []
    lost = Built(error=f"the process that builds networks ended with status {process.returncode} and said nothing")
    return [*answers, *[lost] * (len(sources) - len(answers))][: len(sources)]


def _environment(folder: str) -> dict[str, str]:
    """No keys, no tokens: where Python and its libraries are, and a home that is empty."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    befit = str(Path(__file__).parents[2])
    return kept | {
        "PYTHONPATH": befit,
        "HOME": folder,
        "TMPDIR": folder,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _kill_group(leader: int) -> None:
    """End a process and all that it has started in its group."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


class Hyperparameters(dict[str, Any]):
    """Values for the names that a file declares; for any name where it declares none.

    Each name has a value of its own, so that a network that reads another hyper-parameter has another graph.
    """

    def __init__(self, declared: Sequence[str] | None) -> None:
        super().__init__(USUAL)
        self._open = declared is None
        for name in declared or ():
            self.setdefault(name, _value(name))

    def __missing__(self, name: str) -> Any:
        if self._open:
            return _value(name)
        raise KeyError(f"{name!r} is not in what {HYPERPARAMETERS}() returns: {sorted(self)}")


def _value(name: str) -> float:
    return round(0.1 + 0.8 * (zlib.crc32(name.encode()) % 997) / 997, 4)


def build_source(source: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """Run a file's text here and now; what it gives makes the network on a device. Whatever the file raises passes."""
    module = ModuleType("proposal")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, "proposal.py", "exec", dont_inherit=True), module.__dict__)
    names = module.__dict__
    if NET not in names:
        raise BadProposal(f"no class {NET} after the file has run", reason="contract")
    prm = Hyperparameters(list(names[HYPERPARAMETERS]()) if HYPERPARAMETERS in names else None)
    return lambda device: names[NET](in_shape, out_shape, prm, device)


def trace_source(source: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> "Graph":
    """The graph of a file's text, run here and now."""
    from befit.propose.graph import traced

    return traced(build_source(source, in_shape, out_shape), in_shape)


class _Answer:
    """Writes how a block ended, whichever way it did, and ends the process."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self.graph: Graph | None = None

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.graph is not None:
            told = Built(**asdict(self.graph))
        else:
            first = (str(error).strip() or "no message").splitlines()[0][:500]
            told = Built(error=first if isinstance(error, BadProposal) else f"{kind.__name__ if kind else ''}: {first}")
        os.write(self._pipe, json.dumps(asdict(told)).encode())
        os._exit(0)


def _serve(given: BinaryIO, answer: int) -> None:
    """The process that forks: reads what is asked, answers with one list."""
    asked = json.loads(given.read())
    in_shape, out_shape, seconds = tuple(asked["in_shape"]), tuple(asked["out_shape"]), float(asked["seconds"])
    trace_source(_WARM, in_shape, out_shape)  # imports what tracing needs, once
    answers = [asdict(_forked(source, in_shape, out_shape, seconds)) for source in asked["sources"]]
    with os.fdopen(answer, "wb") as out:
        out.write(json.dumps(answers).encode())


_WARM = """
from torch import nn
class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_shape[1], 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(),
            nn.Linear(2 * in_shape[2] * in_shape[3], out_shape[0]))
    def forward(self, x):
        return self.body(x)
"""


def _forked(source: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...], seconds: float) -> Built:
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        with _Answer(send) as answer:
            os.close(receive)
            os.setpgid(0, 0)
            _limit(seconds)
            answer.graph = trace_source(source, in_shape, out_shape)
    os.close(send)
    told = _read(receive, seconds)
    _kill_group(child)
    _, status = os.waitpid(child, 0)
    os.close(receive)
    if told is None:
        return Built(error=f"building took longer than {seconds:g} s")
    try:
        return Built(**json.loads(told))
    except (ValueError, TypeError):
        return Built(error=f"building ended the process (status {os.waitstatus_to_exitcode(status)})")


def _limit(seconds: float) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 2**24),
        (resource.RLIMIT_CORE, 0),
    ):
        most = resource.getrlimit(kind)[1]
        bound = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (bound, bound))


def _read(pipe: int, seconds: float) -> bytes | None:
    """What comes out of a pipe until its writers are gone; None after `seconds`."""
    end, told = time.monotonic() + seconds, b""
    while len(told) < MOST_ANSWER_BYTES:
        ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        more = os.read(pipe, MOST_ANSWER_BYTES)
        if not more:
            break
        told += more
    return told


if __name__ == "__main__":
    kept = os.dup(1)
    os.dup2(2, 1)  # what proposals print goes nowhere
    _serve(sys.stdin.buffer, kept)
