"""System calls that Python does not offer, by ctypes: prctl, capabilities, namespaces, and the number of a call.

Sources: prctl(2), capset(2), unshare(2), user_namespaces(7); call numbers from the kernel's asm/unistd_64.h (x86_64) and
asm-generic/unistd.h (aarch64).
"""

import ctypes
import os
import platform
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2

NEW_MOUNT = 0x00020000
NEW_CGROUP = 0x02000000
NEW_UTS = 0x04000000
NEW_IPC = 0x08000000
NEW_USER = 0x10000000
NEW_PID = 0x20000000
NEW_NETWORK = 0x40000000

CAPSET = {"x86_64": 126}.get(platform.machine(), 91)
LAST_CAPABILITY = 63
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522

MACHINE = platform.machine()


class Refused(OSError):
    """The kernel did not allow a call; the message names it."""


_libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """`result` of a call, or `Refused` with the reason that the kernel gave."""
    if result < 0:
        number = ctypes.get_errno()
        raise Refused(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: object) -> int:
    """A bare system call; -1 with errno set where it fails."""
    ctypes.set_errno(0)
    plain = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return _libc.syscall(ctypes.c_long(number), *plain)


def prctl(option: int, value: int = 0, address: int = 0) -> None:
    """A process control call with a number, and an address or a second number."""
    ctypes.set_errno(0)
    rest = (ctypes.c_ulong(number) for number in (value, address, 0, 0))
    checked(_libc.prctl(ctypes.c_int(option), *rest), f"prctl({option})")


def no_new_privileges() -> None:
    """No program that is started from here on gains rights (setuid, file capabilities); never undone."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """This process is killed when its parent ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process, so none gets away unseen."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def unshare(flags: int) -> None:
    """Namespaces of one's own from here on (some only for children)."""
    ctypes.set_errno(0)
    checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def own_user_namespace(flags: int) -> None:
    """A user namespace in which this user is nobody but itself, and in it the namespaces of `flags`. Needs no rights."""
    user, group = os.getuid(), os.getgid()
    unshare(NEW_USER | flags)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def drop_capabilities(*, keep_reading: bool = False) -> None:
    """No capability is left, nor can one come back; `keep_reading` keeps the one to read files whatever their mode."""
    for number in range(LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except Refused:
            break  # past the last one this kernel has, or no right to: without privileges there is nothing to drop
    kept = 1 << CAP_DAC_READ_SEARCH if keep_reading else 0
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)  # effective, permitted, inheritable; twice 32 bits
    checked(syscall(CAPSET, header, sets), "capset")
    if keep_reading:
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH)  # for a program that this process becomes


def become(user: int, *, keep_reading: bool = False) -> None:
    """This process is `user` from here on, in no group but its own, without capabilities but perhaps that to read."""
    if keep_reading:
        prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    drop_capabilities(keep_reading=keep_reading)
