"""Little programs that try what proposed code must not be able to do, each with the judge of what came of it.

They are what `befit sandbox` runs to say what a machine enforces: nothing is claimed from a list of features. None does harm
where a protection is missing: what is killed, read and written was set up for it, and every program stops by itself.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from befit.propose.sandbox.box import Result
from befit.propose.sandbox.confine import Plan
from befit.propose.sandbox.limits import MIB, Limits


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What lies outside the sandbox for the programs to try themselves on."""

    key: str
    """Value of an environment variable of befit's own process."""

    secret: Path
    """A file that every user may read."""

    target: Path
    """A folder in which every user may write."""

    port: int
    """Of a TCP listener and a UDP socket on this machine."""

    victim: int
    """Process id of a process of befit's own user."""

    parent: int
    """befit's own process id."""

    name: str
    """What a straggler calls itself."""

    answered: Callable[[], str]
    """Which of TCP and UDP got something, since the last call."""

    victim_alive: Callable[[], bool]
    """Whether the victim still runs."""

    stragglers: Callable[[], int]
    """How many processes have that name."""

    def arguments(self) -> dict[str, str | int]:
        """What the programs are told."""
        return {
            "secret": str(self.secret),
            "target": str(self.target),
            "port": self.port,
            "victim": self.victim,
            "parent": self.parent,
            "name": self.name,
        }


Judge = Callable[[Result, Scene], tuple[bool, str]]


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One protection, and the program that tries to break it."""

    protection: str
    """What it protects, in a few words."""

    source: str
    """The program; what it managed is in its `answer`."""

    judge: Judge
    """(result, scene) -> whether the protection held, and what was seen."""

    by: Callable[[Plan], list[str]]
    """What holds it where it holds."""

    limits: Limits = field(default_factory=lambda: Limits(wall_seconds=20))
    """What the program may use."""

    outer: bool = False
    """Whether bwrap or docker hold it too."""


def _tried(result: Result) -> str:
    """What the program said came of its attempts."""
    if not result.ok:
        return f"{result.reason}: {result.message}"
    return "; ".join(f"{name}: {said}" for name, said in result.value.items())[:300]


def _environment(result: Result, scene: Scene) -> tuple[bool, str]:
    seen = scene.key in json.dumps(dict(result.value))
    return result.ok and not seen, "it saw the key" if seen else _tried(result)


def _refused(result: Result, _scene: Scene) -> tuple[bool, str]:
    return result.ok and "done" not in result.value.values(), _tried(result)


def _writes(result: Result, scene: Scene) -> tuple[bool, str]:
    found = [path.name for path in scene.target.iterdir() if path.name != "kept" or path.read_text() != "kept"]
    shared = Path("/dev/shm", scene.name)
    if shared.exists():
        found.append(str(shared))
        shared.unlink()
    return result.ok and not found, f"it changed {', '.join(sorted(found))}" if found else _tried(result)


def _unanswered(result: Result, scene: Scene) -> tuple[bool, str]:
    got = scene.answered()
    return result.ok and not got, f"{got} arrived" if got else _tried(result)


def _signals(result: Result, scene: Scene) -> tuple[bool, str]:
    alive = scene.victim_alive()
    held = alive and result.ok and "done" not in result.value.values()
    return held, _tried(result) if alive else "a process outside was killed"


def _ended(*reasons: str) -> Judge:
    def judge(result: Result, _scene: Scene) -> tuple[bool, str]:
        return result.reason in reasons, f"{_tried(result)} ({result.seconds:.1f} s)"

    return judge


def _processes(result: Result, _scene: Scene) -> tuple[bool, str]:
    if result.ok:
        started = int(result.value.get("started", 1 << 30))
        return started < FEW_PROCESSES.processes, f"{started} forks, then: {result.value.get('then')}"
    return result.reason == "crash" and "processes at once" in result.message, _tried(result)


def _stragglers(result: Result, scene: Scene) -> tuple[bool, str]:
    left = scene.stragglers()
    started = result.ok and result.value.get("started") == 1
    return (
        started and not left,
        f"{left} processes are left" if left else "left its group and session; nothing is left of it",
    )


def _names(*pairs: tuple[bool | int, str]) -> list[str]:
    return [name for active, name in pairs if active]


def _files(plan: Plan) -> list[str]:
    return _names((plan.landlock, f"Landlock ABI {plan.landlock}"))


def _other_environments(plan: Plan) -> list[str]:
    active = (
        (plan.landlock, "Landlock"),
        (plan.first_user, "a user of its own"),
        (plan.user_namespace, "user namespace"),
    )
    return ["allow-list", *(_names(*active) or ["no capabilities"])]


def _forks(plan: Plan) -> list[str]:
    # The kernel does not count the processes of root.
    return _names((plan.limits and (plan.first_user or os.geteuid()), "RLIMIT_NPROC"), (True, "watch"))


def _network(plan: Plan) -> list[str]:
    tcp = plan.landlock >= 4
    return _names((plan.network_namespace, "network namespace"), (plan.seccomp, "seccomp"), (tcp, "Landlock (TCP)"))


def _listening(plan: Plan) -> list[str]:
    # In a network namespace one may listen, but nobody is there to be heard: that is not counted as held.
    return _names((plan.seccomp, "seccomp"), (plan.landlock >= 4, "Landlock (TCP)"))


def _services(plan: Plan) -> list[str]:
    return _names((plan.seccomp, "seccomp"))


def _datagrams(plan: Plan) -> list[str]:
    return _names((plan.network_namespace, "network namespace"), (plan.seccomp, "seccomp"))


def _other_processes(plan: Plan) -> list[str]:
    scoped = plan.landlock >= 6
    own, pid = "a user of its own", "process namespace"
    return _names((plan.pid_namespace, pid), (plan.first_user, own), (scoped, "Landlock (signals)"))


def _memory(plan: Plan) -> list[str]:
    return _names((plan.limits and not plan.gpu, "RLIMIT_DATA"), (True, "watch"))


def _file_size(plan: Plan) -> list[str]:
    return _names((plan.limits, "RLIMIT_FSIZE"))


def _always(*names: str) -> Callable[[Plan], list[str]]:
    return lambda _plan: list(names)


FEW_PROCESSES = Limits(wall_seconds=10, processes=16)

TRY = """
answer = {}
def attempt(name, action):
    try:
        action()
    except (OSError, ValueError) as error:
        answer[name] = f"{type(error).__name__} {error.strerror if isinstance(error, OSError) else error}"
    else:
        answer[name] = "done"
