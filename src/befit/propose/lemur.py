"""Networks of LEMUR, the public collection of networks (github.com/ABrain-One/nn-dataset), as something known from the start.

No file is run: it is read as a syntax tree, and what is not a network by the contract is refused and counted. Two files that are
one network by that tree are one, with the better accuracy. Mind what the numbers are: LEMUR measures on the test split of the
dataset, after its own training; such accuracies may be shown to a model, and are no results of a run here.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from befit.errors import BadData, BadProposal
from befit.propose.archive import Scored
from befit.propose.fingerprint import Keys, keys_of
from befit.propose.layout import lemur_md5
from befit.propose.lemur_rows import METRIC, TASK, Statistic, read_rows

MOST_BYTES = 2**20
"""Of one network's file; longer ones are refused."""


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
    statistics, code_of = read_rows(folder)
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
