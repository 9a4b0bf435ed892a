"""One process that imports torch once and forks for every candidate: `python -m befit.propose.sandbox.forkserver`.

It has one thread, no keys in its environment and has touched no GPU, so forking is safe and what a candidate inherits is
harmless. Requests and answers are lines of JSON on stdin and stdout. Candidates come one after the other; the server watches
the one that runs, and answers when nothing of it is left.

Where a namespace of processes is allowed, its first process is forked before torch is imported and only adopts orphans; a
candidate is then a cheap single fork into that namespace, from which it can neither see nor signal what is outside.
"""

import gc
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from befit.propose.sandbox import candidate
from befit.propose.sandbox.confine import PACKAGE, Plan, confine, enter, find_plan, readable
from befit.propose.sandbox.kernel import NEW_PID, adopt_orphans, die_with_parent, unshare
from befit.propose.sandbox.limits import Limits
from befit.propose.sandbox.watch import Watch, end_all

SETUP_FAILED = 113
"""Exit code of a candidate that could not be confined and therefore did not run."""


def serve() -> None:
    """Read the configuration, warm up, say what works here, then serve until stdin closes."""
    told = json.loads(sys.stdin.buffer.readline())
    adopt_orphans()
    plan = find_plan(Path(told["folder"]), told["mechanisms"], gpu=told["gpu"])
    enter(plan)
    keep = [_first_process()] if plan.pid_namespace else []
    for name in told["warm"]:
        candidate.named(name)()
    readable(gpu=plan.gpu)  # found once, not by every candidate
    gc.collect()
    gc.freeze()  # the collector would otherwise write to, and so copy, every page that is shared with the candidates
    _say({"plan": plan.to_json(), "threads": len(list(Path("/proc/self/task").iterdir()))})
    number = 0
    while line := sys.stdin.buffer.readline():
        number += 1
        user = plan.first_user + number % 64 if plan.first_user else 0
        _say(_one(plan, json.loads(line), user, keep))
    end_all()


def _say(told: dict[str, Any]) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


def _first_process() -> int:
    """The first process of a new namespace of processes; what this server forks from here on is in it too."""
    unshare(NEW_PID)
    process = os.fork()
    if process == 0:
        try:
            os.setsid()
            die_with_parent()
            os.closerange(0, 64)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # adopted orphans leave no zombies
            while True:
                signal.pause()
        finally:
            os._exit(1)
    return process


def _one(plan: Plan, request: dict[str, Any], user: int, keep: list[int]) -> dict[str, Any]:
    """Fork a candidate, watch it, say how it ended."""
    limits, folder = Limits.from_json(request["limits"]), Path(request["folder"])
    if user:
        os.chown(folder, user, user)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _candidate(plan, request, limits, folder, user, writing)
    os.close(writing)
    end = Watch(child, reading, limits, folder, keep=keep, lifeline=0).until_end()
    told = asdict(end)
    if end.status == SETUP_FAILED:
        told |= {"reason": "crash", "message": f"could not be confined, so it did not run: {end.tail[-300:]}"}
    return told


def _candidate(plan: Plan, request: dict[str, Any], limits: Limits, folder: Path, user: int, writing: int) -> NoReturn:
    """Become the candidate: nothing open but what it prints to, an environment of its own, confined."""
    code = SETUP_FAILED
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for place, target in enumerate((nothing, writing, writing)):
            os.dup2(target, place)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir(folder)
        os.environ.update(HOME=str(folder), TMPDIR=str(folder))
        confine(plan, limits, folder, user)
        code = 1
        if request["fresh"]:
            os.execv(sys.executable, [sys.executable, "-P", "-c", candidate.BOOT, str(PACKAGE / "__init__.py")])
        candidate.main()
    finally:
        traceback.print_exc()
        os._exit(code)


if __name__ == "__main__":
    serve()
