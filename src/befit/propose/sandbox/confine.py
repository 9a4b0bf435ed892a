"""What this machine can hold a candidate to, found out by trying, and holding it to that.

`find_plan` tries each mechanism once in a throw-away process; `confine` is called by the candidate's own process before any
line of the candidate runs. A mechanism of the plan that then fails ends the candidate: nothing runs half confined.
"""

import functools
import importlib.util
import os
import resource
import site
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from befit.propose.sandbox import landlock, seccomp
from befit.propose.sandbox.kernel import (
    NEW_IPC,
    NEW_NETWORK,
    NEW_PID,
    become,
    die_with_parent,
    drop_capabilities,
    no_new_privileges,
    own_user_namespace,
    unshare,
)
from befit.propose.sandbox.limits import Limits

PACKAGE = Path(__file__).parents[2]
"""befit's own folder, which candidates read."""

MECHANISMS = ("limits", "user", "pid-namespace", "network-namespace", "landlock", "seccomp")

FIRST_USER = 1 << 30
"""Candidates of root run as users from here on, far above those of people and services."""

SYSTEM_READABLE = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom",
    "/dev/random", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu",
)  # fmt: skip
GPU_READABLE = (
    "/proc/driver", "/proc/devices", "/proc/modules", "/proc/filesystems", "/proc/stat", "/proc/sys/vm", "/sys/devices",
    "/sys/module", "/sys/bus/pci", "/sys/kernel/mm", "/etc/nvidia",
)  # fmt: skip
GPU_WRITABLE = ("/proc/self/task",)
"""CUDA names its threads by writing there, and does not start where it may not."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The mechanisms that work here and are wanted."""

    limits: bool = False
    """Limits on CPU time, memory, processes and files of each process."""

    first_user: int = 0
    """Each candidate runs as a user of its own, from this number on; 0: as the user who started befit."""

    keep_reading: bool = False
    """That user reads whatever Landlock lets it: Python lies where only root may look."""

    user_namespace: bool = False
    """The namespaces below are inside a user namespace: no rights are needed for them, none are left in them."""

    pid_namespace: bool = False
    """Each candidate sees only its own processes, and all of them end with it."""

    network_namespace: bool = False
    """No network device but a loopback that is down."""

    landlock: int = 0
    """ABI of Landlock; 0: none."""

    seccomp: bool = False
    """System calls that lead out are denied."""

    gpu: bool = False
    """NVIDIA's devices, and what their driver needs, are let in."""


@functools.cache
def readable(*, gpu: bool = False) -> tuple[str, ...]:
    """Files and folders that Python, torch and befit need to read."""
    paths = [sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages(), *sysconfig.get_paths().values()]
    paths += [str(PACKAGE), os.path.realpath(sys.executable)]
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.origin is not None:
        paths.append(str(Path(torch.origin).parents[1]))
    return tuple(dict.fromkeys([*SYSTEM_READABLE, *(GPU_READABLE if gpu else ()), *filter(None, paths)]))


def devices(*, gpu: bool = False) -> tuple[str, ...]:
    """Device files to write as well."""
    return ("/dev/null", *(sorted(map(str, Path("/dev").glob("nvidia*"))) if gpu else ()))


def computing() -> list[str]:
    """The device files without which nothing is computed on a GPU, of those that this process may open."""
    found = [*Path("/dev").glob("nvidia[0-9]*"), Path("/dev/nvidiactl"), Path("/dev/nvidia-uvm")]
    return [str(path) for path in sorted(found) if _opens(path)]


