"""Training on a GPU in the sandbox: what CUDA does when it starts is let in, and nothing else; without a GPU it says so."""

import os
from collections.abc import Iterator

import pytest

from befit.propose.sandbox.box import Sandbox
from befit.propose.sandbox.tasks import execute

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
    assert result.value.pop("thread") == "cuda-EvtHandlr"
    assert set(result.value.values()) == {"done"}, result.value
    assert open_for_gpu.plan.gpu and not open_for_gpu.plan.pid_namespace


def test_and_nothing_else(open_for_gpu: Sandbox) -> None:
    result = open_for_gpu.run(execute, source=REACHES, arguments={"parent": os.getpid()}, fresh=True)
    assert result.ok, result.message
    held = {name for name, said in result.value.items() if said != "done"}
    files = (
        {"a thread of another process", "shared memory", "shared file"} if open_for_gpu.plan.landlock else set[str]()
    )
    assert held >= (set(result.value) - {"a thread of another process", "shared memory", "shared file"}) | files
