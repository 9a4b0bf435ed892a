"""Networks and results in the form of LEMUR, the public collection of networks (github.com/ABrain-One/nn-dataset).

LEMUR keeps a file for each network, `nn/NAME.py`, and a list of trainings for each number of epochs,

    stat/TASK_DATASET_METRIC_NAME/EPOCH.json     [{"accuracy": 0.61, "lr": 0.01, "batch": 32, "transform": "norm_64", …}, …]

or both in SQLite: nn(name, code, id), stat(accuracy, epoch, task, dataset, metric, nn, transform, prm, …) and prm(uid, name,
value). Tables of rows with the columns nn, dataset and accuracy are read, too, as CSV or JSON; nn_code may hold the source.

No file is run: it is read as a syntax tree, and what is not a network by the contract is refused and counted. Two files that are
one network by that tree are one, with the better accuracy. Mind what the numbers are: LEMUR measures on the test split of the
dataset, after its own training; such accuracies may be shown to a model, and are no results of a run here.
"""

import csv
import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from befit.errors import BadData, BadProposal
from befit.propose.archive import Scored
from befit.propose.fingerprint import Keys, keys_of
from befit.propose.layout import hash_of, lemur_md5

TASK = "img-classification"
METRIC = "acc"
TRANSFORM = "default"
"""LEMUR's name for images that are not changed beyond what the dataset's loader does."""

MOST_BYTES = 2**20
"""Of one network's file; longer ones are refused."""

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


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a folder held."""

    networks: tuple[Scored, ...]
    """For the archive, the best first; their numbers are below 0, before any proposal."""
    statistics: tuple[Statistic, ...]
    """The row of each."""
    refused: Mapping[str, int]
    """Why other rows were left out: task, metric, dataset, epoch, accuracy, no-code, md5, size, parse, contract, repeated."""


def read_lemur(
    folder: Path,
    *,
    datasets: Mapping[str, str] | Sequence[str],
    epoch: int | None = None,
    recipe: bool = False,
) -> Imported:
    """Networks of a folder with results on the given datasets.

    Args:
        folder: With an SQLite file, or folders `stat`, or CSV or JSON files of rows; and with the networks' files, at any depth.
        datasets: Names here, which match LEMUR's but for case and punctuation (cifar10 is cifar-10), or {name here: LEMUR's}.
        epoch: Only results after so many epochs; None takes the best of all.
        recipe: Networks with another training are others.

    Raises:
        BadData: No folder, no rows in it, a file that cannot be read as its name says, or no networks left, with the reasons.
    """
    if not folder.is_dir():
        raise BadData(
            f"lemur: {folder} is no folder; expected one with nn/*.py and stat/*/*.json, a database, or tables of rows"
        )
    named = datasets if isinstance(datasets, Mapping) else {name: name for name in datasets}
    ours = {_plain(theirs): name for name, theirs in named.items()}
    statistics, code_of = _read(folder)
    refused, best = Counter[str](), dict[tuple[str, str], Statistic]()
    for one in statistics:
        if reason := _unfit(one, ours, epoch):
            refused[reason] += 1
            continue
        key = ours[_plain(one.dataset)], one.nn
        if key in best:
            refused["repeated"] += 1
        if key not in best or _accuracy(one) > _accuracy(best[key]):
            best[key] = one
    kept = _distinct(best, code_of, recipe, refused)
    if not kept:
        told = ", ".join(f"{reason} {count}" for reason, count in refused.most_common())
        raise BadData(
            f"lemur: {folder} has no network with results on {', '.join(named)}; refused rows by reason: {told}"
        )
    networks = tuple(
        Scored(
            number=place - len(kept),
            key=keys.tree + (f"+{keys.recipe}" if recipe else ""),
            text=source,
            dataset=dataset,
            accuracy=_accuracy(one),
            note=f"LEMUR's {one.nn}, {one.epoch} epoch{'s' * (one.epoch != 1)}",
        )
        for place, (dataset, one, source, keys) in enumerate(kept)
    )
    return Imported(networks=networks, statistics=tuple(one for _, one, _, _ in kept), refused=dict(refused))


def _unfit(one: Statistic, ours: Mapping[str, str], epoch: int | None) -> str:
    """Why a row is of no use here; empty if it is."""
    if one.task != TASK:
        return "task"
    if one.metric != METRIC:
        return "metric"
    if _plain(one.dataset) not in ours:
        return "dataset"
    if epoch is not None and one.epoch != epoch:
        return "epoch"
    return "" if one.accuracy is not None and 0 <= one.accuracy <= 1 else "accuracy"


def _distinct(
    best: Mapping[tuple[str, str], Statistic], code_of: Callable[[str], str | None], recipe: bool, refused: Counter[str]
) -> list[tuple[str, Statistic, str, Keys]]:
    """(dataset, row, source, keys) of each network once, the best first."""
    kept, seen = list[tuple[str, Statistic, str, Keys]](), set[tuple[str, str, str]]()
    for (dataset, name), one in sorted(best.items(), key=lambda item: (-_accuracy(item[1]), item[0])):
        source = one.code or code_of(name)
        try:
            keys = _keys(source, one.md5)
        except BadProposal as error:
            refused[error.reason] += 1
            continue
        key = dataset, keys.tree, keys.recipe if recipe else ""
        if key in seen:
            refused["repeated"] += 1
            continue
        seen.add(key)
        kept.append((dataset, one, source or "", keys))
    return kept


def _keys(source: str | None, md5: str) -> Keys:
    if source is None:
        raise BadProposal("no file", reason="no-code")
    if len(source.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise BadProposal("too long", reason="size")
    if md5 and md5 != lemur_md5(source):
        raise BadProposal("not the file that was measured", reason="md5")
    return keys_of(source)


def _accuracy(one: Statistic) -> float:
    return one.accuracy or 0.0


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# Reading


def _read(folder: Path) -> tuple[list[Statistic], Callable[[str], str | None]]:
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
    names = [*columns.split(", ")[:-1], "prm"]
    rows = [dict(zip(names, row, strict=True)) for row in ask(f"SELECT {columns} FROM stat ORDER BY id")]
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


def uid_of(prm: Mapping[str, Any]) -> str:
    """A name for these hyper-parameters, 32 hex digits."""
    return hash_of(json.dumps(prm, sort_keys=True))
