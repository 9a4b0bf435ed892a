"""Does CUDA come up in the sandbox here? If not, what keeps it? And what does a proposal cost on a GPU?

    python benchmarks/sandbox_gpu.py --json benchmarks/results/sandbox_gpu.json

1. CUDA starts in the whole sandbox, in a fresh process.
2. If it does not, or with --watch: what CUDA does when it starts freely, every file that it opens and every call that the
   sandbox denies, as the kernel tells it (seccomp_unotify(2)). Each of these files is then opened in the sandbox the same way,
   and those that fail only there are named.
3. If it does not: with some mechanisms left out.
4. If it does: seconds of a proposal, for a small network on the digits and on 4,000 images of 32 x 32, on the GPU and the CPU.
5. Every protection, tried with the GPU let in.

Every answer is written, and its beginning printed, at once: a run that is cut off keeps what it has.
"""

import argparse
import ctypes
import errno
import fcntl
import json
import os
import platform
import select
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from befit.errors import BefitError
from befit.propose import fitting
from befit.propose.judge import Training, judge
from befit.propose.sandbox import backends, landlock, seccomp, tasks
from befit.propose.sandbox.box import Result, Sandbox
from befit.propose.sandbox.confine import GPU_READABLE, GPU_WRITABLE, MECHANISMS
from befit.propose.sandbox.hostile_gpu import LIMITS
from befit.propose.sandbox.kernel import checked, no_new_privileges, syscall
from befit.propose.sandbox.trial import mechanisms, try_out
from befit.rundir import write_json
from befit.vision.data import Images, from_arrays, load_images
from befit.vision.training import TrainConfig

SECCOMP, MODE_FILTER, NEW_LISTENER = {"x86_64": 317, "aarch64": 277}, 1, 8
NOTIFY, ALLOW = 0x7FC00000, 0x7FFF0000
RECEIVE, SEND, GO_ON = 0xC0502100, 0xC0182101, 1
NOTICE, NOTICE_BYTES = struct.Struct("=QIIiIQ6Q"), 80
OPENS = {"x86_64": {"open": 2, "openat": 257}, "aarch64": {"openat": 56}}
OTHERS = {"x86_64": {"bind": 49, "execve": 59, "mknodat": 259}, "aarch64": {"bind": 200, "execve": 221, "mknodat": 33}}
MACHINE = platform.machine()

SHOWN = 1800
"""Characters of each step's answer that are printed; the file has all."""

FAILS = (OSError, RuntimeError, ValueError, LookupError, AssertionError, BefitError, struct.error)
SOON = replace(LIMITS, wall_seconds=5, start_seconds=25)
"""For a driver that waits instead of failing."""

STARTING = """
import torch
torch.cuda.init()
layer = torch.nn.Conv2d(3, 8, 3).cuda()
layer(torch.rand(2, 3, 16, 16, device="cuda")).sum().backward()
torch.cuda.synchronize()
print(torch.cuda.get_device_name())
"""
"""What is watched."""

TRACED = f"""
import sys, torch
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import sandbox_gpu
sandbox_gpu.be_watched(int(sys.argv[1]))
exec(sys.argv[2])
"""

LOOK = """
import errno, os
answer = {}
for path, flags in arguments["files"]:
    try:
        os.close(os.open(path, flags))
        answer[f"{path} {flags}"] = "opened"
    except OSError as error:
        answer[f"{path} {flags}"] = errno.errorcode.get(error.errno, str(error.errno))
"""
"""Opens files as they were opened; nothing is made or emptied."""

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        width = 32
        self.body = nn.Sequential(
            nn.Conv2d(in_shape[1], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, out_shape[0]))

    def forward(self, x):
        return self.body(x)
