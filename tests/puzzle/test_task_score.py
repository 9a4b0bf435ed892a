"""Scores by a task against whole children that are asked the same items, one after the other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny, tiny_run
from tests.lm.answering import tokenizer
from tests.puzzle.conftest import MakeLibrary

from befit.arch.decoder import DecoderArch
from befit.cli import main
from befit.errors import BadData
from befit.lm.answers import Speaker
from befit.lm.asking import doubt, options
from befit.lm.parent import load_parent
from befit.lm.tasks.item import Item, items
from befit.lm.tasks.named import BUILT_IN
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.score import ScoreConfig, score_batches, scores_of
from befit.puzzle.task_score import asked, choices
from befit.rundir import read_json

WORDS = ("river", "stone", "model")


class Letters:
    """A tokenizer for models of 64 tokens."""

    bos_token_id, eos_token_id = None, 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 61 + 2 for letter in text]}


ITEMS = [
    Item(prompt=f"{'x' * n} is", options=tuple(f" {word}{'s' * n}" for word in WORDS[: 2 + n % 2]), right=n % 2)
    for n in range(5)
]


@pytest.mark.parametrize("family", ["llama", tiny.HYBRID])
def test_reuse_gives_the_doubt_of_whole_children(family: str, make_library: MakeLibrary, tmp_path: Path) -> None:
    library = make_library(family)
    letters: Any = Letters()
    speaker = Speaker(model=library.parent, tokenizer=letters)
    rows = choices(ITEMS, speaker)
    config = rows.config(ScoreConfig(metric="task:own", joint="all", batch=7))
    assert config.batch == 6 and rows.options == 3 and len(rows.tokens) == 15
    score_batches(library, rows.tokens, config, folder=tmp_path, metrics=rows.metrics(config.batch))
    found = scores_of(library, rows.tokens, config, tmp_path)

    def whole(model: Any) -> float:
        told = options(ITEMS, Speaker(model=model, tokenizer=letters, batch=1))
        doubts = [doubt([one.total for one in row], item.right) for item, row in zip(ITEMS, told, strict=True)]
        return sum(doubts) / len(doubts)

    base, checked = whole(library.parent), 0
    own = library.space.shape.arch.blocks
    for layer, table in enumerate(found.layers):
        for block in library.space.blocks(layer):
            if block.name in table:
                child = library.compose(DecoderArch(blocks=(*own[:layer], block, *own[layer + 1 :])))
                assert table[block.name] == pytest.approx(whole(child) - base, abs=1e-5), (layer, block.name)
                checked += 1
    assert checked >= 10


def test_rows_are_contexts_with_their_options() -> None:
    parent: Any = tiny.parent(max_position_embeddings=12)
    letters: Any = Letters()
    rows = choices(ITEMS, Speaker(model=parent, tokenizer=letters))
    assert rows.tokens.shape[1] == 12 and rows.right.tolist() == [0, 1, 0, 1, 0]
    for number, (begin, end) in enumerate(rows.spans.tolist()):
        item, option = ITEMS[number // 3], number % 3
        if option >= len(item.options):
            assert (begin, end) == (0, 0)
            continue
        text = (item.prompt + item.options[option])[-12:]
        assert rows.tokens[number, :end].tolist() == letters(text)["input_ids"]
        assert end - begin == len(item.options[option]) and not rows.tokens[number, end:].any()


def test_a_task_is_asked_other_items_than_those_that_judge() -> None:
    parent = load_parent(None, device="cpu", dtype=torch.float32)
    rows = asked("arithmetic", parent, count=4, seed=0)
    judging = items(BUILT_IN["arithmetic"], seed=0, count=96, tokens=len)
    texts = [tokenizer().decode(row[: int(end)]) for row, (_, end) in zip(rows.tokens, rows.spans, strict=True)]
    assert len(texts) == 16 and all("Answer: " in text for text in texts)
    assert not any(text.startswith(item.prompt) for text in texts for item in judging)
    with pytest.raises(BadData, match="no task definition"):
        asked("spelling.yaml", parent, count=4, seed=0)


def test_the_command_line_lets_a_task_choose(tmp_path: Path) -> None:
    arguments = tiny_run.command(tmp_path, tmp_path / "run", "memory=70%", "--heal.tokens=128")
    own = ["--score=task:tool_call", "--score-sequences=4"]
    assert main([word for word in arguments if "score" not in word] + own) == 0
    config = PuzzleConfig.from_json(read_json(tmp_path / "run" / "config.json"))
    assert config.score.task == "tool_call" and config.score.function is None
    (chosen,) = (tmp_path / "run" / "stages").glob("choose-*/chosen.json")
    assert len(read_json(chosen)["tried"]) == 1  # what the task chose is not polished
    (scores,) = (tmp_path / "run" / "stages").glob("score-*/scores.json")
    assert len(read_json(scores)["layers"]) == 3
    assert ScoreConfig(metric="task:a:b").function == "task:a:b" and ScoreConfig(metric="task:a:b").task is None


def test_a_task_that_does_not_exist_is_refused_before_the_run_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_run.command(tmp_path, tmp_path / "run", "memory=70%")
    assert main([word for word in arguments if "score" not in word] + ["--score=task:spelling.yaml"]) == 2
    assert "there is no task definition 'spelling.yaml'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
