"""`befit propose` as a user meets it: processes that are killed and interrupted, resumed and reported."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from befit import cli
from befit.propose.config import ProposeConfig
from befit.propose.proposal import Proposal
from befit.propose.records import Records
from befit.rundir import read_json

QUICK = ["--train.epochs", "1", "--final.epochs", "1", "--proposals", "4", "--budget", "params<=3K"]
START_SECONDS = 240


def started(out: Path) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "befit", "propose", *QUICK, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(out: Path) -> list[Proposal]:
    return Records(out / "proposals.sqlite").proposals() if (out / "proposals.sqlite").exists() else []


def wait_for(ready: Callable[[], bool], running: Callable[[], bool]) -> None:
    end = time.monotonic() + START_SECONDS
    while not ready():
        assert running() and time.monotonic() < end
        time.sleep(0.005)


def interrupt(out: Path) -> None:
    """What Ctrl-C does, when two proposals are done."""
    main = threading.main_thread()
    wait_for(lambda: sum(row.done for row in rows(out)) >= 2, main.is_alive)
    signal.pthread_kill(main.ident or 0, signal.SIGINT)


def facts(row: Proposal) -> tuple[object, ...]:
    return row.number, row.stage, row.reason, row.graph, row.accuracy, row.parent, row.examples, row.calls


def test_a_killed_and_an_interrupted_run_end_as_a_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    killed = started(out)
    wait_for(lambda: any(row.stage == "new-graph" and not row.done for row in rows(out)), lambda: killed.poll() is None)
    killed.kill()  # in the first training, or right after it
    killed.communicate()

    stopping = threading.Thread(target=interrupt, args=(out,), daemon=True)
    stopping.start()
    assert cli.main(["propose", *QUICK, "--out", str(out)]) == 130
    stopping.join()
    assert "what was finished is kept" in capsys.readouterr().err

    before = [row for row in rows(out) if row.done]
    assert cli.main(["resume", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "attempted" in printed and f"best    {out / 'best'}: test" in printed
    after = rows(out)
    assert after[: len(before)] == before and len(after) == 4 and all(row.done for row in after)
    summary = read_json(out / "summary.json")
    assert summary["arms"][0]["funnel"]["attempted"] == 4 and summary["calls"]["calls"] <= 5

    whole = tmp_path / "whole"
    assert cli.main(["propose", *QUICK, "--out", str(whole)]) == 0
    assert [facts(row) for row in rows(whole)] == [facts(row) for row in after]
    words = shlex.split(read_json(whole / "summary.json")["command"])
    assert words[:2] == ["befit", "propose"]
    assert tyro.cli(ProposeConfig, args=words[2:]) == ProposeConfig.from_json(read_json(whole / "config.json"))
    (out / "report.html").unlink()
    assert cli.main(["report", str(out)]) == 0 and (out / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--llm", "http://127.0.0.1:9/v1"], "--model NAME must say"),
        (["--llm", "http://127.0.0.1:9/v1", "--model", "m"], "start the server, or correct --llm"),
        (["--budget", "latency=4ms"], "not known before a proposal is trained"),
        (["--budget", "params<=10"], "no network of at most 10 parameters"),
        (["--arms", "epochs=1,2"], "'epochs' cannot be compared"),
        (["--lemur", "nowhere"], "nowhere is no folder"),
    ],
)
def test_wrong_input_is_one_message_and_leaves_nothing_in_the_way(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.main(["propose", *words, "--out", str(out)]) == 2
    assert told in capsys.readouterr().err
    assert not (out / "stages").exists(), "the same --out takes the corrected command"
