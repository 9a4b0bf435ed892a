"""Several models on the same items: the record says who is better, by how much, and what the parent can't do."""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from tests.lm.answering import Known, constant, oracle, tokenizer

from befit.errors import BadData
from befit.lm.answers import Speaker
from befit.lm.contender import Contender, Place
from befit.lm.evaluation import EvalConfig, evaluate_all, generated
from befit.lm.paired import difference, mean
from befit.lm.tasks.item import items
from befit.lm.tasks.named import BUILT_IN

CONFIG = EvalConfig(tasks=("arithmetic", "tool_call"), items=24)


class Still(Known):
    """A `Known` that goes where it is told, like a module."""

    def to(self, device: str) -> "Still":
        return self

    def eval(self) -> "Still":
        return self


def contender(name: str, share: float) -> Contender:
    """Knows the answers to this share of the items."""
    asked = [
        item
        for task in CONFIG.tasks
        for item in items(BUILT_IN[task], seed=0, count=CONFIG.items, tokens=constant().count)[: int(24 * share)]
    ]
    model = Still([])
    model.next = oracle(asked).model.next if asked else {}
    return Contender(name=name, source=f"/{name}", open=lambda: (model, tokenizer()))


def test_differences_are_over_the_same_items() -> None:
    found = evaluate_all([contender("parent", 1), contender("child", 0.5), contender("other", 0)], CONFIG, Place())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found["tasks"]) == list(CONFIG.tasks) and found["tasks"]["arithmetic"]["items"] == 24
    for task in found["tasks"].values():
        exact = task["measures"]["exact"]
        assert exact["parent_can"] is True and exact["chance"] == 0
        told = exact["models"]
        assert [told[name]["mean"] for name in ("parent", "child", "other")] == [1, 0.5, 0]
        halves = [1.0] * 12 + [0.0] * 12
        assert told["child"]["stderr"] == mean(halves).stderr
        assert (
            told["child"]["difference"] == vars(difference(halves, [1.0] * 24)) and "difference" not in told["parent"]
        )
        assert task["measures"]["nats"]["models"]["other"]["difference"]["mean"] > 5
        assert task["measures"]["nats"]["parent_can"] is None and not task["measures"]["nats"]["higher_is_better"]
    by_steps = found["tasks"]["arithmetic"]["measures"]["choice"]["groups"]["steps"]
    assert list(by_steps) == ["1", "2", "4"]
    for group in by_steps.values():
        assert group["models"]["parent"]["items"] == 8 and "difference" not in group["models"]["parent"]
        assert group["models"]["other"]["difference"]["mean"] < -0.3 and group["parent_can"] is True


def test_what_the_parent_cannot_do_nobody_is_asked_to_write() -> None:
    found = evaluate_all([contender("parent", 0), contender("child", 1)], CONFIG, Place())
    for task in found["tasks"].values():
        assert task["measures"]["exact"]["parent_can"] is False and list(task["measures"]["exact"]["models"]) == [
            "parent"
        ]
        assert task["measures"]["choice"]["parent_can"] is False
        assert task["measures"]["choice"]["models"]["child"]["mean"] == 1
    alone = evaluate_all([contender("child", 1)], EvalConfig(tasks=("arithmetic",), items=2, write=False), Place())
    choice = alone["tasks"]["arithmetic"]["measures"]["choice"]
    assert choice["parent_can"] is None and choice["models"]["child"] == {"mean": 1.0, "stderr": 0.0, "items": 2}
    assert "exact" not in alone["tasks"]["arithmetic"]["measures"]


def test_lengths_beyond_the_models_positions_are_left_out() -> None:
    notes = list[str]()
    short: Any = Speaker(
        model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=300)), tokenizer=tokenizer()
    )
    (asked,) = generated(EvalConfig(tasks=("needle",), items=3), short, notes).values()
    assert {item.labels["tokens"] for item in asked} == {"256"}
    assert notes == [f"needle at {n} tokens was left out: the model has 300 positions." for n in (1024, 4096)]
    with pytest.raises(BadData, match="too few for 512 tokens"):
        generated(EvalConfig(tasks=("needle",), levels=(512,)), short, notes)


@pytest.mark.parametrize("wrong", [{"tasks": ()}, {"items": 0}, {"limit": 0}, {"levels": (0,)}, {"shots": -1}])
def test_wrong_settings_are_refused(wrong: Mapping[str, Any]) -> None:
    with pytest.raises(BadData, match=next(iter(wrong)).removesuffix("s")):
        EvalConfig(**wrong)
