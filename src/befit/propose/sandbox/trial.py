"""`befit sandbox`: set a scene outside, let every hostile program try itself on it, and say what held."""

import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from befit.errors import BadBudget
from befit.propose.sandbox import backends, tasks
from befit.propose.sandbox.answers import Expected, accuracy
from befit.propose.sandbox.box import Result, Sandbox
from befit.propose.sandbox.confine import MECHANISMS, Plan
from befit.propose.sandbox.hostile import HOSTILE, Scene
from befit.propose.sandbox.hostile_gpu import COMPUTE, LIMITS, ON_GPU

SCORE = "score"
NAMES = (*HOSTILE, SCORE)
"""Protections, by the names that can be required."""

COMPUTES = "cuda"
GPU_NAMES = (*ON_GPU, COMPUTES)
"""What `--gpu` tries beside them."""


FORGER = """
import json, sys, os
answers = sys.modules["befit.propose.sandbox.answers"]
answers.accuracy = lambda logits, labels: 1.0
print(json.dumps({"ok": True, "value": {"accuracy": 1.0}}))
answer = {"accuracy": 1.0, "labels": [name for name in os.listdir() if "label" in name and "train" not in name]}
import numpy as np
from safetensors.numpy import save_file
save_file({"logits": np.eye(10, dtype="float32")[np.zeros(100, int)]}, "answer.safetensors")
"""
"""Says that it is always right, by every channel it has, and predicts the first class."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one hostile program."""

    name: str
    """For `--require`."""

    protection: str
    """What is protected."""

    enforced: bool
    """Whether it held."""

    how: str
    """What holds it; empty where nothing did."""

    evidence: str
    """What was seen."""


@contextmanager
def own_key() -> Iterator[str]:
    """A key in befit's own environment, as a user's would be."""
    value = secrets.token_hex(8)
    name = f"BEFIT_PROBE_{value}_API_KEY"
    os.environ[name] = f"KEY-{value}"
    try:
        yield f"KEY-{value}"
    finally:
        del os.environ[name]


@contextmanager
def scene(key: str) -> Iterator[Scene]:
    """Files, a folder, sockets and a process outside, all open to every user: only the sandbox keeps a program from them."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="befit-outside-")))
        target = place / "target"
        target.mkdir()
        for path, text in ((place / "secret", "secret"), (target / "kept", "kept")):
            path.write_text(text)
            path.chmod(0o666)
        place.chmod(0o755)
        target.chmod(0o777)
        service = stack.enter_context(socket.socket(socket.AF_UNIX))
        service.bind(str(place / "service"))
        service.listen()
        (place / "service").chmod(0o666)
        stream = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = stream.getsockname()[1]
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("127.0.0.1", port))
        victim = subprocess.Popen(["sleep", "600"])
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        name = f"bf{secrets.token_hex(6)}"
        yield Scene(
            key=key,
            secret=place / "secret",
            target=target,
            port=port,
            victim=victim.pid,
            parent=os.getpid(),
            name=name,
            answered=lambda: _answered(stream, datagrams),
            victim_alive=lambda: _alive(victim),
            stragglers=lambda: _called(name),
        )


def _alive(victim: "subprocess.Popen[bytes]") -> bool:
    """Whether it is still there a moment later: on a busy machine a killed process takes some milliseconds to end."""
    try:
        victim.wait(0.5)
    except subprocess.TimeoutExpired:
        return True
    return False


def _answered(stream: socket.socket, datagrams: socket.socket) -> str:
    """What has arrived; waits a moment for what is under way."""
    stream.settimeout(0.1)
    datagrams.settimeout(0.1)
    arrived = []
    try:
        stream.accept()[0].close()
        arrived.append("a TCP connection")
    except TimeoutError:
        pass
    try:
        datagrams.recv(1)
        arrived.append("a UDP datagram")
    except TimeoutError:
        pass
    return " and ".join(arrived)


def _called(name: str) -> int:
    found = 0
    for place in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += place.read_text().strip() == name
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def try_out(*, backend: str = "native", without: Sequence[str] = (), gpu: bool = False) -> tuple[Plan, list[Finding]]:
    """Start a sandbox as a run would and try every protection; about 10 seconds, 30 with a GPU.

    Args:
        backend: "native", "bwrap", "docker:IMAGE" or "none".
        without: Mechanisms (`confine.MECHANISMS`) to leave out.
        gpu: As a run that trains on a GPU would; then what is let in for it is open to the programs, too.

    Raises:
        NoSandbox: It does not start, or there is no CUDA device.
        BadBudget: `without` names no mechanism.
    """
    unknown = set(without) - set(MECHANISMS)
    if unknown:
        raise BadBudget(f"without {', '.join(sorted(unknown))}: expected some of {', '.join(MECHANISMS)}")
    if gpu:
        _needs_cuda()
    # The key must be there when the server starts: it is the server's environment that candidates could inherit.
    with (
        own_key() as key,
        Sandbox(backend=backend, without=without, warm=(_modules,), gpu=gpu) as sandbox,
        scene(key) as outside,
    ):
        found = [finding(name, sandbox, outside) for name in HOSTILE]
        found.append(_forged(sandbox))
        if gpu:
            found += [*(finding(name, sandbox, outside) for name in ON_GPU), _computes(sandbox)]
        return sandbox.plan, found


def _needs_cuda() -> None:
    """Raises `NoSandbox` where torch finds no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise backends.NoSandbox(f"no CUDA device: torch {torch.__version__} finds none here; leave --gpu out")


