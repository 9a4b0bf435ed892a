"""Rows of proposals: whole, in order, replaced and not repeated, and refused where the file is something else."""

import sqlite3
from dataclasses import fields, replace
from pathlib import Path

import pytest

from befit.errors import RunConflict
from befit.propose.attempts import Attempts
from befit.propose.models import Completion, Message, Request
from befit.propose.proposal import Proposal
from befit.propose.records import Records

FULL = Proposal(
    arm="shots=3",
    dataset="digits",
    seed=1,
    number=7,
    stage="above-chance",
    reason="",
    said="well",
    form="unified",
    source="import torch\n",
    whitespace="w",
    tree="t",
    recipe="r",
    graph="g",
    lemur="l",
    params=12,
    flops=34,
    accuracy=0.75,
    same_as=3,
    parent=2,
    examples=(5, 1),
    dropped=2,
    calls=2,
    prompt_tokens=100,
    completion_tokens=50,
    price=0.25,
    call_seconds=1.5,
    gate_seconds=0.25,
    train_seconds=3.0,
    done=True,
)
BARE = Proposal(arm="", dataset="digits", seed=0, number=0)


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    assert all(vars(FULL)[field.name] != field.default for field in fields(FULL) if field.name not in ("reason",))
    records = Records(tmp_path / "deep" / "run.sqlite")
    records.write(FULL)
    records.write(BARE)
    again = Records(tmp_path / "deep" / "run.sqlite")
    assert again.proposals() == [BARE, FULL]
    assert type(again.proposals()[0].done) is bool and again.proposals()[1].examples == (5, 1)


def test_a_row_is_replaced_and_order_is_kept(tmp_path: Path) -> None:
    records = Records(tmp_path / "run.sqlite")
    for number in (10, 9, 2):
        records.write(replace(BARE, number=number))
    records.write(replace(BARE, number=9, stage="parsed"))
    records.write(replace(BARE, number=1, seed=1))
    records.write(replace(BARE, number=1, arm="b"))
    assert [(row.arm, row.seed, row.number) for row in records.proposals()] == [
        *(("", 0, 2), ("", 0, 9), ("", 0, 10), ("", 1, 1), ("b", 0, 1))
    ]
    assert [row.stage for row in records.proposals(arm="", dataset="digits", seed=0)] == [
        *("attempted", "parsed", "attempted")
    ]
    records.forget([BARE, replace(BARE, number=9)])
    assert [row.number for row in records.proposals(arm="", seed=0)] == [2, 10]


def test_attempts_may_lie_in_the_same_file(tmp_path: Path) -> None:
    records, attempts = Records(tmp_path / "run.sqlite"), Attempts(tmp_path / "run.sqlite")
    request = Request(messages=(Message(role="user", content="a net"),))
    records.write(FULL)
    attempts.end(attempts.begin(request, "m"), Completion(text="no"))
    assert records.proposals() == [FULL] and attempts.rows()[0].request == request


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no table" * 1000)
    with pytest.raises(RunConflict, match="is no table of proposals"):
        Records(tmp_path / "text")
    with sqlite3.connect(tmp_path / "old") as connection:
        connection.execute("CREATE TABLE proposals (arm, dataset, seed, number, colour)")
    connection.close()
    with pytest.raises(RunConflict, match=r"columns that differ: accuracy.*colour"):
        Records(tmp_path / "old")
