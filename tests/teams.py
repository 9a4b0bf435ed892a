"""befit in several processes of one team, as a launcher starts them."""

import json
import os
import socket
import subprocess
import sys

PROGRAM = """
import json, sys
from befit.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    for stream in sys.stdout, sys.stderr:
        print("ENDED", code, "ENDED", file=stream, flush=True)
"""
"""Runs befit several times, because starting Python takes longest here."""
TIMEOUT = 240
"""Seconds that a process may take; on a machine that has just been started, importing torch alone takes a minute."""
Ended = tuple[int, str, str]
"""Exit code, stdout, stderr of one run."""


def spoken(program: str, told: object, size: int = 2, **environment: str) -> list[tuple[str, str]]:
    """Run a program, with JSON as its argument, in `size` processes of one team; what each says, the main one first.

    No launcher ends the others if one fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)} | environment
    team = [
        subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(told)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        return [one.communicate(timeout=TIMEOUT) for one in team]
    finally:
        for one in team:
            one.kill()


def together(runs: list[list[str]], size: int = 2, **environment: str) -> list[list[Ended]]:
    """Run befit in `size` processes of one team; for each process, how every run ended."""
    found = list[list[Ended]]()
    for out, err in spoken(PROGRAM, runs, size, **environment):
        outs, errs = out.split("ENDED"), err.split("ENDED")
        assert len(outs) == 2 * len(runs) + 1, err
        found.append([(int(outs[i + 1]), outs[i].strip(), errs[i].strip()) for i in range(0, len(outs) - 1, 2)])
    return found
