"""Rows of results as LEMUR keeps them (github.com/ABrain-One/nn-dataset), read from any of its forms.

LEMUR keeps a file for each network, `nn/NAME.py`, and a list of trainings for each number of epochs,

    stat/TASK_DATASET_METRIC_NAME/EPOCH.json     [{"accuracy": 0.61, "lr": 0.01, "batch": 32, "transform": "norm_64", …}, …]

or both in SQLite: nn(name, code, id), stat(accuracy, epoch, task, dataset, metric, nn, transform, prm, …) and prm(uid, name,
value). Tables of rows with the columns nn, dataset and accuracy are read, too, as CSV or JSON; nn_code may hold the source.
"""

import csv
import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from befit.errors import BadData

TASK = "img-classification"
METRIC = "acc"
TRANSFORM = "default"
"""LEMUR's name for images that are not changed beyond what the dataset's loader does."""

_DATABASES = ("*.db", "*.sqlite", "*.sqlite3")
_FACTS = {
    "accuracy",
    "duration",
    "transform",
    "uid",
    "task",
    "dataset",
    "metric",
    "nn",
    "nn_code",
    "epoch",
    "md5",
    "prm",
}
"""Of a row; all else are hyper-parameters."""


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One training of a network."""

    nn: str
    """The network's name: that of its file."""
    dataset: str
    accuracy: float | None
    """0 .. 1."""
    task: str = TASK
    metric: str = METRIC
    epoch: int = 1
    """Epochs after which it was measured."""
    transform: str = TRANSFORM
    seconds: float | None = None
    """Of the training."""
    prm: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Hyper-parameters."""
    md5: str = ""
    """LEMUR's of the source, where the row says it: then the file must have it."""
    code: str = ""
    """The source, where the row holds it."""


def read_rows(folder: Path) -> tuple[list[Statistic], Callable[[str], str | None]]:
    """All rows of the first form that is there, and where the sources are."""
    files = {path.stem: path for path in sorted(folder.rglob("*.py")) if path.stem != "__init__"}

    def code_of(name: str) -> str | None:
        return files[name].read_text(encoding="utf-8", errors="replace") if name in files else None

    for pattern in _DATABASES:
        for path in sorted(folder.rglob(pattern)):
            return _of_database(path, code_of)
    found = [one for path in sorted(folder.rglob("*.json")) if _is_stat(path) for one in _of_stat(path)]
    if not found:
        found = [one for path in sorted(folder.rglob("*.csv")) for one in _of_csv(path)]
    if not found:
        found = [one for path in sorted(folder.glob("*.json")) for one in _of_rows(_json(path), path)]
    if not found:
        raise BadData(
            f"lemur: no results in {folder}; expected a database, stat/*/*.json, or *.csv or *.json with nn, dataset, accuracy"
        )
    return found, code_of


def _of_database(
    path: Path, file_of: Callable[[str], str | None]
) -> tuple[list[Statistic], Callable[[str], str | None]]:
    """Its rows, and where their sources are: in the table nn, or in a file."""

    def ask(query: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise BadData(
                f"lemur: {path} cannot be read as LEMUR's database with tables nn, stat and prm: {error}"
            ) from None

    prms = dict[str, dict[str, Any]]()
    for uid, name, value in ask("SELECT uid, name, value FROM prm"):
        prms.setdefault(str(uid), {})[str(name)] = value
    columns = "nn, dataset, accuracy, task, metric, epoch, transform, duration, prm"
    rows = [dict(zip(columns.split(", "), row, strict=True)) for row in ask(f"SELECT {columns} FROM stat ORDER BY id")]
    statistics = [_statistic(row | {"prm": prms.get(str(row["prm"]), {})}, path) for row in rows]

    def code_of(name: str) -> str | None:
        found = ask("SELECT code FROM nn WHERE name = ?", name)
        return str(found[0][0]) if found else file_of(name)

    return statistics, code_of


def _is_stat(path: Path) -> bool:
    """Whether it is EPOCH.json in a folder TASK_DATASET_METRIC_NAME."""
    return path.stem.isdecimal() and path.parent.name.count("_") >= 3


def _of_stat(path: Path) -> Iterator[Statistic]:
    task, dataset, metric, name = path.parent.name.split("_", 3)
    told = {"task": task, "dataset": dataset, "metric": metric, "nn": name, "epoch": int(path.stem)}
    rows = _json(path)
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            yield _statistic(row | told, path)


def _of_csv(path: Path) -> Iterator[Statistic]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from _of_rows(list(csv.DictReader(file)), path)


def _of_rows(rows: Any, path: Path) -> Iterator[Statistic]:
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and {"nn", "dataset", "accuracy"} <= set(row):
            prm = (
                json.loads(row["prm"])
                if isinstance(row.get("prm"), str) and row["prm"].startswith("{")
                else row.get("prm")
            )
            yield _statistic(row | {"prm": prm if isinstance(prm, dict) else {}}, path)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"lemur: {path} is no JSON: {error}") from None


def _statistic(row: Mapping[str, Any], path: Path) -> Statistic:
    """A row of any of the forms; unnamed hyper-parameters stand beside its facts."""
    prm = row["prm"] if "prm" in row else {name: value for name, value in row.items() if name not in _FACTS}
    epoch, duration = _number(row.get("epoch", 1)), _number(row.get("duration"))
    if epoch is None:
        raise BadData(f"lemur: {path}: epoch must be a number, got {row.get('epoch')!r}")
    return Statistic(
        nn=str(row["nn"]),
        dataset=str(row["dataset"]),
        accuracy=_number(row.get("accuracy")),
        task=str(row.get("task") or TASK),
        metric=str(row.get("metric") or METRIC),
        epoch=int(epoch),
        transform=str(row.get("transform") or TRANSFORM),
        seconds=None if duration is None else duration / 1e9,
        prm=prm,
        md5=str(row.get("md5") or ""),
        code=str(row.get("nn_code") or ""),
    )


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
