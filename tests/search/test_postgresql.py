"""Several coordinators on one PostgreSQL database share one study. The server is this test's own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.search.toys import SMALL, SPACE, Gated, finished, spec

from befit.search.pool import Crew
from befit.search.study import read_study, run_study
from befit.search.trial import funnel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The address of an empty database, at a socket in a folder of its own."""
    places = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        Path(shutil.which("initdb") or "").parent,
    ]
    binaries = next((place for place in places if (place / "initdb").exists()), None)
    if binaries is None:
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    # The server refuses to run as root; pytest's folders are closed to others, and too deep for a socket.
    other: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="befit-pg-"))
    folder.chmod(0o755)
    if other:
        shutil.chown(folder, "postgres", "postgres")

    def run(program: str, *words: str) -> None:
        command = [str(binaries / program), "-D", str(folder / "data"), *words]
        with (folder / f"{program}.log").open("w") as log:
            subprocess.run(command, check=True, cwd="/", stdout=log, stderr=log, **other)

    try:
        run("initdb", "--username=befit", "--auth=trust", "--no-sync")
        run("pg_ctl", "-w", "-o", f"-F -k {folder} -c listen_addresses=''", "-l", str(folder / "server.log"), "start")
        try:
            yield f"postgresql://befit@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def test_two_coordinators_make_one_study(tmp_path: Path, postgresql: str) -> None:
    (tmp_path / "go").touch()
    command = [sys.executable, "-m", "tests.search.coordinator", str(tmp_path), "2", "12", postgresql]
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    found = read_study(postgresql)
    scored = [one for one in found if one.state == "scored"]
    assert len(scored) == 12 == len(finished(tmp_path / "done")), "no more than was asked for, however many work on it"
    assert len({one.owner for one in scored}) == 2, "both took part"
    assert all(one.reason == "surplus" for one in found if one.state != "scored")
    assert funnel(found).asked == 12

    # A third, somewhere else, finds everything done.
    assert (
        run_study(
            spec(tmp_path, storage=postgresql, trials=12, searcher="evolution", options=SMALL),
            SPACE,
            Gated(tmp_path),
            crew=Crew(workers=0),
        )
        == found
    )


def test_a_coordinator_takes_over_what_another_left(tmp_path: Path, postgresql: str) -> None:
    """The other one is killed, and this one is told that it was on another machine: only its silence says so."""
    from tests.search.test_kill import waiting
    from tests.search.toys import until

    command = [sys.executable, "-m", "tests.search.coordinator", str(tmp_path), "1", "6", postgresql, "left"]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        until(
            lambda: (
                len(waiting(tmp_path, 1)) == 1 and len(finished(tmp_path / "done")) == 3
                if (tmp_path / "done").exists()
                else False
            )
        )
    finally:
        process.kill()
        process.wait()
    (tmp_path / "go").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("befit.search.owner.machine", lambda: "elsewhere")
        told = spec(tmp_path, storage=postgresql, name="left", trials=6, searcher="evolution", options=SMALL, grace=1.0)
        found = run_study(told, SPACE, Gated(tmp_path), crew=Crew(workers=0))
    assert [one.reason for one in found if one.state == "failed"] == ["killed"]
    assert sum(one.state == "scored" for one in found) == 6 == len(set(finished(tmp_path / "done")))
