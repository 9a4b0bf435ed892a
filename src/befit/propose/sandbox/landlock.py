"""Landlock: a process gives up files, TCP and signals for good, without any right being needed (landlock(7)).

What may be handled depends on the kernel's ABI: 1 files, 2 moving between folders, 3 truncation, 4 TCP ports, 5 ioctl on
devices, 6 signals and abstract Unix sockets. Everything handled is denied unless a rule allows it.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from befit.propose.sandbox.kernel import checked, no_new_privileges, syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION = 1
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""Rights that a rule on a file, not a folder, may name."""

READ = EXECUTE | READ_FILE | READ_DIR
LAST_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14}
"""The highest file right of an ABI, as a bit; later ABIs have 15."""

TCP_SINCE, SCOPES_SINCE = 4, 6
ALL_TCP = 3
ALL_SCOPES = 3


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def abi() -> int:
    """The ABI that this kernel offers; 0 where there is no Landlock."""
    return max(0, syscall(CREATE_RULESET, None, 0, VERSION))


def restrict(*, readable: Sequence[str], writable: Sequence[str], devices: Sequence[str] = ()) -> None:
    """From here on this process and its children read (and run) only `readable`, and write only `writable`.

    Neither connects nor listens by TCP where the kernel's ABI is 4 or later, nor signals a process outside from 6 on. Paths
    that do not exist are left out.

    Args:
        readable: Files and folders.
        writable: Folders, with all rights but those on devices.
        devices: Device files to read, write and control.

    Raises:
        kernel.Refused: There is no Landlock.
    """
    version = abi()
    every = (2 << LAST_RIGHT.get(version, 15)) - 1
    wanted = _Ruleset(every, ALL_TCP if version >= TCP_SINCE else 0, ALL_SCOPES if version >= SCOPES_SINCE else 0)
    size = 8 if version < TCP_SINCE else 16 if version < SCOPES_SINCE else 24
    rules = checked(syscall(CREATE_RULESET, ctypes.byref(wanted), size, 0), "landlock_create_ruleset")
    try:
        for paths, rights in ((readable, READ), (writable, every & ~(EXECUTE | IOCTL_DEV)), (devices, FILE_RIGHTS)):
            for path in paths:
                _allow(rules, path, rights & every)
        no_new_privileges()
        checked(syscall(RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # absent, or hidden from this user already
    try:
        inside = rights if Path(path).is_dir() else rights & FILE_RIGHTS
        rule = _Beneath(inside, place)
        checked(syscall(ADD_RULE, rules, PATH_BENEATH, ctypes.byref(rule), 0), "landlock_add_rule")
    finally:
        os.close(place)