"""

ENVIRONMENT = """
import glob, os
answer = {"variables": " ".join(os.environ.values()), "elsewhere": ""}
for path in ["/proc/self/environ", f"/proc/{arguments['parent']}/environ", *glob.glob("/proc/[0-9]*/environ")]:
    try:
        answer["elsewhere"] += open(path, "rb").read().decode("utf-8", "replace")
    except OSError:
        pass
if "KEY-" not in str(answer):  # nothing to hide: names say more than values
    answer = {"variables": " ".join(sorted(os.environ))}
"""
READS = """
import os
attempt("a file", lambda: open(arguments["secret"]).read())
attempt("its folder", lambda: os.listdir(os.path.dirname(arguments["secret"])))
attempt("/etc/passwd", lambda: open("/etc/passwd").read())
attempt("memory of befit", lambda: open(f"/proc/{arguments['parent']}/mem", "rb").read(1))
"""
WRITES = """
import os
place = arguments["target"]
attempt("a new file", lambda: open(place + "/new", "w").write("x"))
attempt("a file that is there", lambda: open(place + "/kept", "w").write("x"))
attempt("a link", lambda: os.symlink("/", place + "/link"))
attempt("removal", lambda: os.remove(place + "/kept"))
attempt("/dev/shm", lambda: open("/dev/shm/" + arguments["name"], "w").write("x"))
"""
CONNECT = """
import socket
attempt("TCP", lambda: socket.create_connection(("127.0.0.1", arguments["port"]), 3).sendall(b"x"))
"""
UNIX = """
import os, socket
place = os.path.dirname(arguments["secret"]) + "/service"
attempt("a Unix socket", lambda: socket.socket(socket.AF_UNIX).connect(place))
"""
DATAGRAM = """
import socket
attempt("UDP", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", arguments["port"])))
"""
LISTEN = """
import socket
attempt("listening", lambda: socket.create_server(("127.0.0.1", 0)).close())
"""
SIGNALS = """
import os, signal
attempt("SIGKILL to a process outside", lambda: os.kill(arguments["victim"], signal.SIGKILL))
attempt("signal 0 to befit", lambda: os.kill(arguments["parent"], 0))
"""
FORKS = f"""
import os, time
answer = {{"started": 0, "then": "nothing held it"}}
for number in range({4 * FEW_PROCESSES.processes}):
    try:
        if os.fork() == 0:
            time.sleep(8)
            os._exit(0)
    except OSError as error:
        answer["then"] = error.strerror
        break
    answer["started"] = number + 1
time.sleep(0.3)
"""
ALLOCATE = """
held = []
for _ in range(16):
    held.append(bytearray(b"x") * (64 << 20))
"""
LOOP = """
import time
until = time.monotonic() + 15
while time.monotonic() < until:
    pass
"""
SLEEP = """
import ctypes, signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
ctypes.PyDLL(None).sleep(15)
"""
PRINT = """
import os
for _ in range(4096):
    os.write(1, b"x" * 65536)
"""
LEAVE = """
import ctypes, os, time
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(15, arguments["name"].encode(), 0, 0, 0)
        os.write(writing, b"x")
        time.sleep(15)
    os._exit(0)
answer = {"started": len(os.read(reading, 1))}
"""
LARGE_FILE = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
attempt("8 MiB", lambda: open("large", "wb").write(b"x" * (8 << 20)))
"""

HOSTILE: dict[str, Hostile] = {
    "environment": Hostile(
        protection="keys in the environment",
        source=ENVIRONMENT,
        judge=_environment,
        outer=True,
        by=_other_environments,
    ),
    "reads": Hostile(protection="reading outside", source=TRY + READS, judge=_refused, by=_files, outer=True),
    "writes": Hostile(protection="writing outside", source=TRY + WRITES, judge=_writes, by=_files, outer=True),
    "connect": Hostile(
        protection="connecting by TCP", source=TRY + CONNECT, judge=_unanswered, by=_network, outer=True
    ),
    "services": Hostile(
        protection="reaching services by Unix sockets", source=TRY + UNIX, judge=_refused, by=_services, outer=True
    ),
    "datagrams": Hostile(
        protection="sending by UDP", source=TRY + DATAGRAM, judge=_unanswered, by=_datagrams, outer=True
    ),
    "listen": Hostile(protection="listening", source=TRY + LISTEN, judge=_refused, by=_listening, outer=True),
    "signals": Hostile(
        protection="signals to befit", source=TRY + SIGNALS, judge=_signals, by=_other_processes, outer=True
    ),
    "processes": Hostile(
        protection="forking without end",
        source=FORKS,
        judge=_processes,
        by=_forks,
        limits=FEW_PROCESSES,
    ),
    "memory": Hostile(
        protection="allocating without end",
        source=ALLOCATE,
        judge=_ended("out-of-memory"),
        by=_memory,
        limits=Limits(wall_seconds=20, memory_bytes=512 * MIB),
    ),
    "loop": Hostile(
        protection="an endless loop",
        source=LOOP,
        judge=_ended("timeout"),
        by=_always("watch"),
        limits=Limits(wall_seconds=0.5),
    ),
    "sleep": Hostile(
        protection="sleeping in C, signals blocked",
        source=SLEEP,
        judge=_ended("timeout"),
        by=_always("watch"),
        limits=Limits(wall_seconds=0.5),
    ),
    "printing": Hostile(
        protection="printing without end", source=PRINT, judge=_ended("output"), by=_always("capped pipe")
    ),
    "stragglers": Hostile(
        protection="leaving the process group",
        source=LEAVE,
        judge=_stragglers,
        by=lambda plan: _names((plan.pid_namespace, "process namespace"), (True, "adoption of orphans")),
    ),
    "file-size": Hostile(
        protection="a file beyond its limit",
        source=TRY + LARGE_FILE,
        judge=_refused,
        by=_file_size,
        limits=Limits(wall_seconds=20, file_bytes=MIB),
    ),
}
"""By the name that `befit sandbox --require` knows."""