"""


def be_watched(channel: int) -> None:
    """From here on every call of `watched_calls` is told to whoever is at the other end of the socket `channel`."""
    lines = [struct.pack("HBBI", seccomp.LOAD, 0, 0, seccomp.NUMBER_AT)]
    for number in watched_calls().values():
        lines += [
            struct.pack("HBBI", seccomp.JUMP_EQUAL, 0, 1, number),
            struct.pack("HBBI", seccomp.ANSWER, 0, 0, NOTIFY),
        ]
    code = b"".join([*lines, struct.pack("HBBI", seccomp.ANSWER, 0, 0, ALLOW)])
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held))
    no_new_privileges()
    with socket.socket(fileno=channel) as other_end:
        made = syscall(SECCOMP[MACHINE], MODE_FILTER, NEW_LISTENER, ctypes.create_string_buffer(program, len(program)))
        listener = checked(made, "seccomp with a listener")
        socket.send_fds(other_end, [b"x"], [listener])
        os.close(listener)


def watched_calls() -> dict[str, int]:
    """Number by name: opening files, and what the sandbox denies."""
    return {**OPENS[MACHINE], **OTHERS[MACHINE], **seccomp.DENIED[MACHINE]}


def watched(program: str, seconds: float) -> dict[str, Any]:
    """Run `program` freely and tell each watched call once: files with their flags, other calls with their numbers."""
    names = {number: name for name, number in watched_calls().items()}
    files, calls = dict[tuple[str, int], int](), dict[str, int]()
    here, there = socket.socketpair()
    argv = [sys.executable, "-c", TRACED, str(there.fileno()), program]
    process = subprocess.Popen(
        argv, pass_fds=[there.fileno()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ}
    )
    there.close()
    here.settimeout(seconds)
    until = time.monotonic() + seconds
    try:
        listener = socket.recv_fds(here, 1, 1)[1][0]
    except (OSError, IndexError) as error:
        process.kill()
        said = process.communicate()[0].decode(errors="replace")
        return {"failed": f"{error!r}: {said[-600:]}"}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while process.poll() is None and time.monotonic() < until:
        for _, event in poll.poll(200):
            if event & select.POLLIN:
                _one_notice(listener, names, files, calls)
    process.kill()
    os.close(listener)
    said = process.communicate()[0].decode(errors="replace").strip()
    return {
        "status": process.returncode,
        "said": said[-600:],
        "files": [[path, flags] for path, flags in files],
        "calls": calls,
    }


def _one_notice(
    listener: int, names: Mapping[int, str], files: dict[tuple[str, int], int], calls: dict[str, int]
) -> None:
    """Take one notice, write it down, and let the call go on."""
    notice = bytearray(NOTICE_BYTES)
    try:
        fcntl.ioctl(listener, RECEIVE, notice)
    except OSError:
        return  # its process has been ended meanwhile
    number, process, _, call, _, _, *arguments = NOTICE.unpack(notice)
    name = names.get(call, str(call))
    if name in ("open", "openat"):
        place, flags = arguments[:2] if name == "open" else arguments[1:3]
        key = _text(process, place), int(flags) & (os.O_ACCMODE | os.O_DIRECTORY)
        files[key] = files.get(key, 0) + 1
        if flags & os.O_CREAT:
            calls[f"makes {key[0]}"] = calls.get(f"makes {key[0]}", 0) + 1
    else:
        told = f"{name}({', '.join(map(str, arguments[:3]))})" if name == "socket" else name
        told += f" {_text(process, arguments[0])}" if name == "execve" else ""
        told += f" {_address(process, *arguments[1:3])}" if name in ("bind", "connect") else ""
        calls[told] = calls.get(told, 0) + 1
    try:
        fcntl.ioctl(listener, SEND, struct.pack("=QqiI", number, 0, 0, GO_ON))
    except OSError:
        return  # ended meanwhile, as above


def _text(process: int, place: int) -> str:
    return _memory(process, place, 256).partition(b"\0")[0].decode(errors="replace")


def _address(process: int, place: int, size: int) -> str:
    held = _memory(process, place, min(size, 110))
    name = held[2:].rstrip(b"\0").decode(errors="replace")
    return f"family {int.from_bytes(held[:2], sys.byteorder)} {name!r}"


def _memory(process: int, place: int, size: int) -> bytes:
    try:
        with Path(f"/proc/{process}/mem").open("rb", 0) as memory:
            memory.seek(place)
            return memory.read(size)
    except OSError:
        return b"?"


def machine() -> dict[str, Any]:
    """What is here."""
    version = Path("/proc/driver/nvidia/version")
    return {
        "kernel": platform.release(),
        "user": os.geteuid(),
        "cores": os.cpu_count(),
        "landlock": landlock.abi(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": version.read_text().splitlines()[0] if version.exists() else None,
        "devices": [_device(path) for path in sorted([*Path("/dev").glob("nvidia*"), *Path("/dev").glob("nvidia*/*")])],
        "let_in": [*GPU_READABLE, *GPU_WRITABLE],
    }


def _device(path: Path) -> str:
    found = path.lstat()
    return f"{path} {stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid}"


def come_up(without: Sequence[str] = ()) -> dict[str, Any]:
    """Start CUDA in the sandbox without some mechanisms."""
    begun = time.perf_counter()
    try:
        with Sandbox(gpu=True, warm=(), without=without) as sandbox:
            started = time.perf_counter() - begun
            seen = _seen(sandbox.run(fitting.reach_gpu, source="", limits=SOON, fresh=True))
            return {"mechanisms": mechanisms(sandbox.plan), "server_seconds": started, **seen}
    except backends.NoSandbox as error:
        return {"ok": False, "failed": str(error)}


def _seen(result: Result) -> dict[str, Any]:
    kept = "ok", "reason", "message", "seconds", "start_seconds", "cpu_seconds", "peak_bytes", "output"
    return {name: vars(result)[name] for name in kept} | {"value": dict(result.value)}


def guilty(left: Callable[[], float]) -> dict[str, Any]:
    """Whether CUDA starts without some of the mechanisms, those first that are most likely to keep it from that."""
    found = dict[str, Any]()
    alone = [(name,) for name in ("user", "limits", "network-namespace")]
    for without in (("landlock",), ("seccomp",), MECHANISMS, ("landlock", "seccomp"), *alone):
        if left() > 8:
            found[" ".join(without)] = come_up(without)
    return found


def only_refused_inside(files: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Files that open here, and not in the sandbox, with the error's name there. Those of /proc/N are asked for as /proc/self."""
    asked = sorted({(_own(path), flags) for path, flags in files if path.startswith("/")} | _devices())
    outside = dict[str, str]()
    for path, flags in asked:
        try:
            os.close(os.open(path, flags))
            outside[f"{path} {flags}"] = "opened"
        except OSError as error:
            outside[f"{path} {flags}"] = errno.errorcode.get(error.errno or 0, "?")
    with Sandbox(gpu=True, warm=()) as sandbox:
        result = sandbox.run(tasks.execute, source=LOOK, arguments={"files": asked}, limits=LIMITS, fresh=True)
    if not result.ok:
        return {"failed": f"{result.reason}: {result.message}"}
    return {name: said for name, said in result.value.items() if said != "opened" and outside[name] == "opened"}


