"""How much GPU memory processes have, as NVIDIA's management library tells it (NVML API reference, device queries), by ctypes.

What torch's allocator is told in a candidate's process, its code may undo, and it may call the driver without torch. This
count is taken outside. Where the library is missing, or knows processes by other numbers than ours (some containers), there
is none, and nothing may be claimed of it.
"""

import ctypes
from collections.abc import Collection
from functools import cache

LIBRARY = "libnvidia-ml.so.1"
MOST = 256
"""Processes of one GPU that are looked at."""

UNKNOWN = 2**64 - 1
"""NVML's word for memory that it cannot tell."""


class _Process(ctypes.Structure):
    _fields_ = [
        ("process", ctypes.c_uint),
        ("bytes", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute", ctypes.c_uint),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    """The library, ready to be asked; None where there is none."""
    try:
        library = ctypes.CDLL(LIBRARY)
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


@cache
def _ask() -> "ctypes._NamedFuncPointer | None":
    """The query for the processes of a device, in the form whose structure is known here."""
    library = _library()
    try:
        return library.nvmlDeviceGetComputeRunningProcesses_v3 if library is not None else None
    except AttributeError:
        return None


def used(processes: Collection[int]) -> int | None:
    """Bytes of GPU memory that `processes` have together, on all devices; None where that cannot be told."""
    library, ask = _library(), _ask()
    if library is None or ask is None:
        return None
    count, total, known = ctypes.c_uint(), 0, False
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return None
    for index in range(count.value):
        device = ctypes.c_void_p()
        found, length = (_Process * MOST)(), ctypes.c_uint(MOST)
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
            continue
        if ask(device, ctypes.byref(length), found) != 0:
            continue
        for one in found[: length.value]:
            if one.process in processes and one.bytes != UNKNOWN:
                known, total = True, total + one.bytes
    return total if known else None
