"""The fork server end to end: answers, named failures, and nothing left over by what misbehaves."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from befit.propose.sandbox import box
from befit.propose.sandbox.box import Sandbox
from befit.propose.sandbox.candidate import name_of
from befit.propose.sandbox.hostile import HOSTILE
from befit.propose.sandbox.limits import MIB, Limits
from befit.propose.sandbox.tasks import TINY, execute, inspect
from befit.propose.sandbox.watch import children, descendants

SHAPES = {"in_shape": (2, 3, 8, 8), "out_shape": (10,), "prm": {}}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


def _say(sandbox: Sandbox, source: str, **limits: float) -> tuple[str | None, str]:
    result = sandbox.run(execute, source=textwrap.dedent(source), limits=Limits(**{"wall_seconds": 20, **limits}))
    assert result.ok == (result.reason is None)
    return result.reason, result.message


def test_build_counts_as_torch_does(sandbox: Sandbox) -> None:
    result = sandbox.run(inspect, source=TINY, arguments=SHAPES)
    assert result.ok, result.message
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)
    assert result.value["params"] == sum(one.numel() for layer in layers for one in layer.parameters())
    assert result.value["flops"] == 2 * (8 * 8 * 4 * 3 * 9 + 4 * 10)
    assert sandbox.threads == 1, "a process with threads must not fork"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("nn.Linear(4,", "nn.Linear(5,"), "line 10: RuntimeError: .*"),
        (("out_shape[0]", "7"), r"the output is \(2, 7\), expected a tensor of shape \(2, 10\)"),
        (("return self.body(x)", "return [self.body(x)]"), "the output is of type list"),
        (("return self.body(x)", "return self.body(x).detach()"), "nothing to train"),
        (("class Net(", "class Nets("), "no class Net"),
        (("from torch import nn", "from torch import nnn"), "line 2: ImportError"),
        (("def forward(self, x)", "def forward(self, x"), "line 9: SyntaxError"),
    ],
)
def test_broken_networks_are_named_with_their_line(sandbox: Sandbox, change: tuple[str, str], message: str) -> None:
    assert change[0] in TINY
    result = sandbox.run(inspect, source=TINY.replace(*change), arguments=SHAPES)
    assert result.reason == "invalid"
    assert re.search(message, result.message), result.message


@pytest.mark.parametrize(
    ("source", "reason", "message"),
    [
        ("1 / 0", "invalid", "line 1: ZeroDivisionError"),
        ("raise BaseException('no')", "invalid", "BaseException: no"),
        ("import sys; sys.exit(0)", "crash", "SystemExit"),
        ("import os; os._exit(0)", "output", "left no readable answer.json"),
        (
            "import os; print('bye', flush=True); os._exit(3)",
            "crash",
            "exit code 3, without an answer; its last words: bye",
        ),
        ("import ctypes; ctypes.string_at(0)", "crash", "SIGSEGV"),
        ("answer = {'x': float('nan')}", "invalid", "not JSON compliant"),
        ("answer = {'x': object()}", "invalid", "not JSON serializable"),
        ("def f(): f()\nf()", "invalid", "RecursionError"),
    ],
)
def test_failures_have_names(sandbox: Sandbox, source: str, reason: str, message: str) -> None:
    found, said = _say(sandbox, source)
    assert found == reason
    assert message in said


def test_cpu_time_is_limited_where_the_clock_is_not(sandbox: Sandbox) -> None:
    assert _say(sandbox, HOSTILE["loop"].source, cpu_seconds=1) == ("timeout", "used its 1 CPU seconds")


def test_shared_memory_counts_though_no_limit_of_the_kernel_sees_it(sandbox: Sandbox) -> None:
    reason, message = _say(
        sandbox,
        """
        import mmap
        held = mmap.mmap(-1, 1 << 30)
        for at in range(0, 1 << 30, 4096):
            held[at] = 1
        """,
        memory_bytes=512 * MIB,
    )
    assert reason == "out-of-memory"
    assert "at most 512" in message


def test_tensors_that_do_not_fit_are_out_of_memory(sandbox: Sandbox) -> None:
    source = "import torch; torch.ones(1 << 34)"
    assert _say(sandbox, source, memory_bytes=512 * MIB)[0] == "out-of-memory"


def _waiting(expected: int) -> int:
    """Processes below this one, as soon as there are as many as expected, at the latest after a second."""
    until = time.monotonic() + 1
    while (found := len(descendants(os.getpid()))) != expected and time.monotonic() < until:
        time.sleep(0.01)
    return found


def test_a_fork_bomb_costs_one_trial_and_leaves_nothing(sandbox: Sandbox) -> None:
    assert sandbox.run(inspect, source=TINY, arguments=SHAPES).ok
    before = _waiting(0)
    source = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert _say(sandbox, source, wall_seconds=1, processes=16)[0] in ("timeout", "crash")
    assert _waiting(before) == before  # the process of the next candidate is another one
    assert sandbox.run(inspect, source=TINY, arguments=SHAPES).ok


def test_many_files_are_as_bad_as_large_ones(sandbox: Sandbox) -> None:
    source = "import time\nfor n in range(20):\n    open(str(n), 'wb').write(b'x' * (1 << 20))\ntime.sleep(15)"
    reason, message = _say(sandbox, source, folder_bytes=10 * MIB)
    assert reason == "output"
    assert "10 MiB" in message


def test_what_was_left_is_removed_whatever_its_mode(sandbox: Sandbox) -> None:
    source = "import os\nos.makedirs('a/' * 300)\nos.chmod('a', 0)\nanswer = {'here': os.getcwd()}"
    result = sandbox.run(execute, source=source)
    assert result.ok, result.message
    assert not Path(result.value["here"]).exists()


def test_a_candidate_sees_nothing_of_the_others(sandbox: Sandbox) -> None:
    source = (
        "import os, builtins\nanswer = {'mark': hasattr(builtins, 'mark'), 'files': os.listdir()}\nbuiltins.mark = 1"
    )
    for _ in range(2):
        assert sandbox.run(execute, source=source).value == {"mark": False, "files": ["request.json"]}


def test_a_fresh_process_is_confined_as_a_forked_one(sandbox: Sandbox) -> None:
    source = HOSTILE["reads"].source + "\nimport sys\nanswer['torch'] = 'torch' in sys.modules"
    arguments = {"secret": "/etc/passwd", "parent": os.getpid()}
    for fresh in (True, False):
        result = sandbox.run(execute, source=source, arguments=arguments, fresh=fresh)
        assert result.ok, result.message
        assert result.value["torch"] == (not fresh)
        assert (result.value["a file"] != "done") == bool(sandbox.plan.landlock)


def test_a_server_that_was_killed_is_started_again() -> None:
    with Sandbox(warm=()) as sandbox:
        (server,) = (
            set(children(os.getpid())) & {process for process in children(os.getpid()) if _is_server(process)} - _others
        )
        os.kill(server, signal.SIGKILL)
        assert _say(sandbox, "")[0] == "crash"
        assert _say(sandbox, "") == (None, "")


_others: set[int] = set()


def _is_server(process: int) -> bool:
    return b"forkserver" in Path(f"/proc/{process}/cmdline").read_bytes()


@pytest.fixture(autouse=True)
def _servers_of_others() -> Iterator[None]:
    _others.update(process for process in children(os.getpid()) if _is_server(process))
    yield
    _others.clear()


def test_an_interrupted_run_does_not_answer_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a candidate runs: its answer must not be taken for that of the one that comes after it."""
    with Sandbox(warm=()) as sandbox:
        with monkeypatch.context() as patched:
            patched.setattr(box.select, "select", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                sandbox.run(execute, source="answer = {'of': 'the first'}")
        assert sandbox.run(execute, source="answer = {'of': 'the second'}").value == {"of": "the second"}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_candidate_does_not_outlive_befit(tmp_path: Path) -> None:
    name = f"bf{os.getpid()}"
    program = f"""
from befit.propose.sandbox.box import Sandbox
from befit.propose.sandbox.tasks import execute
source = '''
import ctypes, os, time
os.fork()
ctypes.CDLL(None).prctl(15, b"{name}", 0, 0, 0)
time.sleep(100)
'''
with Sandbox(warm=()) as sandbox:
    sandbox.run(execute, source=source, arguments={{}})
"""
    befit = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        _until(lambda: _count(name) == 2)
    finally:
        befit.kill()
        befit.wait()
    _until(lambda: _count(name) == 0)


def _until(true: "object") -> None:
    assert callable(true)
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _count(name: str) -> int:
    found = 0
    for place in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += place.read_text().strip() == name
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_limits_are_checked() -> None:
    for wrong in ({"wall_seconds": 0}, {"processes": 0}, {"memory_bytes": 1}, {"cpu_seconds": True}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            Limits(**wrong)
    with pytest.raises(TypeError):
        Limits(memory=1)  # type: ignore[call-arg]


def test_names_of_files_and_tasks_are_checked(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        sandbox.run(execute, source="", files={"../x": np.zeros(1)})
    with pytest.raises(ValueError, match="function of a module"):
        name_of(lambda: None)
    assert name_of(inspect) == "befit.propose.sandbox.tasks:inspect"
    assert not torch.cuda.is_initialized()
