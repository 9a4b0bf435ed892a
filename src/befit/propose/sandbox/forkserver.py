"""One process that imports torch once and forks for every candidate: `python -m befit.propose.sandbox.forkserver`.

It has one thread, no keys in its environment and has touched no GPU, so forking is safe and what a candidate inherits is
harmless. Requests and answers are lines of JSON on stdin and stdout. Candidates come one after the other; the server watches
the one that runs, and answers when nothing of it is left. The process of the next one is forked before it is asked for, as
that takes about as long as a small network needs in it.

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
from typing import Any, NamedTuple, NoReturn

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
    _say({"plan": asdict(plan), "threads": len(list(Path("/proc/self/task").iterdir()))})
    number, spare = 0, _spare(plan)
    while line := sys.stdin.buffer.readline():
        number += 1
        user = plan.first_user + number % 64 if plan.first_user else 0
        _say(_one(spare, json.loads(line), user, keep))
        spare = _spare(plan)
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


class Spare(NamedTuple):
    """A process that will be the next candidate."""

    process: int
    orders: int
    """Writing end of the pipe on which it learns which one."""
    printed: int
    """Reading end of what it prints."""


def _spare(plan: Plan) -> Spare:
    """Fork the process of the next candidate; it waits, and ends with this one."""
    (listening, orders), (printed, writing) = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        os.close(orders)
        _wait(plan, listening, writing)
    os.close(listening)
    os.close(writing)
    return Spare(process, orders, printed)


def _one(spare: Spare, request: dict[str, Any], user: int, keep: list[int]) -> dict[str, Any]:
    """Let the spare process be this candidate, watch it, say how it ended."""
    limits, folder = Limits(**request["limits"]), Path(request["folder"])
    if user:
        os.chown(folder, user, user)
    with os.fdopen(spare.orders, "w") as orders:
        json.dump(request | {"user": user}, orders)
    end = Watch(spare.process, spare.printed, limits, folder, keep=keep, lifeline=0).until_end()
    told = asdict(end)
    if end.status == SETUP_FAILED:
        told |= {"reason": "crash", "message": f"could not be confined, so it did not run: {end.tail[-300:]}"}
    return told


def _wait(plan: Plan, listening: int, writing: int) -> NoReturn:
    """Wait for an order, all of it, and follow it; end without one, as the server has then ended."""
    try:
        die_with_parent()
        with os.fdopen(listening) as orders:
            order = orders.read()
        if order:
            _candidate(plan, json.loads(order), writing)
    finally:
        os._exit(SETUP_FAILED)


def _candidate(plan: Plan, request: dict[str, Any], writing: int) -> NoReturn:
    """Become the candidate: nothing open but what it prints to, an environment of its own, confined."""
    limits, folder, user = Limits(**request["limits"]), Path(request["folder"]), request["user"]
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
