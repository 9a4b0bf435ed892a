"""What `befit sandbox` says is so: each mechanism alone holds what it is said to hold, and without one nothing is claimed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from befit import cli
from befit.errors import BadBudget
from befit.propose.sandbox import backends, confine, seccomp
from befit.propose.sandbox.box import Sandbox
from befit.propose.sandbox.confine import MECHANISMS, Plan, readable
from befit.propose.sandbox.hostile import HOSTILE, Scene
from befit.propose.sandbox.trial import NAMES, Finding, finding, own_key, required, scene, try_out

ALWAYS = {"processes", "memory", "loop", "sleep", "printing", "stragglers", "score"}
"""Held by the watch and by the protocol, whatever the kernel offers."""


def expected(plan: Plan) -> dict[str, bool]:
    """What must hold under a plan: written down here from the manual pages, not taken from what the verb says."""
    no_network = plan.network_namespace or plan.seccomp
    apart = bool(plan.landlock or plan.first_user or plan.user_namespace)
    return {
        **dict.fromkeys(ALWAYS, True),
        "environment": apart or (os.geteuid() == 0 and plan != Plan()),
        "reads": plan.landlock >= 1,
        "writes": plan.landlock >= 1,
        "connect": no_network or plan.landlock >= 4,
        "services": plan.seccomp,
        "listen": plan.seccomp or plan.landlock >= 4,
        "datagrams": no_network,
        "signals": plan.pid_namespace or bool(plan.first_user) or plan.landlock >= 6,
        "file-size": plan.limits,
    }


@pytest.fixture(scope="module")
def whole() -> tuple[Plan, dict[str, Finding]]:
    plan, found = try_out()
    return plan, {one.name: one for one in found}


@pytest.mark.parametrize("name", NAMES)
def test_what_this_machine_enforces(name: str, whole: tuple[Plan, dict[str, Finding]]) -> None:
    plan, found = whole
    assert found[name].enforced == expected(plan)[name], found[name]
    assert bool(found[name].how) == found[name].enforced


@pytest.fixture(scope="module")
def key_and_scene() -> Iterator[tuple[str, Scene]]:
    with own_key() as key, scene(key) as outside:
        yield key, outside


HOLDS = {
    "limits": ["file-size"],
    "user": ["signals"],
    "pid-namespace": ["signals"],
    "network-namespace": ["connect", "datagrams"],
    "landlock": ["environment", "reads", "connect", "listen", "signals"],
    "seccomp": ["connect", "datagrams", "listen", "services"],
}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_mechanism_alone_holds_what_it_should(mechanism: str, key_and_scene: tuple[str, Scene]) -> None:
    outside = key_and_scene[1]
    others = [name for name in MECHANISMS if name != mechanism]
    with Sandbox(without=others, warm=()) as sandbox:
        wanted = expected(sandbox.plan)
        for name in HOLDS[mechanism]:
            if name == "signals" and not wanted[name]:
                continue  # the victim is needed by the next
            found = finding(name, sandbox, outside)
            assert found.enforced == wanted[name], (sandbox.plan, found)


def test_with_nothing_nothing_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sandbox", "--sandbox", "none", "--json", "--require", "loop,reads"]) == 2
    said = capsys.readouterr()
    assert "your rights" in said.err
    assert "required, and not enforced here: reads" in said.err
    told = json.loads(said.out)
    assert told["mechanisms"] == []
    assert {one["name"] for one in told["protections"] if one["enforced"]} == ALWAYS
    seen = {one["name"]: one["evidence"] for one in told["protections"]}
    assert seen["signals"] == "a process outside was killed"
    assert seen["environment"] == "it saw the key"
    assert seen["connect"] == "a TCP connection arrived"


def test_the_table_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Finding(name="reads", protection="reading outside", enforced=False, how="", evidence="it read"),
        Finding(name="loop", protection="an endless loop", enforced=True, how="watch", evidence="timeout"),
    ]
    monkeypatch.setattr("befit.propose.sandbox.trial.try_out", lambda **_: (Plan(limits=True), found))
    assert cli.main(["sandbox"]) == 0
    said = capsys.readouterr().out
    assert "limits of the kernel" in said
    assert "Not enforced here: reads." in said
    assert cli.main(["sandbox", "--require", "loop"]) == 0
    assert cli.main(["sandbox", "--require", "all"]) == 2
    assert cli.main(["sandbox", "--require", "writing"]) == 2
    assert "expected some of environment" in capsys.readouterr().err


def test_unknown_names_are_refused_before_anything_is_started() -> None:
    with pytest.raises(BadBudget, match="expected some of limits, user"):
        try_out(without=["apparmor"])
    with pytest.raises(BadBudget, match="no protection firewall"):
        required([], ["firewall"])


def test_every_hostile_program_is_python() -> None:
    for program in HOSTILE.values():
        compile(program.source, program.protection, "exec")


def test_what_may_be_read_is_no_home_and_no_root() -> None:
    paths = set(readable())
    assert not paths & {"/", "/root", "/home", "/etc", "/tmp", "/proc", str(Path.home()), str(Path.cwd())}
    assert sys.prefix in paths


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_of_system_calls_is_well_formed(machine: str) -> None:
    """Every jump stays inside, the last instruction answers, and the size is that of whole instructions."""
    for gpu in (False, True):
        code = seccomp.program(machine, gpu=gpu)
        lines = [code[at : at + 8] for at in range(0, len(code), 8)]
        assert len(code) % 8 == 0 and lines[-1][0] == seccomp.ANSWER
        for at, line in enumerate(lines):
            if line[0] & 0x07 == 0x05:
                assert max(line[2], line[3]) + at + 1 < len(lines)


def test_the_filter_denies_and_allows_what_it_says() -> None:
    """In a process of its own, for a filter is never undone; numbers are checked against libc's own calls."""
    program = """
import ctypes, errno, os, socket, sys, threading
from befit.propose.sandbox import seccomp
seccomp.restrict(gpu=False)
def refused(action):
    try:
        action()
    except OSError as error:
        return error.errno == errno.EPERM
    return False
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    def action():
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)
    return action
assert refused(lambda: socket.socket())
assert refused(lambda: os.memfd_create("x"))
assert refused(call("unshare", 0x10000000))
assert refused(call("ptrace", 0, 0, 0, 0))
assert refused(call("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0))
assert refused(call("mount", 0, 0, 0, 0, 0))
socket.socketpair()
assert refused(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
assert refused(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW))
thread = threading.Thread(target=print, args=("thread",))
thread.start(); thread.join()
assert os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "thread\n"
    assert seccomp.available() or os.uname().machine not in seccomp.DENIED


def test_bubblewrap_holds_files_without_landlock(key_and_scene: tuple[str, Scene]) -> None:
    """Where it is installed and its namespaces are allowed; else it says that it does not start."""
    box = Sandbox(backend="bwrap", without=["landlock", "seccomp"], warm=())
    if shutil.which("bwrap") is None or not confine.find_plan(Path.cwd(), ["pid-namespace"]).pid_namespace:
        with pytest.raises(backends.NoSandbox, match="bwrap"), box:
            pass
        return
    with box:
        for name in ("environment", "reads", "writes", "connect"):
            found = finding(name, box, key_and_scene[1])
            assert found.enforced and found.how.startswith("bwrap"), found


def test_backends_that_are_not_there_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.shutil, "which", lambda _: None)
    for backend, advice in (("bwrap", "install bubblewrap"), ("docker:x", "install it"), ("docker", "docker:IMAGE")):
        with pytest.raises(backends.NoSandbox, match=advice):
            try_out(backend=backend)
