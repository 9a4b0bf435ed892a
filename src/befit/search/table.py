"""Searching a table of trained architectures instead of training any: how searchers are compared.

    table = Table.load(Path("nas_bench_201.csv.gz"))
    run = search_table(table, Evolution(), TableSearch(reward="cifar10_val_12ep", objective="c10_test200"), seed=0)

Each query reads a reward, as a short training would give it; at the end the arch with the best reward is judged by the
objective, as a full training and the test set would. The searcher is called as a study calls it, with the same random numbers.
"""

import csv
import functools
import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from befit.arch.cell import NAMES, OPS, cell_space, parse
from befit.arch.space import Arch, Choice, Space, Value
from befit.budget import Budget
from befit.errors import BadTable
from befit.search.searcher import Searcher, Told, View, rng_of


@dataclass(frozen=True)
class Table:
    """Archs of a space, and what is known of each."""

    space: Space
    archs: tuple[Arch, ...]
    """One for each row."""
    columns: Mapping[str, Sequence[float]]
    """Column -> a number for each row."""

    @functools.cached_property
    def row(self) -> dict[Arch, int]:
        """Where an arch stands."""
        return {arch: place for place, arch in enumerate(self.archs)}

    def column(self, name: str) -> Sequence[float]:
        """Raises `BadTable` naming the columns there are."""
        if name not in self.columns:
            raise BadTable(f"table: there is no column {name!r}; expected one of {', '.join(self.columns)}")
        return self.columns[name]

    @staticmethod
    def load(path: Path, choices: Sequence[str] = ()) -> "Table":
        """Read a table. Raises `BadTable` for anything else than these forms, plain or as `.gz`:

        CSV with a column `arch`, a cell in NAS-Bench-201's text form or a row of digits, one for each layer
        CSV in which the columns named by `choices` hold the options
        JSON  {"01210122": {"mean_acc": [..] or number, ...}, ...}, as NAS-Bench-Macro
        """
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError, EOFError) as error:
            raise BadTable(f"table {path}: cannot be read: {error}") from error
        if Path(path.name.removesuffix(".gz")).suffix == ".json":
            rows = _json_rows(text, path)
        else:
            rows = list(csv.DictReader(text.splitlines()))
        if not rows:
            raise BadTable(f"table {path}: it has no rows")
        if not choices and "arch" not in rows[0]:
            raise BadTable(
                f"table {path}: there is no column 'arch'; say which columns are choices, of {', '.join(rows[0])}"
            )
        if missing := [name for name in choices if name not in rows[0]]:
            raise BadTable(f"table {path}: there is no column {', '.join(missing)}; it has {', '.join(rows[0])}")
        space, archs = _of_choices(rows, choices) if choices else _of_texts([row["arch"] for row in rows], path)
        return Table(space, tuple(archs), _numbers(rows, {"arch", *choices}))


@dataclass(frozen=True, kw_only=True)
class TableSearch:
    """What is searched for in a table."""

    reward: str
    """Column that a query reads; higher is better."""
    objective: str
    """Column that judges the arch of the best reward."""
    queries: int = 100
    """At most so many; 1 or more."""
    bound: Budget | None = None
    """On columns; archs outside are never asked for."""
    until_optimum: bool = False
    """Whether to stop at the table's best objective (within the bound)."""


@dataclass(frozen=True, kw_only=True)
class TableRun:
    """One search of a table."""

    rows: tuple[int, ...]
    """What was asked for, in order."""
    final: float
    """The objective of the arch with the best reward."""
    best: float
    """The best objective among those asked for."""
    reached: int | None
    """After how many queries the table's best objective (within the bound) was among them; None if never."""


