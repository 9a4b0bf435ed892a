"""`befit propose` as a user meets it: processes that are killed and interrupted, resumed and reported."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from befit import cli
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


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + START_SECONDS
    while not ready():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)


def facts(row: Proposal) -> tuple[object, ...]:
    return row.number, row.stage, row.reason, row.graph, row.accuracy, row.parent, row.examples, row.calls


def test_a_killed_and_an_interrupted_run_end_as_a_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    killed = started(out)
    wait_for(killed, lambda: any(row.stage == "new-graph" and not row.done for row in rows(out)))
    killed.kill()  # in the first training, or right after it
    killed.communicate()

    stopped = started(out)
    wait_for(stopped, lambda: sum(row.done for row in rows(out)) >= 2)
    stopped.send_signal(signal.SIGINT)
    _, told = stopped.communicate(timeout=START_SECONDS)
    assert stopped.returncode == 130 and "what was finished is kept" in told and "Traceback" not in told

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
