"""A run's networks written as LEMUR keeps its own: a file each, a list of trainings by dataset and epochs, and one table of all.

    nn/befit-MD5.py     stat/img-classification_DATASET_acc_befit-MD5/EPOCHS.json     stat.csv

The MD5 is LEMUR's, of the text without white space; the table has befit's keys beside it, which see through names and layout, and
says of which arm, seed and number each row is. Networks of the network track bring no training of their own: LEMUR reads and
stores them, but its evaluator can train those of the recipe track only.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from befit.errors import BadData, BadProposal
from befit.propose.fingerprint import Keys, keys_of
from befit.propose.funnel import is_trained
from befit.propose.layout import hash_of
from befit.propose.lemur_rows import METRIC, TASK, TRANSFORM
from befit.propose.proposal import Proposal
from befit.rundir import write_json, write_text

COLUMNS: tuple[str, ...] = (
    "nn", "md5", "task", "dataset", "metric", "epoch", "accuracy", "duration", "transform", "prm", "tree", "recipe", "graph",
    "params", "flops", "arm", "seed", "number",
)  # fmt: skip
"""Of the table."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    networks: int
    """Files."""
    rows: int
    """Trainings."""
    left_out: int
    """Proposals that were never trained, or that are no network's file."""


def write_lemur(
    rows: Sequence[Proposal], folder: Path, *, epochs: int, prm: Mapping[str, Any] | None = None
) -> Exported:
    """Write the trained networks of a run; accuracies are on befit's validation images.

    Args:
        rows: Proposals.
        folder: New or empty, so that no other run's rows are mixed in.
        epochs: Of every training.
        prm: Hyper-parameters of every training, such as lr and batch.

    Raises:
        BadData: The folder holds something, or there are no networks to write.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadData(f"{folder} is there already and not empty; give a new folder")
    prm = dict(prm or {})
    trained = {row: keys for row in rows if is_trained(row) and (keys := _keys(row.source)) is not None}
    if not trained:
        raise BadData(f"there is no trained network among {len(rows)} proposals: nothing to write")
    told = [_told(row, keys, epochs, prm) for row, keys in trained.items()]
    _tell_apart(told)
    groups = dict[tuple[str, str], list[dict[str, Any]]]()
    for line, row in zip(told, trained, strict=True):
        write_text(folder / "nn" / f"{line['nn']}.py", row.source)
        # What LEMUR reads of a training is the training and its hyper-parameters, side by side.
        entry = {**prm, **{name: line[name] for name in ("accuracy", "duration", "transform")}, "uid": _uid(prm)}
        groups.setdefault((line["dataset"], line["nn"]), []).append(entry)
    for (dataset, name), entries in groups.items():
        write_json(folder / "stat" / f"{TASK}_{dataset}_{METRIC}_{name}" / f"{epochs}.json", entries)
    with (folder / "stat.csv").open("w", encoding="utf-8", newline="") as file:
        table: csv.DictWriter[str] = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(line | {"prm": json.dumps(prm, sort_keys=True)} for line in told)
    return Exported(networks=len({line["nn"] for line in told}), rows=len(told), left_out=len(rows) - len(told))


def _tell_apart(told: Sequence[dict[str, Any]]) -> None:
    """Other names for networks whose MD5 an earlier one has: white space means something in Python."""
    first = dict[str, str]()
    for line in told:
        own = line["tree"] + line["recipe"]
        if first.setdefault(line["nn"], own) != own:
            line["nn"] += f"-{hash_of(own)[:8]}"


def _keys(source: str) -> Keys | None:
    """Its keys; None if it is no network's file."""
    try:
        return keys_of(source)
    except BadProposal:
        return None


def _told(row: Proposal, keys: Keys, epochs: int, prm: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "nn": f"befit-{keys.lemur}",
        "md5": keys.lemur,
        "task": TASK,
        # Folders of LEMUR's results are split at underscores.
        "dataset": re.sub(r"[^\w.-]|_", "-", row.dataset),
        "metric": METRIC,
        "epoch": epochs,
        "accuracy": row.accuracy,
        "duration": round(row.train_seconds * 1e9),
        "transform": TRANSFORM,
        "prm": prm,
        "tree": keys.tree,
        "recipe": keys.recipe,
        **{name: vars(row)[name] for name in ("graph", "params", "flops", "arm", "seed", "number")},
    }


def _uid(prm: Mapping[str, Any]) -> str:
    """LEMUR's name for hyper-parameters, 32 hex digits."""
    return hash_of(json.dumps(prm, sort_keys=True))
