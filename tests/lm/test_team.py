"""The processes of one run: stages that one makes, stages that all share, and errors that are told once."""

import json
from pathlib import Path

import pytest
from tests.teams import spoken

from befit.lm.team import AskAll, Team
from befit.rundir import Run, read_json

SHARED = """
import json, sys
from pathlib import Path
from befit.errors import BadData, BefitError
from befit.lm.team import Team
from befit.rundir import Run, read_json, write_json

out, fails = json.loads(sys.argv[1])
team = Team.of("cpu")
run = Run(folder=Path(out))
done = []

def work(folder):
    for part in filter(team.mine, range(5)):
        if part == fails:
            raise BadData("part 3 is bad")
        write_json(folder / f"{part}.json", [part, team.rank])
        done.append(part)

def finish(folder):
    write_json(folder / "sum.json", [read_json(folder / f"{part}.json") for part in range(5)])

try:
    with team.one_voice():
        for again in range(2):
            folder = team.shared_stage(run, "shared", "key", work, finish)
        alone = team.stage(run, "alone", "key", lambda folder: write_json(folder / "rank.json", team.rank))
        print(json.dumps([done, read_json(folder / "sum.json"), read_json(alone / "rank.json")]))
except BefitError as error:
    print("TOLD", error)
except SystemExit as left:
    print("LEFT", left.code)
"""

LED = """
import json, os, sys
from pathlib import Path
from befit.errors import BadData, BefitError
from befit.lm.team import Team
from befit.rundir import Run, read_json, write_json

out, fails, breaks = json.loads(sys.argv[1])
team = Team.of("cpu")
run = Run(folder=Path(out))

def answer(question):
    if question == fails:
        raise BadData(f"{question} is bad")
    return [question, team.rank]

def make(folder, ask):
    found = [ask([1, 2, 3]), ask([]), ask([4])]
    if breaks:
        raise BadData("nothing fits")
    write_json(folder / "answers.json", found)

try:
    with team.one_voice():
        for again in range(2):
            folder = team.led_stage(run, "led", "key", make, answer)
        print(json.dumps(read_json(folder / "answers.json")))
except BefitError as error:
    print("TOLD", error)
except SystemExit as left:
    print("LEFT", left.code)
"""


def test_alone_there_is_no_team(tmp_path: Path) -> None:
    assert Team.of("cpu") == Team()
    with Team().first(), Team().one_voice():
        pass
    seen = list[str]()
    run = Run(folder=tmp_path)
    folder = Team().shared_stage(run, "a", "b", lambda f: seen.append("work"), lambda f: seen.append("finish"))
    assert seen == ["work", "finish"] and all(map(Team().mine, range(9)))
    assert Team().shared_stage(run, "a", "b", lambda f: seen.append("work"), lambda f: seen.append("more")) == folder
    assert seen == ["work", "finish"] and [stage.reused for stage in run.stages] == [False, True]


def test_parts_are_shared_and_done_once(tmp_path: Path) -> None:
    (first, _), (second, _) = spoken(SHARED, [str(tmp_path), None])
    whole = [[part, part % 2] for part in range(5)]
    assert json.loads(first) == [[0, 2, 4], whole, 0]
    assert json.loads(second) == [[1, 3], whole, 0]


def test_another_process_s_error_is_told_by_the_main_one(tmp_path: Path) -> None:
    (first, _), (second, _) = spoken(SHARED, [str(tmp_path), 3])
    assert first.strip() == "TOLD process 1 of 2: part 3 is bad"
    assert second.strip() == "LEFT 2"
    assert not (tmp_path / "stages" / "shared-key" / "done.json").exists()
    again, _ = spoken(SHARED, [str(tmp_path), None])[0]  # what was done is kept, the rest is made
    assert "TOLD" not in again
    assert read_json(tmp_path / "stages" / "shared-key" / "sum.json")[3] == [3, 1]


def test_its_own_error_too(tmp_path: Path) -> None:
    (first, _), (second, _) = spoken(SHARED, [str(tmp_path), 2])
    assert (first.strip(), second.strip()) == ("TOLD part 3 is bad", "LEFT 2")


def test_all_answer_what_the_main_one_asks(tmp_path: Path) -> None:
    first, second = (out for out, _ in spoken(LED, [str(tmp_path), None, False]))
    assert json.loads(first) == [[[1, 0], [2, 1], [3, 0]], [], [[4, 0]]]
    assert second == first

    def make(folder: Path, ask: AskAll) -> None:
        assert ask([1, 2]) == [2, 4]

    Team().led_stage(Run(folder=tmp_path), "alone", "key", make, lambda number: 2 * number)


@pytest.mark.parametrize(
    ("fails", "breaks", "told"),
    [(2, False, "process 1 of 2: 2 is bad"), (None, True, "nothing fits")],
)
def test_a_stage_that_is_led_fails_once(tmp_path: Path, fails: int | None, breaks: bool, told: str) -> None:
    (first, _), (second, _) = spoken(LED, [str(tmp_path), fails, breaks])
    assert (first.strip(), second.strip()) == (f"TOLD {told}", "LEFT 2")
    assert not (tmp_path / "stages" / "led-key" / "done.json").exists()
