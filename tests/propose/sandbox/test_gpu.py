"""Training on a GPU in the sandbox: what CUDA does when it starts is let in, and nothing else; without a GPU it says so."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from befit.propose.config import ProposeConfig
from befit.propose.judge import Training, judge, reach_gpu
from befit.propose.loop import propose
from befit.propose.models import script
from befit.propose.sandbox import confine, nvml
from befit.propose.sandbox.backends import NoSandbox, environment
from befit.propose.sandbox.box import Sandbox
from befit.propose.sandbox.candidate import one_line, reason_of
from befit.propose.sandbox.confine import Plan
from befit.propose.sandbox.hostile import HOSTILE
from befit.propose.sandbox.limits import Limits
from befit.propose.sandbox.tasks import execute
from befit.propose.sandbox.trial import GPU_NAMES, NAMES, Finding, left_out, try_out
from befit.propose.sandbox.watch import Watch
from befit.vision.data import Images, load_images
from befit.vision.training import TrainConfig

STARTS = """
import ctypes, os, socket, threading
answer = {}
def attempt(name, action):
    try:
        answer[name] = str(action() or "done")
    except OSError as error:
        answer[name] = error.strerror
def name_thread():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "r+") as file:
        file.write("cuda-EvtHandlr")
    return open(f"/proc/self/task/{threading.get_native_id()}/comm").read().strip()
def in_a_thread():
    told = []
    thread = threading.Thread(target=lambda: attempt("thread", name_thread))
    thread.start()
    thread.join()
in_a_thread()
def listen():
    place = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place.bind(f"\\0cuda-uvmfd-{os.getpid()}")
    place.listen(16)
attempt("listen", listen)
attempt("memory file", lambda: os.close(os.memfd_create("x")))
attempt("maps", lambda: open("/proc/self/maps").read(1) and None)
attempt("least address", lambda: open("/proc/sys/vm/mmap_min_addr").read(1) and None)
attempt("block size", lambda: os.listdir("/sys/devices/system/node") and None)
attempt("environment", lambda: open("/proc/self/environ").read(1) and None)
"""
"""What a driver of NVIDIA does when CUDA starts (570 and later), as far as it goes without its devices."""

REACHES = """
import socket, os
answer = {}
def attempt(name, action):
    try:
        action()
        answer[name] = "done"
    except OSError as error:
        answer[name] = error.strerror
for name, family, kind in (("TCP", 2, 1), ("UDP", 2, 2), ("TCP6", 10, 1), ("datagram", 1, 2), ("raw", 1, 3), ("netlink", 16, 3)):
    attempt(name, lambda: socket.socket(family, kind))