def search_table(table: Table, searcher: Searcher, search: TableSearch, *, seed: int) -> TableRun:
    """Run one search. Raises `BadTable` for an unknown column, `Infeasible` if no arch is within the bound or left."""
    reward, objective = table.column(search.reward), table.column(search.objective)
    allowed = within(table, search.bound)
    most = optimum(table, search)
    told, rows = tuple[Told, ...](), list[int]()
    while len(rows) < search.queries and not (search.until_optimum and rows and objective[rows[-1]] >= most):
        rng = rng_of(seed, len(rows))
        arch = searcher.propose(View(space=table.space, told=told, running=(), allowed=allowed, rng=rng))
        rows.append(table.row[arch])
        told += (Told(arch=arch, value=reward[rows[-1]]),)
    return judged(rows, reward, objective, most)


def judged(rows: Sequence[int], reward: Sequence[float], objective: Sequence[float], most: float) -> TableRun:
    """What a row of queries found; of equal rewards the first counts."""
    return TableRun(
        rows=tuple(rows),
        final=objective[max(rows, key=lambda row: reward[row])],
        best=max(objective[row] for row in rows),
        reached=next((place for place, row in enumerate(rows, 1) if objective[row] >= most), None),
    )


def within(table: Table, bound: Budget | None) -> Callable[[Arch], bool]:
    """Whether an arch is within the bound on columns, as `View.allowed`."""
    if bound is None:
        return table.row.__contains__
    columns = {one.cost: table.column(one.cost) for one in bound.bounds}
    kept = [bound.met({name: values[row] for name, values in columns.items()}) for row in range(len(table.archs))]
    return lambda arch: arch in table.row and kept[table.row[arch]]


def optimum(table: Table, search: TableSearch) -> float:
    """The best objective of the table within the bound; `BadTable` if nothing is within it."""
    allowed = within(table, search.bound)
    values = [v for arch, v in zip(table.archs, table.column(search.objective), strict=True) if allowed(arch)]
    if not values:
        raise BadTable(f"table: none of its {len(table.archs):,} archs keeps {search.bound}; loosen the bound")
    return max(values)


def _json_rows(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadTable(f"table {path}: it is no JSON: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(facts, dict) for facts in data.values()):
        raise BadTable(f"table {path}: expected a JSON object of an object for each arch")
    return [{"arch": name, **facts} for name, facts in data.items()]


def _of_texts(texts: Sequence[str], path: Path) -> tuple[Space, Iterable[Arch]]:
    if texts[0].startswith("|"):
        return cell_space(), map(parse, texts)
    if not all(text.isdecimal() and len(text) == len(texts[0]) for text in texts):
        raise BadTable(
            f"table {path}: 'arch' must hold cells such as |op~0|+... or digits, all as many; got {texts[0]!r}"
        )
    options = [sorted({int(text[place]) for text in texts}) for place in range(len(texts[0]))]
    names = [f"layer {place}" for place in range(1, len(options) + 1)]
    space = Space({name: Choice(*own) for name, own in zip(names, options, strict=True)})
    return space, (Arch(tuple(zip(names, map(int, text), strict=True))) for text in texts)


def _of_choices(rows: Sequence[Mapping[str, Any]], choices: Sequence[str]) -> tuple[Space, Iterable[Arch]]:
    read = {name: [_option(row[name]) for row in rows] for name in choices}
    space = Space({name: Choice(*dict.fromkeys(values)) for name, values in read.items()})
    return space, (Arch(tuple(zip(choices, values, strict=True))) for values in zip(*read.values(), strict=True))


def _option(text: Any) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return str(text)


def _numbers(rows: Sequence[Mapping[str, Any]], without: set[str]) -> dict[str, list[float]]:
    """The columns that hold one number in each row."""
    found = dict[str, list[float]]()
    for name in rows[0]:
        if name not in without:
            try:
                found[name] = [float(row[name]) for row in rows]
            except (TypeError, ValueError, KeyError):
                continue
    return found


def counts(arch: Arch) -> tuple[float, ...]:
    """How often each operation stands in a cell: what its parameters and multiply-adds are sums of."""
    taken = [arch[name] for name in NAMES]
    return tuple(float(taken.count(op)) for op in OPS)
