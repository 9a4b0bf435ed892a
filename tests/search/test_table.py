"""Tables: their forms, and a search of one against what a study does."""

import gzip
import json
from pathlib import Path

import optuna
import pytest

from befit.arch.cell import cell_space, unparse
from befit.budget import Budget
from befit.errors import BadTable, Infeasible
from befit.search.evolution import Evolution
from befit.search.predictor import Predictor
from befit.search.random_search import RandomSearch
from befit.search.sampler import Sampler, arch_of, suggest
from befit.search.table import Table, TableSearch, optimum, search_table

optuna.logging.set_verbosity(optuna.logging.WARNING)

CELLS = [arch for arch in cell_space().enumerate()]
QUALITY = [len({str(op) for op in arch.values()}) + place / 1e5 for place, arch in enumerate(CELLS)]
COST = [float(list(arch.values()).count("nor_conv_3x3")) for arch in CELLS]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Table:
    path = tmp_path_factory.mktemp("tables") / "cells.csv.gz"
    rows = [f"{unparse(arch)},{q!r},{c}" for arch, q, c in zip(CELLS, QUALITY, COST, strict=True)]
    path.write_bytes(gzip.compress("\n".join(["arch,quality,cost", *rows]).encode()))
    return Table.load(path)


SEARCH = TableSearch(reward="quality", objective="cost", queries=25)


def test_cells_are_read(cells: Table) -> None:
    assert (
        list(cells.archs) == CELLS
        and list(cells.columns["quality"]) == QUALITY
        and set(cells.columns) == {"quality", "cost"}
    )
    with pytest.raises(BadTable, match="no column 'accuracy'; expected one of quality, cost"):
        cells.column("accuracy")


@pytest.mark.parametrize("searcher", [RandomSearch(), Evolution(), Predictor()], ids=lambda one: type(one).__name__)
def test_a_search_asks_for_what_a_study_does(cells: Table, searcher: RandomSearch) -> None:
    study = optuna.create_study(
        direction="maximize",
        sampler=Sampler(searcher, cells.space, seed=4, allowed=lambda arch: COST[cells.row[arch]] <= 1),
    )
    study.optimize(lambda trial: QUALITY[cells.row[suggest(trial, cells.space)]], n_trials=25)
    bounded = TableSearch(reward="quality", objective="cost", queries=25, bound=Budget.parse("cost<=1", ["cost"]))
    run = search_table(cells, searcher, bounded, seed=4)
    assert [cells.archs[row] for row in run.rows] == [arch_of(trial, cells.space) for trial in study.trials]
    assert run.final == COST[cells.row[cells.space.arch(study.best_params)]] and max(COST[row] for row in run.rows) <= 1


def test_the_end_of_a_search(cells: Table) -> None:
    run = search_table(cells, RandomSearch(), SEARCH, seed=0)
    assert len(set(run.rows)) == 25 and run.final == COST[max(run.rows, key=lambda row: QUALITY[row])]
    assert run.best == max(COST[row] for row in run.rows) and run.reached is None
    small = Table(cells.space, cells.archs, {"cost": [min(cost, 2.0) for cost in COST]})
    until = TableSearch(reward="cost", objective="cost", queries=500, until_optimum=True)
    run = search_table(small, RandomSearch(), until, seed=0)
    assert run.reached == len(run.rows)
    assert [COST[row] >= 2 for row in run.rows] == [False] * (len(run.rows) - 1) + [True]


def test_the_optimum_is_that_within_the_bound(cells: Table) -> None:
    for limit in range(4):
        bounded = TableSearch(reward="quality", objective="quality", bound=Budget.parse(f"cost<={limit}", ["cost"]))
        assert optimum(cells, bounded) == max(q for q, c in zip(QUALITY, COST, strict=True) if c <= limit)
    with pytest.raises(BadTable, match="none of its 15,625 archs keeps cost<=-1"):
        optimum(cells, TableSearch(reward="quality", objective="quality", bound=Budget.parse("cost<=-1", ["cost"])))


def test_digits_in_json_as_nas_bench_macro(tmp_path: Path) -> None:
    data = {f"{a}{b}{c}": {"mean_acc": a + b + c, "each": [1, 2]} for a in range(2) for b in range(3) for c in range(3)}
    (tmp_path / "macro.json").write_text(json.dumps(data))
    table = Table.load(tmp_path / "macro.json")
    assert table.space.size == 18 and set(table.columns) == {"mean_acc"}
    assert table.columns["mean_acc"][table.row[table.space.arch({"layer 1": 1, "layer 2": 2, "layer 3": 0})]] == 3
    search = TableSearch(reward="mean_acc", objective="mean_acc", queries=18)
    assert search_table(table, Evolution(), search, seed=1).best == 5
    with pytest.raises(Infeasible):
        search_table(table, Evolution(), TableSearch(reward="mean_acc", objective="mean_acc", queries=19), seed=1)


def test_any_columns_can_be_the_choices(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("kind,width,rate,score,note\nconv,16,0.5,1,a\nconv,32,0.5,2,b\npool,16,0.1,3,c\n")
    table = Table.load(tmp_path / "own.csv", ("kind", "width", "rate"))
    assert table.archs[1].to_json() == {"kind": "conv", "width": 32, "rate": 0.5} and set(table.columns) == {"score"}
    # Eight combinations, of which the table has three: the others are never asked for.
    assert (
        len(search_table(table, RandomSearch(), TableSearch(reward="score", objective="score", queries=3), seed=0).rows)
        == 3
    )
    with pytest.raises(BadTable, match="say which columns are choices, of kind, width, rate, score, note"):
        Table.load(tmp_path / "own.csv")
    with pytest.raises(BadTable, match="there is no column depth"):
        Table.load(tmp_path / "own.csv", ("depth",))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1, 2]", "object for each arch"),
        ("a.json", "{", "it is no JSON"),
        ("a.csv", "arch,score\n", "it has no rows"),
        ("a.csv", "arch,score\n01,1\n1,2\n", "digits, all as many"),
        ("a.csv.gz", "arch", "cannot be read"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadTable, match=message):
        Table.load(tmp_path / name)
    with pytest.raises(BadTable, match="cannot be read"):
        Table.load(tmp_path / "missing.csv")