def _opens(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _works(attempt: Callable[[], None]) -> bool:
    """Whether `attempt` ends without an error, in a process that is thrown away."""
    child = os.fork()
    if child == 0:
        done = 1
        try:
            attempt()
            done = 0
        finally:
            os._exit(done)  # an error's traceback belongs to nobody here
    return os.waitpid(child, 0)[1] == 0


def _user_range() -> int:
    """The first of 64 users for this server's candidates; 0 where this process may not become them."""
    if os.geteuid() != 0:
        return 0
    inside, _, count = (int(word) for word in Path("/proc/self/uid_map").read_text().split()[:3])
    if inside == 0 and count > 2 * FIRST_USER:
        return FIRST_USER + 64 * os.getpid()
    return 60_100 + os.getpid() % 60 * 64 if inside == 0 and count >= 65_000 else 0


def _live_as(user: int, folder: Path, used: Sequence[str], *, keep_reading: bool) -> None:
    """As `user`, Python can be read, the folder entered and the devices of `used` opened; fails where not."""
    become(user, keep_reading=keep_reading)
    for path in used:
        os.close(os.open(path, os.O_RDWR))
    torch = importlib.util.find_spec("torch")
    here = [os.__file__, __file__, os.path.realpath(sys.executable), torch.origin if torch else None]
    for path in filter(None, here):
        os.close(os.open(path, os.O_RDONLY))
    os.chdir(folder)


def _namespaces(flags: int) -> None:
    if os.geteuid() == 0:
        unshare(flags)
    else:
        own_user_namespace(flags)


def find_plan(folder: Path, wanted: Sequence[str], *, gpu: bool = False) -> Plan:
    """Try every mechanism of `wanted` (of `MECHANISMS`) and plan with those that work.

    Args:
        folder: Where candidates will live.
        wanted: Mechanisms to try.
        gpu: Whether candidates compute on a GPU. CUDA finds its threads in /proc by their numbers, and those of a namespace
            are not those of /proc outside: there is none then. Nor has a candidate a user of its own who may not open the
            devices.
    """
    pid = "pid-namespace" in wanted and not gpu and _works(lambda: _namespaces(NEW_PID))
    network = "network-namespace" in wanted and _works(lambda: _namespaces(NEW_NETWORK | NEW_IPC))
    version = landlock.abi() if "landlock" in wanted else 0
    if version and not _works(lambda: landlock.restrict(readable=["/usr"], writable=[])):
        version = 0
    filtered = "seccomp" in wanted and seccomp.available() and _works(lambda: seccomp.restrict(gpu=gpu))
    user, keep = _user_range() if "user" in wanted else 0, False
    used = computing() if gpu else []
    if user and not _works(lambda: _live_as(user, folder, used, keep_reading=False)):
        # The right to read everything is harmless only where Landlock says what, and no handle opens a file behind it.
        keep = version > 0 and filtered and _works(lambda: _live_as(user, folder, used, keep_reading=True))
        user = user if keep else 0
    return Plan(
        limits="limits" in wanted,
        first_user=user,
        keep_reading=keep,
        user_namespace=(pid or network) and os.geteuid() != 0,
        pid_namespace=pid,
        network_namespace=network,
        landlock=version,
        seccomp=filtered,
        gpu=gpu,
    )


def enter(plan: Plan) -> None:
    """Namespaces of the fork server itself, which all its candidates share; it must have no threads yet."""
    flags = NEW_NETWORK | NEW_IPC if plan.network_namespace else 0
    if plan.user_namespace:
        own_user_namespace(flags)
    elif flags:
        unshare(flags)


def user_tasks(user: int) -> int:
    """Threads that run as `user` now: RLIMIT_NPROC counts them all where the user is shared."""
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == user:
                    count += len(list(Path(entry.path, "task").iterdir()))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has just ended, or is hidden
    return count


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def limit(limits: Limits, plan: Plan) -> None:
    """Resource limits of this process and its children (setrlimit(2)).

    Memory is RLIMIT_DATA, private writable memory, not the address space: torch maps far more than it uses. A GPU's driver
    maps host memory without end, so there the watch alone holds it.
    """
    alone = plan.first_user or plan.user_namespace
    processes = limits.processes + (0 if alone else user_tasks(os.getuid()))
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_NPROC: processes,
    }
    if not plan.gpu:
        bounds[resource.RLIMIT_DATA] = _data_bytes() + limits.memory_bytes
    for kind, value in bounds.items():
        most = resource.getrlimit(kind)[1]
        lowered = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (lowered, lowered))


def confine(plan: Plan, limits: Limits, folder: Path, user: int) -> None:
    """Hold this process, and all that it will start, to the plan. There is no way back.

    Raises:
        OSError: A mechanism of the plan failed; the candidate must not run.
    """
    if plan.limits:
        limit(limits, plan)
    if user:
        become(user, keep_reading=plan.keep_reading)
    die_with_parent()  # after the change of user, which undoes it
    if plan == Plan(gpu=plan.gpu):
        return
    no_new_privileges()
    if not user:
        drop_capabilities()
    if plan.landlock:
        writable = [str(folder), *(GPU_WRITABLE if plan.gpu else ())]
        landlock.restrict(readable=readable(gpu=plan.gpu), writable=writable, devices=devices(gpu=plan.gpu))
    if plan.seccomp:
        seccomp.restrict(gpu=plan.gpu)
