"""The loop: complete, resumable, and honest about what failed."""

from pathlib import Path

import pytest
from tests.search.toys import SPACE, Toy, finished, spec, value

from befit.search.pool import Crew
from befit.search.study import read_study, run_study


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_study_is_complete(tmp_path: Path, workers: int) -> None:
    found = run_study(spec(tmp_path), SPACE, Toy(tmp_path / "done"), crew=Crew(workers=workers))
    assert [one.state for one in found] == ["scored"] * 8
    assert len(finished(tmp_path / "done")) == 8
    assert all(one.value == pytest.approx(value(SPACE.arch(one.arch or {}))) for one in found)
    assert read_study(str(tmp_path / "study.sqlite")) == found
