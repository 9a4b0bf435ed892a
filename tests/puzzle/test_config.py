"""The configuration of a run: to JSON and back, strict about names, checked before work."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from befit.errors import BadData, RunConflict
from befit.lm.timing import Effort
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.heal import HealConfig
from befit.puzzle.score import ScoreConfig


def test_json_keeps_everything() -> None:
    config = PuzzleConfig(
        parent="p",
        out=Path("runs/x"),
        batches=(2, 4),
        window=32,
        heal=HealConfig(tokens=5, lr=1e-4),
        score=ScoreConfig(joint="all"),
        measure=Effort(repeats=3),
        baselines=True,
    )
    assert PuzzleConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert PuzzleConfig.from_json(PuzzleConfig().to_json()) == PuzzleConfig()
    assert set(config.to_json()) == {field.name for field in fields(PuzzleConfig)}


def test_unknown_keys_are_refused() -> None:
    plain = PuzzleConfig().to_json()
    with pytest.raises(RunConflict, match=r"config.json has keys .* does not know: colour, taste"):
        PuzzleConfig.from_json(plain | {"taste": 1, "colour": 2})
    with pytest.raises(RunConflict, match=r"config.json: heal has keys .*: steps"):
        PuzzleConfig.from_json(plain | {"heal": plain["heal"] | {"steps": 1}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence", 1),
        ("score_sequences", 0),
        ("solutions", 0),
        ("rank_tokens", 0),
        ("local_tokens", -1),
        ("window", 0),
        ("batches", (4, 0)),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(BadData, match=f"{name} must be at least"):
        replace(PuzzleConfig(), **{name: value})
