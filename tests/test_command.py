"""The line that asks for a run again, read by the command line's own reader."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from befit.command import command_line
from befit.propose.config import ProposeConfig
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.heal import HealConfig
from befit.puzzle.score import ScoreConfig
from befit.search.config import SearchConfig
from befit.search.summary import ELSEWHERE
from befit.vision.training import TrainConfig

RUNS = {
    "puzzle": PuzzleConfig(
        parent="my models/llama",
        out=Path("my runs/x"),
        workload="batch=2,prompt=64",
        batches=(2, 4),
        baselines=True,
        target="vllm",
        heal=HealConfig(tokens=5, batch=4, lr=1e-4),
        score=ScoreConfig(metric="task:needle"),
    ),
    "propose": ProposeConfig(
        llm="http://localhost:1/v1",
        model="a b",
        budget="params<=2M",
        recipe=True,
        train=TrainConfig(epochs=2, seconds=3.5),
    ),
    "search": SearchConfig(
        data="my photos",
        space="mobile",
        budget="latency=4ms",
        proxy_features=True,
        final=TrainConfig(lr=0.1),
        out=Path("o"),
    ),
}


@pytest.mark.parametrize("verb", RUNS)
def test_the_command_asks_for_the_same_again(verb: str) -> None:
    config: Any = RUNS[verb]
    line = command_line(verb, config.to_json(), type(config)().to_json())
    assert line.startswith(f"befit {verb} --") and line.endswith(f"--out {shlex.quote(str(config.out))}")
    assert tyro.cli(type(config), args=shlex.split(line)[2:]) == config


def test_what_is_usual_is_left_out_unless_asked_for() -> None:
    usual = PuzzleConfig().to_json()
    assert command_line("puzzle", usual, usual) == "befit puzzle --out runs/puzzle"
    shown = command_line("puzzle", usual, usual, always=("budget",))
    assert shown == "befit puzzle --budget 'latency=60%, memory=70%' --out runs/puzzle"


def test_a_databases_password_is_not_shown() -> None:
    told = SearchConfig(storage="postgresql://me:secret@there/x", workers=3, trials=5)
    line = command_line("search", told.to_json(), SearchConfig().to_json(), never=ELSEWHERE)
    assert line == "befit search --trials 5 --out runs/search"