attempt("pair", lambda: socket.socketpair(1, 2))
attempt("connect", lambda: socket.socket(1, 1).connect("/tmp/x"))
attempt("a thread of another process", lambda: open(f"/proc/{arguments['parent']}/task/{arguments['parent']}/comm", "r+"))
attempt("shared memory", lambda: os.listdir("/dev/shm"))
attempt("shared file", lambda: open("/dev/shm/befit-x", "w"))
"""


@pytest.fixture(scope="module")
def open_for_gpu() -> Iterator[Sandbox]:
    """The sandbox of GPU training, with or without a GPU."""
    with Sandbox(gpu=True, warm=()) as sandbox:
        yield sandbox


def test_what_cuda_does_when_it_starts_is_let_in(open_for_gpu: Sandbox) -> None:
    result = open_for_gpu.run(execute, source=STARTS, fresh=True)
    assert result.ok, result.message
    assert result.value["thread"] == "cuda-EvtHandlr"
    assert {said for name, said in result.value.items() if name != "thread"} == {"done"}, result.value
    assert open_for_gpu.plan.gpu and not open_for_gpu.plan.pid_namespace


FOUND = Finding(name="cuda", protection="computing on the GPU", enforced=True, how="its devices", evidence="H200")


def test_what_is_left_out_for_a_gpu_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from befit import cli  # needs tyro, which the other tests do without

    root = ["a user of its own (it may not open the devices)"] if os.geteuid() == 0 else []
    assert left_out(Plan(gpu=True)) == ["process namespace", "RLIMIT_DATA", *root]
    assert left_out(Plan(gpu=True, first_user=7), ["limits"]) == ["process namespace"]
    assert left_out(Plan()) == []
    monkeypatch.setattr("befit.propose.sandbox.trial.try_out", lambda **_: (Plan(gpu=True, first_user=7), [FOUND]))
    assert cli.main(["sandbox", "--gpu"]) == 0
    assert "Left out, for CUDA does not work with it: process namespace, RLIMIT_DATA." in capsys.readouterr().out
    assert [row.by(Plan(gpu=True, limits=True)) for row in (HOSTILE["memory"],)] == [["watch"]]


def test_and_nothing_else(open_for_gpu: Sandbox) -> None:
    result = open_for_gpu.run(execute, source=REACHES, arguments={"parent": os.getpid()}, fresh=True)
    assert result.ok, result.message
    plan, files = open_for_gpu.plan, {"a thread of another process", "shared memory", "shared file"}
    open_ways = {name for name, said in result.value.items() if said == "done"}
    assert open_ways <= (set() if plan.landlock else files) | (set() if plan.seccomp else set(result.value) - files)


SLOW_START = """
import pathlib, time
from befit.propose.sandbox.candidate import ready
time.sleep(arguments["start"])
ready(pathlib.Path())
time.sleep(arguments["then"])
"""


@pytest.mark.parametrize(("then", "reason"), [(0.1, None), (8.0, "timeout")])
def test_time_counts_from_when_a_task_is_ready(open_for_gpu: Sandbox, then: float, reason: str | None) -> None:
    limits = Limits(wall_seconds=2, start_seconds=30)
    result = open_for_gpu.run(execute, source=SLOW_START, arguments={"start": 1.2, "then": then}, limits=limits)
    assert (result.ok, result.reason) == (reason is None, reason)
    assert result.start_seconds >= 1.2 and result.seconds < 5
    assert result.ok or result.message == "was not done after 2 s"


def test_a_start_without_end_is_ended(open_for_gpu: Sandbox) -> None:
    limits = Limits(wall_seconds=0.2, start_seconds=0.3)
    result = open_for_gpu.run(execute, source="import time; time.sleep(15)", limits=limits)
    assert (result.reason, result.message) == ("timeout", "was not done after 0.2 s, 0.3 s for its start on top")
    assert result.seconds < 8


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be reported later", "out-of-memory"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out-of-memory"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "out-of-memory"),
        ("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`", "invalid"),
    ],
)
def test_errors_of_cuda_have_reasons_and_one_line(said: str, reason: str) -> None:
    error = RuntimeError(said)
    assert reason_of(error) == reason
    assert one_line(error) == f"RuntimeError: {said.splitlines()[0]}"
    assert reason_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")) == "out-of-memory"


def test_candidates_see_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, seen in (("1,2", "1"), ("", ""), (None, "0")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if told is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        assert environment(Path("/x"), gpu=True)["CUDA_VISIBLE_DEVICES"] == seen
        assert environment(Path("/x"), gpu=False)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_who_may_not_open_the_devices_is_no_candidate(monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """Where a device is root's alone, a user of its own could not compute; the plan then says that there is none."""
    with tempfile.TemporaryDirectory() as name:
        place, device = Path(name), Path(name, "nvidia0")
        place.chmod(0o755)  # other users pass through
        device.touch()
        device.chmod(mode)
        monkeypatch.setattr(confine, "computing", lambda: [str(device)])
        user = confine.find_plan(place, confine.MECHANISMS).first_user
        assert confine.find_plan(place, confine.MECHANISMS, gpu=True).first_user == (user if mode == 0o666 else 0)


def _count(count: Any) -> int:
    count._obj.value = 2
    return 0


def _handle(index: int, device: Any) -> int:
    device._obj.value = index + 1
    return 0


def _processes(device: Any, length: Any, found: Any) -> int:
    """Process 7 has memory on both devices, that of 8 cannot be told."""
    for place, (process, size) in enumerate(((7, 100 * device.value), (8, nvml.UNKNOWN), (9, 5 * device.value))):
        found[place].process, found[place].bytes = process, size
    length._obj.value = 3
    return 0


def test_gpu_memory_is_that_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(nvmlDeviceGetCount_v2=_count, nvmlDeviceGetHandleByIndex_v2=_handle)
    monkeypatch.setattr(nvml, "_library", lambda: library)
    monkeypatch.setattr(nvml, "_ask", lambda: _processes)
    assert nvml.used({7}) == 300 and nvml.used({7, 9}) == 315
    assert nvml.used({8}) is None and nvml.used({1}) is None
    monkeypatch.setattr(nvml, "_library", lambda: None)
    assert nvml.used({7}) is None


