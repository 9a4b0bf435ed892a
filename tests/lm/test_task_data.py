"""Rows from every kind of file, and ARC's prompts taken apart again."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from befit.errors import BadData
from befit.lm.task_data import local_rows
from published import DATA

ROWS = [{"goal": "open a door", "sol1": "push it", "sol2": "eat it", "label": 0}, {"goal": "é", "label": 1}]
PROMPT = (
    "Please choose the correct answer to the question: What is red?\n\nAnswer1: a rose Answer2: the sea Answer3: grass"
)


def test_every_form_of_file_holds_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines, whole = "".join(json.dumps(row) + "\n" for row in ROWS), json.dumps(ROWS)
    for number, (name, text) in enumerate(
        (("piqa.jsonl", lines), ("piqa.json", whole), ("piqa/validation.jsonl", lines))
    ):
        for suffix, opener in (("", open), (".xz", lzma.open), (".gz", gzip.open)):
            file = tmp_path / f"{number}{suffix}" / f"{name}{suffix}"
            file.parent.mkdir(parents=True)
            write: Any = opener
            with write(file, "wt", encoding="utf-8") as out:
                out.write(text)
            found = local_rows(tmp_path / f"{number}{suffix}", "piqa")
            assert found is not None and list(found.asked) == ROWS and found.train == ()
    (tmp_path / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "table" / "own_task.parquet")
    (tmp_path / "table" / "own_task.train.jsonl").write_text(lines)
    found = local_rows(tmp_path / "table", "own_task")
    assert found is not None and found.asked == (ROWS[0],) and list(found.train) == ROWS
    assert local_rows(tmp_path / "table", "piqa") is None


def test_arc_as_prompts(tmp_path: Path) -> None:
    row = {"instruction": f"{PROMPT}\n\nAnswer format: answer1/answer2", "answer": "answer1", "output": "", "input": ""}
    (tmp_path / "arc_easy.json").write_text(json.dumps([row]))
    found = local_rows(tmp_path, "arc_easy")
    choices = {"text": ["a rose", "the sea", "grass"], "label": ["A", "B", "C"]}
    assert found is not None and found.asked == ({"question": "What is red?", "choices": choices, "answerKey": "A"},)
    (tmp_path / "arc_easy.json").write_text(json.dumps([{**row, "answer": "answer5"}]))
    with pytest.raises(BadData, match="none of 3 options"):
        local_rows(tmp_path, "arc_easy")


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read"), ("", "holds no rows"), ("3\n", "holds no rows")])
def test_files_that_hold_something_else(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text(text)
    with pytest.raises(BadData, match=words):
        local_rows(tmp_path, "piqa")
    with pytest.raises(BadData, match="there is no folder"):
        local_rows(tmp_path / "none", "piqa")


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "count"), [("arc_easy", 2376), ("arc_challenge", 1172), ("piqa", 1838), ("gsm8k", 1319)]
)
def test_published_files_are_read_whole(task: str, count: int) -> None:
    found = local_rows(DATA, task)
    assert found is not None and len(found.asked) == count
    if task.startswith("arc"):
        sizes = [len(row["choices"]["text"]) for row in found.asked]
        assert sum(size != 4 for size in sizes) == (11 if task == "arc_easy" else 7)
        assert all(row["question"] and all(row["choices"]["text"]) for row in found.asked)
