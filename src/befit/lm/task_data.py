"""Data of well-known benchmarks from local files, in the form that lm-evaluation-harness expects of them.

For a task NAME, `NAME.jsonl`, `NAME.json` or `NAME.parquet` (also .gz or .xz) holds the rows of its dataset as the hub has them,
and `NAME.train.jsonl` those that worked examples are taken from. Files as they are published elsewhere are known by their
place, too: `arc/easy_test.json`, `arc/challenge_test.json`, `piqa/validation.jsonl`, `gsm8k/test.jsonl`,
`hellaswag/validation.jsonl`.
"""

import gzip
import json
import lzma
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from befit.errors import BadData

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A task whose published files have names of their own."""

    yaml: str
    """Its definition within the harness's folder of tasks."""
    files: tuple[str, ...]
    """Rows to be asked, without .gz or .xz."""
    train: tuple[str, ...] = ()
    """Rows for worked examples."""


KNOWN = {
    "arc_easy": Known(yaml="arc/arc_easy.yaml", files=("arc/easy_test.json",)),
    "arc_challenge": Known(yaml="arc/arc_challenge.yaml", files=("arc/challenge_test.json",)),
    "piqa": Known(yaml="piqa/piqa.yaml", files=("piqa/validation.jsonl",)),
    "hellaswag": Known(yaml="hellaswag/hellaswag.yaml", files=("hellaswag/validation.jsonl",)),
    "gsm8k": Known(yaml="gsm8k/gsm8k.yaml", files=("gsm8k/test.jsonl",), train=("gsm8k/train.jsonl",)),
}
"""Their definitions are also found without looking through all of the harness's."""

_PACKED = ("", ".xz", ".gz")
_FORMS = (".jsonl", ".json", ".parquet")
_ARC = re.compile(r"Answer\d+: ")


@dataclass(frozen=True, kw_only=True)
class LocalRows:
    """A task's rows."""

    asked: tuple[Row, ...]
    """To be asked, at least one."""
    train: tuple[Row, ...] = ()
    """To take worked examples from; may be none."""


def local_rows(folder: str | Path, task: str) -> LocalRows | None:
    """A task's rows if the folder has them. Raises `BadData` for a folder that is none and a file that cannot be read."""
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise BadData(f"task data: there is no folder {str(folder)!r}; give one with files such as arc_easy.jsonl")
    known = KNOWN.get(task)
    asked = _first(place, [f"{task}{form}" for form in _FORMS] + list(known.files if known else ()))
    train = _first(place, [f"{task}.train{form}" for form in _FORMS] + list(known.train if known else ()))
    if asked is None:
        return None
    return LocalRows(asked=_read(asked), train=_read(train) if train else ())


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    paths = (folder / f"{name}{packed}" for name in names for packed in _PACKED)
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path) -> tuple[Row, ...]:
    try:
        rows = _rows(path)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise BadData(f"task data: {path} cannot be read ({error}); check the file, or take it away") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise BadData(f"task data: {path} holds no rows; expected JSON objects, one a line, in a list, or Parquet")
    return tuple(_arc(row) if {"instruction", "answer"} <= set(row) else row for row in rows)


def _rows(path: Path) -> list[Any]:
    """Every row as Python values."""
    if ".parquet" in path.suffixes:
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8") as file:
        if ".jsonl" in path.suffixes:
            return [json.loads(line) for line in file if line.strip()]
        told = json.load(file)
    return told if isinstance(told, list) else []


def _arc(row: Row) -> Row:
    """ARC as prompts ("Answer1: … Answer2: …", answer "answer2") back to question, choices and key."""
    text = str(row["instruction"]).removeprefix("Please choose the correct answer to the question: ")
    question, _, rest = text.partition("\n\nAnswer1: ")
    choices = [choice.strip() for choice in _ARC.split(rest.partition("\n\nAnswer format:")[0])]
    number = str(row["answer"]).removeprefix("answer")
    if not number.isdigit() or not 1 <= int(number) <= len(choices):
        raise BadData(f"task data: the answer {row['answer']!r} is none of {len(choices)} options: {question[:80]!r}")
    labels = [chr(ord("A") + i) for i in range(len(choices))]
    return {"question": question, "choices": {"text": choices, "label": labels}, "answerKey": labels[int(number) - 1]}
