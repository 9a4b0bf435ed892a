"""A lane: what it has seen, what it shows, and draws that nothing else has."""

from dataclasses import replace
from typing import Any

from befit.propose.archive import Scored
from befit.propose.arms import Arm
from befit.propose.config import ProposeConfig
from befit.propose.lane import Lane
from befit.propose.proposal import Known, Proposal

OLD = Scored(number=-1, key="t-old", text="old", dataset="d", accuracy=0.9)
ROW = Proposal(arm="", dataset="d", seed=0, number=0, done=True)
ROWS = [
    replace(ROW, number=0, stage="above-chance", tree="t0", graph="g0", recipe="r0", accuracy=0.5, source="zero"),
    replace(ROW, number=1, tree="t1", reason="build"),
    replace(ROW, number=2, tree="t2", graph="g0", recipe="r2", accuracy=0.5, same_as=0),
    replace(ROW, number=3, stage="above-chance", tree="t3", graph="", accuracy=0.7, params=1234, source="three"),
]


def lane(arm: str = "", dataset: str = "d", seed: int = 0, **told: Any) -> Lane:
    rest = dict.fromkeys(("images", "threshold", "task", "proposer", "space", "options"))
    given: dict[str, Any] = {**rest, "given": (OLD,), "rows": ROWS, **told}
    return Lane(arm=Arm(name=arm, config=ProposeConfig()), dataset=dataset, seed=seed, **given)


def test_its_name_is_one_of_a_folder() -> None:
    assert lane().name == "d-0"
    assert lane("shots=1, form=network", "owner/data: x", 2).name == "shots=1-form=network-owner-data-x-2"


def test_draws_are_its_own_and_the_same_in_any_process() -> None:
    lanes = [lane(), lane("a"), lane(dataset="e"), lane(seed=1)]
    seeds = [one.seed_of(number, what) for one in lanes for number in (0, 1) for what in ("choose", "call 0")]
    assert len(set(seeds)) == len(seeds)
    assert lane().seed_of(3, "choose") == lane().seed_of(3, "choose")
    assert lane().rng(3, "choose").random() == lane().rng(3, "choose").random()


def test_it_has_seen_what_came_before_and_what_was_known_from_the_start() -> None:
    seen = lane().seen(3)
    assert seen("tree", "t0") == seen("graph", "g0") == Known(number=0, accuracy=0.5)
    assert seen("tree", "t1") == Known(number=1, accuracy=None, reason="build")
    assert seen("tree", "t2") == Known(number=0, accuracy=0.5), "the first of them"
    assert seen("tree", "t3") is seen("graph", "t0") is seen("tree", "") is None
    assert seen("tree", "t0+r0") == Known(number=0, accuracy=0.5) and seen("tree", "t0+r1") is None
    assert seen("tree", "t-old") == Known(number=-1, accuracy=0.9) and seen("graph", "t-old") is None


def test_it_shows_what_was_trained_before() -> None:
    shown = lane().scored(4)
    assert [(one.number, one.key, one.text, one.note) for one in shown] == [
        *((-1, "t-old", "old", ""), (0, "g0", "zero", ""), (3, "t3", "three", "1,234 parameters"))
    ]
    assert [one.number for one in lane().scored(3)] == [-1, 0] and lane(given=()).scored(0) == []