def _own(path: str) -> str:
    parts = path.split("/")
    if len(parts) > 2 and parts[1] == "proc" and parts[2].isdigit():
        parts[2] = "self"
    if parts[1:4] == ["proc", "self", "task"] and len(parts) > 4:
        return "/proc/thread-self/" + "/".join(parts[5:])
    return "/".join(parts)


def _devices() -> set[tuple[str, int]]:
    fixed = {("/proc/self/maps", 0), ("/proc/thread-self/comm", os.O_RDWR), ("/proc/driver/nvidia/params", 0)}
    return fixed | {(str(path), os.O_RDWR) for path in Path("/dev").glob("nvidia*") if not path.is_dir()}


def costs(images: Images, training: Training, *, runs: int = 1) -> dict[str, Any]:
    """Seconds of a proposal's training as a run does it; what is beside it is starting, writing and reading."""
    gpu = training.device != "cpu"
    made = []
    with Sandbox(gpu=gpu, warm=() if gpu else (tasks.warm, fitting.warm)) as sandbox:
        for seed in range(runs):
            begun = time.perf_counter()
            found = judge(sandbox, NETWORK, images, training, seed=seed)
            made.append({"whole_seconds": time.perf_counter() - begun, **asdict(found)})
    return {"images": len(images.train), "epochs": training.config.epochs, "runs": made}


def protections() -> dict[str, Any]:
    """What `befit sandbox --gpu` says, that which does not hold first."""
    plan, found = try_out(gpu=True)
    failed = {one.name: one.evidence for one in found if not one.enforced}
    return {"not_enforced": failed, "mechanisms": mechanisms(plan), "all": [asdict(one) for one in found]}


def larger() -> Images:
    """4,000 images of 32 x 32 in ten classes that differ in their colours, some noise on top."""
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, 10, 4000)
    colours = drawn.integers(60, 200, (10, 3, 1, 1))
    pixels = colours[labels] + drawn.normal(0, 60, (4000, 3, 32, 32))
    return from_arrays(pixels.clip(0, 255).astype("uint8"), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=110.0, help="no step is begun after it")
    parser.add_argument("--watch", action="store_true", help="tell what CUDA opens also where it comes up")
    asked = parser.parse_args()
    begun, told = time.monotonic(), dict[str, Any]()

    def left() -> float:
        return begun + asked.seconds - time.monotonic()

    def step(name: str, do: Callable[[], Any]) -> Any:
        if left() < 5:
            told[name] = "no time was left"
            return told[name]
        start = time.monotonic()
        try:
            told[name] = do()
        except FAILS as error:  # one step that fails must not take the others' answers along
            told[name] = {"failed": f"{type(error).__name__}: {error}"}
        told.setdefault("step_seconds", {})[name] = time.monotonic() - start
        write_json(asked.json, told)
        print(f"{name} ({told['step_seconds'][name]:.1f} s): {json.dumps(told[name])[:SHOWN]}", flush=True)
        return told[name]

    step("machine", machine)
    if not torch.cuda.is_available():
        raise SystemExit(f"no CUDA device: torch {torch.__version__} finds none here")
    whole = step("whole", come_up)
    if not whole["ok"] or asked.watch:
        seen = step("watched", lambda: watched(STARTING, min(30.0, left())))
        step("refused_only_inside", lambda: only_refused_inside(seen.get("files", [])))
    if whole["ok"]:
        digits, many = load_images(None), larger()
        quick = Training(config=TrainConfig(epochs=8), device="cuda", seconds=60)
        step("gpu_digits", lambda: costs(digits, quick, runs=2))
        step("cpu_digits", lambda: costs(digits, replace(quick, device="cpu"), runs=2))
        step("protections", protections)
        step("gpu_larger", lambda: costs(many, quick))
        step("cpu_larger", lambda: costs(many, replace(quick, device="cpu", config=TrainConfig(epochs=1))))
    else:
        step("guilty", lambda: guilty(left))
        step("protections", protections)
    told["seconds"] = time.monotonic() - begun
    write_json(asked.json, told)


if __name__ == "__main__":
    main()