@pytest.mark.parametrize(("used", "reason"), [(3 << 30, "out-of-memory"), (1 << 30, None), (None, None)])
def test_the_watch_ends_who_takes_too_much_gpu_memory(
    monkeypatch: pytest.MonkeyPatch, used: int | None, reason: str | None
) -> None:
    """One GiB is left for CUDA itself."""
    monkeypatch.setattr(nvml, "used", lambda tree: used if tree == [7] else None)
    watch = Watch.__new__(Watch)
    watch.limits = Limits(gpu_bytes=1 << 30)
    assert watch._on_gpu([7]) == (reason and (reason, "used more than 1024 MiB of GPU memory"))
    watch.limits = Limits()
    assert watch._on_gpu([7]) is None


def test_without_a_gpu_it_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from befit import cli  # needs tyro, which the other tests do without

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["sandbox", "--gpu"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert cli.main(["propose", "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main(["sandbox", "--require", "cuda"]) == 2
    assert "with --gpu only" in capsys.readouterr().err


def test_cuda_that_does_not_come_up_is_not_blamed_on_proposals(images: Images) -> None:
    """In a sandbox that lets no device in, as one in which the driver refuses to start."""
    with Sandbox(warm=()) as sandbox:
        with pytest.raises(
            NoSandbox, match=r"does not come up in the sandbox native \(crash: no CUDA device: .+--device cpu"
        ):
            reach_gpu(sandbox)
        found = judge(sandbox, SOURCE, images, TRAINING, seed=0)
        assert found.reason == "crash" and found.said.startswith("no CUDA device")


SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        _, channels, height, width = in_shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * height * width, out_shape[0]))

    def forward(self, x):
        # here
        return self.body(x)
"""
TRAINING = Training(config=TrainConfig(epochs=8, batch=32), device="cuda", seconds=60, memory_bytes=1 << 30)


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images(None, size=None)


@pytest.mark.gpu
def test_training_on_a_gpu_scores_as_on_the_cpu(open_for_gpu: Sandbox, images: Images) -> None:
    here = judge(open_for_gpu, SOURCE, images, TRAINING, seed=1)
    assert not here.reason, here.said
    with Sandbox() as plain:
        there = judge(plain, SOURCE, images, replace(TRAINING, device="cpu"), seed=1)
    assert here.accuracy and there.accuracy and min(here.accuracy, there.accuracy) > 0.9
    assert abs(here.accuracy - there.accuracy) < 0.05


@pytest.mark.gpu
def test_a_gpu_opens_nothing_else() -> None:
    """All programs of `befit sandbox` once more where the driver is let in, and those that use it."""
    plan, found = try_out(gpu=True)
    needs = {"reads": plan.landlock, "writes": plan.landlock, "services": plan.seccomp, "listen": plan.seccomp}
    needs |= {"signals": plan.first_user or plan.landlock >= 6, "connect": plan.seccomp, "datagrams": plan.seccomp}
    wanted = {name for name in (*NAMES, *GPU_NAMES) if needs.get(name, True)}
    assert {one.name: one.evidence for one in found if one.name in wanted and not one.enforced} == {}


BAD = {
    "memory": ("held = [torch.empty(1 << 28, device=x.device) for _ in range(24)]", "out-of-memory", "memory"),
    "assert": ("torch.zeros(3, device=x.device)[torch.tensor([7], device=x.device)].item()", "invalid", "CUDA error"),
    "hang": ("torch.cuda._sleep(20_000_000_000); torch.cuda.synchronize()", "timeout", "was not done after 3 s"),
}
"""Lines of `forward`, and what they are worth; each does no harm and ends by itself."""


@pytest.mark.gpu
def test_what_goes_wrong_on_a_gpu_costs_one_trial(open_for_gpu: Sandbox, images: Images) -> None:
    for name, (line, reason, said) in BAD.items():
        limited = replace(TRAINING, seconds=3) if name == "hang" else TRAINING
        found = judge(open_for_gpu, SOURCE.replace("# here", line), images, limited, seed=0)
        assert (found.accuracy, found.reason) == (None, reason), (name, found.said)
        assert said in found.said, (name, found.said)
    assert judge(open_for_gpu, SOURCE, images, TRAINING, seed=0).accuracy


@pytest.mark.gpu
def test_a_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("befit.report.frame._plotly", lambda: "")  # the page is not what is tested
    quick = TrainConfig(epochs=8, batch=32)
    config = ProposeConfig(proposals=1, train=quick, final=quick, device="cuda", out=tmp_path / "run")
    summary = propose(config, model=script(f"```python\n{SOURCE}\n```"))
    assert summary["arms"][0]["funnel"]["trained"] == 1
    assert summary["best"][0]["test"] > 0.85
    held = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert {one.device.type for one in held.values()} == {"cpu"} and all(one.isfinite().all() for one in held.values())
