"""Worker processes: that they start, die, are replaced, and fall back."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.search.toys import SPACE, Moody, Toy, until

from befit.errors import BadData
from befit.search.owner import started
from befit.search.pool import Crew, InProcess
from befit.search.trial import Fidelity, Finished, Job, Outcome, Report
from befit.search.workers import Processes, Unready, open_pool

ARCH = SPACE.arch({"width": 8, "depth": 4, "mixer": "conv", "kernel": 7})


def on(number: int, epoch: int, value: float) -> bool:
    return True


def wait_for(pool: Any, decide: Callable[[int, int, float], bool] = on) -> Finished:
    end = time.monotonic() + 60
    while not (found := pool.wait(decide, 0.5)):
        assert time.monotonic() < end
    return found[0]


def job(number: int = 0, *, prunable: bool = False) -> Job:
    return Job(number=number, arch=ARCH, fidelity=Fidelity(), prunable=prunable)


def family(arch: Any, fidelity: Fidelity, report: Report) -> Outcome:
    """Starts a process of its own, and never ends."""
    child = subprocess.Popen(["sleep", "600"])
    report(child.pid, 0.0)
    child.wait()
    return Outcome(value=0.0)


def threads(arch: Any, fidelity: Fidelity, report: Report) -> Outcome:
    import torch

    return Outcome(value=0.0, details={"torch": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"]})


def test_a_worker_that_takes_too_long_is_killed_with_all_it_started_and_replaced(tmp_path: Path) -> None:
    children = list[int]()

    def decide(number: int, epoch: int, value: float) -> bool:
        children.append(epoch)
        return True

    with closing(Processes(family, workers=1, timeout=0.5)) as pool:
        pool.submit(job())
        assert pool.free == 0
        late = wait_for(pool, decide)
        assert late.reason == "timeout" and late.outcome is None and pool.free == 1
        until(lambda: started(children[0]) is None, 10)


@pytest.mark.parametrize("prunable", [False, True])
def test_reports_arrive_in_order_and_are_answered(tmp_path: Path, prunable: bool) -> None:
    told = list[int]()

    def decide(number: int, epoch: int, value: float) -> bool:
        told.append(epoch)
        return epoch < 2

    for pool in (Processes(Toy(tmp_path), workers=1), InProcess(Toy(tmp_path))):
        with closing(pool):
            pool.submit(job(7, prunable=prunable))
            found = wait_for(pool, decide)
            assert found.number == 7 and found.reason is None and (found.outcome is None) == prunable
            assert told == ([1, 2] if prunable else [1, 2, 3])
            told.clear()


def test_an_idle_worker_that_died_is_replaced(tmp_path: Path) -> None:
    with closing(Processes(Toy(tmp_path), workers=1)) as pool:
        pool.submit(job())
        first = wait_for(pool).outcome
        assert first is not None
        os.kill(first.details["pid"], 9)
        pid = first.details["pid"]
        until(lambda: started(pid) is None, 10)
        pool.submit(job(1))
        second = wait_for(pool).outcome
        assert second is not None and second.details["pid"] != first.details["pid"]


def test_a_worker_has_its_threads() -> None:
    with closing(Processes(threads, workers=1, threads=2)) as pool:
        pool.submit(job())
        found = wait_for(pool).outcome
        assert found is not None and found.details == {"torch": 2, "omp": "2"}
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_what_cannot_be_sent_runs_here_and_says_so() -> None:
    def local(arch: Any, fidelity: Fidelity, report: Report) -> Outcome:
        return Outcome(value=1.0)

    with pytest.warns(UserWarning, match="cannot be sent to another process.*trials run in this process"):
        pool = open_pool(local, Crew(workers=2), timeout=5.0)
    assert isinstance(pool, InProcess)
    with pytest.raises(Unready, match="cannot be loaded in another process"):
        Processes(Unloadable(), workers=1)


class Unloadable(Moody):
    """Can be pickled, but not be loaded."""

    def __init__(self) -> None:
        super().__init__(Path())

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


SCRIPT = """
import warnings
from pathlib import Path
warnings.simplefilter("error" if {guarded} else "default")
from befit.search.pool import Crew
from befit.search.study import run_study
from befit.search.trial import Outcome
from tests.search.toys import SPACE, spec, value

def evaluate(arch, fidelity, report):
    return Outcome(value=value(arch))

def main():
    found = run_study(spec(Path({folder!r}), trials=2), SPACE, evaluate, crew=Crew(workers=1))
    print([one.state for one in found])

{call}
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_without_a_guard_is_told_and_works(tmp_path: Path, guarded: bool) -> None:
    """Workers import the script that started them; one that starts the search while it is imported must not do so again."""
    call = 'if __name__ == "__main__":\n    main()' if guarded else "main()"
    script = tmp_path / "own.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path), call=call, guarded=guarded))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout == "['scored', 'scored']\n", done.stderr
    assert ("if __name__ == '__main__'" in done.stderr) == (not guarded) and "Traceback" not in done.stderr


def test_a_crew_is_checked() -> None:
    for wrong in list[dict[str, Any]](({"workers": -1}, {"threads": 0}, {"gpus": -0.5})):
        with pytest.raises(BadData, match="must be at least"):
            Crew(**wrong)
