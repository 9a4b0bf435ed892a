"""Kill -9 in the middle of a study: of the coordinator, and of a worker. No trial is lost, none is run twice."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.search.toys import SMALL, SPACE, Gated, Toy, archs, finished, spec, until

from befit.search.owner import started
from befit.search.pool import Crew
from befit.search.study import read_study, run_study
from befit.search.trial import funnel

ROOT = Path(__file__).parents[2]
TRIALS = 8


def waiting(folder: Path, workers: int) -> list[int]:
    """Processes of evaluations that have begun and not ended."""
    done = finished(folder / "done") if (folder / "done").exists() else []
    begun = list((folder / "begun").iterdir()) if (folder / "begun").exists() else []
    return [int(path.read_text()) for path in begun if path.name.split("-")[0] not in done]


@pytest.fixture
def coordinate(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Start a coordinator, which comes to rest when three trials are scored and every worker has one more."""
    processes = list[subprocess.Popen[bytes]]()

    def start(workers: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.search.coordinator", str(tmp_path), str(workers), str(TRIALS)]
        processes.append(subprocess.Popen(command, cwd=ROOT))
        scored = tmp_path / "done"
        until(lambda: scored.exists() and len(finished(scored)) >= 3 and len(waiting(tmp_path, workers)) == workers)
        until(lambda: sum(one.state == "scored" for one in read_study(str(tmp_path / "study.sqlite"))) >= 3)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_of_the_coordinator(
    tmp_path: Path, workers: int, coordinate: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    process = coordinate(workers)
    evaluating = waiting(tmp_path, workers)
    process.kill()
    process.wait()
    until(lambda: all(started(pid) is None for pid in evaluating))  # workers follow their coordinator
    interrupted = [one for one in read_study(str(tmp_path / "study.sqlite")) if one.state == "running"]
    assert len(interrupted) == workers

    (tmp_path / "go").touch()
    told = spec(tmp_path, trials=TRIALS, searcher="evolution", options=SMALL)
    found = run_study(told, SPACE, Gated(tmp_path), crew=Crew(workers=workers))
    assert {one.number for one in found if one.reason == "killed"} == {one.number for one in interrupted}
    assert [one.arch for one in found if one.again is not None] == [one.arch for one in interrupted]
    scored = [one for one in found if one.state == "scored"]
    assert len(scored) == TRIALS == len(finished(tmp_path / "done")) == len(set(finished(tmp_path / "done")))
    assert funnel(found).interrupted == workers and funnel(found).asked == TRIALS
    if workers == 1:
        whole = tmp_path / "whole"
        told = spec(whole, trials=TRIALS, searcher="evolution", options=SMALL)
        assert archs(found) == archs(run_study(told, SPACE, Toy(whole / "done", 0), crew=Crew(workers=0)))


def test_kill_9_of_a_worker(tmp_path: Path, coordinate: Callable[[int], subprocess.Popen[bytes]]) -> None:
    process = coordinate(2)
    victim = waiting(tmp_path, 2)[0]
    os.kill(victim, signal.SIGKILL)
    (tmp_path / "go").touch()
    assert process.wait(timeout=120) == 0
    found = read_study(str(tmp_path / "study.sqlite"))
    assert len(found) == TRIALS
    lost = [one for one in found if one.state != "scored"]
    assert len(lost) == 1 and lost[0].reason == "crash" and "SIGKILL" in lost[0].message
    assert len(finished(tmp_path / "done")) == len(set(finished(tmp_path / "done"))) == TRIALS - 1
