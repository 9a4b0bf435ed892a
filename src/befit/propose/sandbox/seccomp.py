"""A short list of system calls that no network needs and that would lead out of a sandbox (seccomp(2), classic BPF).

Denied with "operation not permitted": sockets of every kind (pairs of streams stay), memory files (memory that no limit
counts), io_uring, new namespaces, mounts, and reading or controlling other processes. It is the second lock on the same doors:
what a namespace or Landlock already holds is held twice.

CUDA does not start without two of them: memory files, and a Unix socket of packets that it binds and listens on, for processes
that share memory. Both are allowed for a GPU. `connect` stays denied, and so do datagrams, which reach others without it.
"""

import ctypes
import errno
import struct
from collections.abc import Mapping

from befit.propose.sandbox.kernel import (
    MACHINE,
    NEW_CGROUP,
    NEW_IPC,
    NEW_MOUNT,
    NEW_NETWORK,
    NEW_PID,
    NEW_USER,
    NEW_UTS,
    PR_SET_SECCOMP,
    no_new_privileges,
    prctl,
)

SECCOMP_MODE_FILTER = 2

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH of the machine (linux/audit.h)."""

DENIED: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "socket": 41, "connect": 42, "ptrace": 101, "mount": 165, "add_key": 248, "request_key": 249, "keyctl": 250,
        "unshare": 272, "perf_event_open": 298, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310,
        "process_vm_writev": 311, "memfd_create": 319, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "pidfd_getfd": 438,
    },
    "aarch64": {
        "socket": 198, "connect": 203, "ptrace": 117, "mount": 40, "add_key": 217, "request_key": 218, "keyctl": 219,
        "unshare": 97, "perf_event_open": 241, "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270,
        "process_vm_writev": 271, "memfd_create": 279, "bpf": 280, "userfaultfd": 282, "io_uring_setup": 425, "pidfd_getfd": 438,
    },
}  # fmt: skip
SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
UNIX, STREAM, PACKETS, TYPE_BITS = 1, 1, 5, 0xF
"""Family and types of sockets that need `connect` to reach anybody."""

GPU_ALLOWED = frozenset({"memfd_create", "socket"})
"""Calls of the list that a GPU's driver makes; `socket` for streams and packets of this machine alone."""

CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
X32 = 0x40000000
NAMESPACES = NEW_MOUNT | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_USER | NEW_PID | NEW_NETWORK

LOAD, AND, JUMP_EQUAL, JUMP_ABOVE, JUMP_BITS, ANSWER = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT, SECOND_ARGUMENT_AT = 0, 4, 16, 24


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def available() -> bool:
    """Whether the list is known for this machine."""
    return MACHINE in DENIED


def _one(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, then, otherwise, value)


def _streams(number: int) -> list[bytes]:
    """Of the call `number` (family, type, …), only those that make streams and packets between processes of this machine."""
    return [
        _one(JUMP_EQUAL, number, 0, 8),
        _one(LOAD, FIRST_ARGUMENT_AT),
        _one(JUMP_EQUAL, UNIX, 0, 4),
        _one(LOAD, SECOND_ARGUMENT_AT),
        _one(AND, TYPE_BITS),
        _one(JUMP_EQUAL, STREAM, 2, 0),
        _one(JUMP_EQUAL, PACKETS, 1, 0),
        _one(ANSWER, DENY | errno.EPERM),
        _one(ANSWER, ALLOW),
    ]


def program(machine: str, *, gpu: bool = False) -> bytes:
    """The filter as BPF instructions; `gpu` lets through what its driver needs."""
    refuse = _one(ANSWER, DENY | errno.EPERM)
    lines = [
        _one(LOAD, ARCHITECTURE_AT),
        _one(JUMP_EQUAL, ARCHITECTURE[machine], 1, 0),
        _one(ANSWER, KILL),  # a 32-bit call has other numbers: no list holds for it
        _one(LOAD, NUMBER_AT),
        _one(JUMP_ABOVE, X32, 0, 1),
        refuse,
        # The flags of clone3 lie behind a pointer, which no filter can read: without it, libc takes clone.
        _one(JUMP_EQUAL, CLONE3, 0, 1),
        _one(ANSWER, DENY | errno.ENOSYS),
    ]
    for name, number in DENIED[machine].items():
        if not gpu or name not in GPU_ALLOWED:
            lines += [_one(JUMP_EQUAL, number, 0, 1), refuse]
    if gpu:
        lines += _streams(DENIED[machine]["socket"])
    lines += [
        *_streams(SOCKETPAIR[machine]),
        _one(JUMP_EQUAL, CLONE[machine], 0, 3),
        _one(LOAD, FIRST_ARGUMENT_AT),
        _one(JUMP_BITS, NAMESPACES, 0, 1),
        refuse,
        _one(ANSWER, ALLOW),
    ]
    return b"".join(lines)


def restrict(*, gpu: bool) -> None:
    """Install the filter for this process and its children; never undone.

    Raises:
        kernel.Refused: The kernel takes no filter.
    """
    code = program(MACHINE, gpu=gpu)
    held = ctypes.create_string_buffer(code, len(code))
    no_new_privileges()
    filter_ = _Program(len(code) // 8, ctypes.cast(held, ctypes.c_void_p))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(filter_))
