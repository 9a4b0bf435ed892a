"""Who runs a trial, and whether it still lives: by process number and start time on this machine, by a pulse from another.

A process number alone lies once it is used again; together with the time at which the process began it does not. Of
another machine only its pulse is known: a number in the study that grows as long as its coordinator lives. A pulse that
stands still counts as dead after `GRACE` seconds *of the observer's own clock*, so that no two clocks need to agree.
"""

import os
import platform
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

PULSE = "pulse:"
"""User attributes of the study: `pulse:OWNER`, a number that grows."""
ENDED = -1
"""Said at the end: its trials, if any are left, may be taken at once."""
BEAT_SECONDS = 10.0
GRACE = 60.0
"""Six beats: a coordinator that is merely slow should not lose its trials."""


def machine() -> str:
    """A name for the machine and, in containers, for the processes seen: the same number elsewhere is another process."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return platform.node()
    return f"{platform.node()}/{''.join(filter(str.isdigit, namespace))}"


def started(pid: int) -> str | None:
    """When a process of this machine began, in the system's own terms; None if there is none (or only its remains)."""
    try:
        # The name in parentheses may hold anything, blanks and parentheses too.
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return "-".join(shown.stdout.split()) or None
    except ProcessLookupError:
        return None
    return None if told[0] in ("Z", "X") else told[19]


def this_owner() -> str:
    """`machine:process:start:word` of a study's coordinator; the word tells two studies of one process apart."""
    return f"{machine()}:{os.getpid()}:{started(os.getpid())}:{secrets.token_hex(3)}"


@dataclass
class Watch:
    """Tells the dead from the living. One for each coordinator, kept as long as it runs."""

    own: str
    """This coordinator."""
    grace: float = GRACE
    """Seconds."""
    _seen: dict[str, tuple[Any, float]] = field(default_factory=dict[str, tuple[Any, float]])

    def dead(self, owner: str, pulses: Mapping[str, Any]) -> bool:
        """Whether the owner has died, as far as can be said yet. `pulses` are the study's user attributes."""
        pulse = pulses.get(PULSE + owner)
        if owner == self.own or pulse == ENDED:
            return pulse == ENDED
        host, pid, begun, _ = (owner.rsplit(":", 3) + [""] * 3)[:4]
        if host == machine() and pid.isdigit() and started(int(pid)) != begun:
            return True
        return self._still(owner, pulse)

    def _still(self, owner: str, pulse: Any) -> bool:
        now = time.monotonic()
        before, since = self._seen.get(owner, (pulse, now))
        if before != pulse:
            since = now
        self._seen[owner] = (pulse, since)
        return now - since > self.grace


class Pulse:
    """Says every few seconds that its coordinator lives: `with Pulse(owner, study.set_user_attr): …`."""

    def __init__(self, owner: str, say: Callable[[str, int], None], seconds: float = BEAT_SECONDS) -> None:
        self._name, self._say, self._seconds = PULSE + owner, say, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="befit-pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._say(self._name, 0)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._say(self._name, ENDED)

    def _beat(self) -> None:
        beats = 0
        while not self._stop.wait(self._seconds):
            beats += 1
            self._say(self._name, beats)
