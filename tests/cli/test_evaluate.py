"""`befit eval`: its arguments are those of the evaluation, and its errors are befit's own."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from befit.cli import evaluate, main
from befit.lm.evaluation import EvalConfig


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be evaluated."""
    found = list[Any]()
    monkeypatch.setattr(evaluate, "_evaluate", found.append)
    return found


def test_what_is_not_given_is_as_the_evaluation_has_it(asked: list[Any]) -> None:
    assert main(["eval", "runs/small"]) == 0
    assert asdict(asked[0]).items() >= asdict(EvalConfig()).items() and asked[0].models == ("runs/small",)


def test_tasks_are_one_word(asked: list[Any]) -> None:
    assert main(["eval", "--tasks", "needle, ./mine.yaml,,needle", "a", "b", "--levels", "2", "3"]) == 0
    assert asked[0].tasks == ("needle", "./mine.yaml") and asked[0].models == ("a", "b") and asked[0].levels == (2, 3)


def test_help_has_every_field_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["eval", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(f"--{name.replace('_', '-')} " in shown.replace(",", " ") for name in asdict(EvalConfig()))
    assert "Generated ones (needle, tool_call, arithmetic), those of lm-evaluation-harness" in shown
    assert "Items of each generated task" in shown and "Put tasks to models and their parent" in shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--items=0", "items must be at least 1, got 0"),
        ("--shots=-1", "shots must be 0 or more, got -1"),
        ("--tasks=,", "name at least one task: needle, tool_call, arithmetic, or one of lm-evaluation-harness"),
    ],
)
def test_wrong_settings_are_one_line(wrong: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "runs/small", wrong]) == 2
    told = capsys.readouterr()
    assert told.err == f"befit eval: {message}\n" and not told.out


@pytest.mark.parametrize("verb", ["eval", "bench"])
def test_results_that_could_not_be_written_are_not_computed(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Were anything computed, the model that is not there would be told."""
    monkeypatch.chdir(tmp_path)
    assert main([verb, "no-model", "--out", str(tmp_path)]) == 2
    assert "cannot be written (Is a directory); give another --out" in capsys.readouterr().err