def _computes(sandbox: Sandbox) -> Finding:
    """Not what a candidate is kept from, but what it must be let do."""
    result = sandbox.run(tasks.execute, source=COMPUTE, limits=LIMITS, fresh=True)
    held = result.ok and list(result.value.values()) == [9.0]
    what = "computing on the GPU (must work)"
    return Finding(
        name=COMPUTES,
        protection=what,
        enforced=held,
        how="its devices are let in" if held else "",
        evidence=_said(result),
    )


def _said(result: Result) -> str:
    return ", ".join(result.value) if result.ok else f"{result.reason}: {result.message}"


def _modules() -> None:
    """Warming up for programs that need no torch: what the forger patches, and nothing else."""


def finding(name: str, sandbox: Sandbox, outside: Scene) -> Finding:
    """Let one program of `HOSTILE` or `ON_GPU` try itself."""
    program = (HOSTILE | ON_GPU)[name]
    arguments, fresh = outside.arguments(), name in ON_GPU
    result = sandbox.run(tasks.execute, source=program.source, arguments=arguments, limits=program.limits, fresh=fresh)
    held, evidence = program.judge(result, outside)
    wall = [sandbox.backend] if program.outer and sandbox.backend not in ("native", "none") else []
    how = ", ".join([*wall, *program.by(sandbox.plan)]) if held else ""
    return Finding(name=name, protection=program.protection, enforced=held, how=how, evidence=evidence)


def _forged(sandbox: Sandbox) -> Finding:
    """A candidate that says it is always right is scored by its predictions, where the labels are."""
    labels = np.arange(100) % 10
    wanted = {"logits": Expected(shape=(100, 10))}
    result = sandbox.run(tasks.execute, source=FORGER, files={"train_labels": labels}, expects=wanted)
    score = accuracy(result.arrays["logits"], labels) if result.ok else float("nan")
    held = result.ok and score == 0.1 and result.value.get("labels") == []
    claimed = f"it claimed {result.value.get('accuracy')}, its predictions score {score:g}"
    return Finding(
        name=SCORE,
        protection="forging a score",
        enforced=held,
        how="labels and metric stay outside" if held else "",
        evidence=claimed if result.ok else result.message,
    )


def mechanisms(plan: Plan) -> list[str]:
    """What is active, in words."""
    words = {
        "limits of the kernel": plan.limits,
        f"users {plan.first_user} and on": plan.first_user,
        "user namespace": plan.user_namespace,
        "process namespace": plan.pid_namespace,
        "network namespace": plan.network_namespace,
        f"Landlock ABI {plan.landlock}": plan.landlock,
        "seccomp": plan.seccomp,
        "GPU let in": plan.gpu,
    }
    return [word for word, active in words.items() if active]


def left_out(plan: Plan, without: Sequence[str] = ()) -> list[str]:
    """What a run without a GPU has and this plan has not, because CUDA would not work; beside what was left `without`."""
    words = {
        "process namespace": "pid-namespace" not in without,
        "RLIMIT_DATA": "limits" not in without,
        "a user of its own (it may not open the devices)": os.geteuid() == 0
        and not plan.first_user
        and "user" not in without,
    }
    return [word for word, so in words.items() if plan.gpu and so]


def required(findings: Sequence[Finding], names: Sequence[str]) -> None:
    """Nothing, where all of `names` hold.

    Raises:
        BadBudget: A name that there is not.
        NoSandbox: One that does not hold here.
    """
    known = (*NAMES, *GPU_NAMES)
    unknown = set(names) - set(known)
    if unknown:
        raise BadBudget(f"there is no protection {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    missing = [found for found in findings if found.name in names and not found.enforced]
    if missing:
        said = "; ".join(f"{found.name} ({found.evidence})" for found in missing)
        raise backends.NoSandbox(f"required, and not enforced here: {said}")
