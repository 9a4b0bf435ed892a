"""Searches that share weights end as every search does; and other budgets are cut out of what was trained once."""

import json
from pathlib import Path

import pytest
import torch

import befit
from befit.budget import Budget
from befit.cli import main
from befit.errors import BadData, Infeasible, RunConflict
from befit.oneshot.cut import cut
from befit.oneshot.pipeline import search, thinned
from befit.search.config import SearchConfig
from befit.vision.training import TrainConfig

SMALL = "channels=4,cells=1"


def config(out: Path, searcher: str, **more: object) -> SearchConfig:
    brief = TrainConfig(epochs=1, batch=64)
    told = {"trials": 6, "top": 2, "train": brief, "final": brief, "space_options": SMALL, "share": 0.3, **more}
    return SearchConfig(out=out, searcher=searcher, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("searcher", ["darts", "darts2", "drnas", "gdas"])
def test_gradients_end_inside_the_budget(searcher: str, tmp_path: Path) -> None:
    options = "epochs=1" if searcher == "gdas" else ""
    asked = config(tmp_path / "run", searcher, budget="params<=8k", searcher_options=options)
    summary = search(asked)
    assert all(row["counted"]["params"] <= 8000 for row in summary["finalists"])
    learned = summary["extra"]["gradient"]
    assert len(learned["probabilities"]) == 1 and len(learned["probabilities"][0]) == 6
    for row in learned["probabilities"][0].values():
        assert sum(row) == pytest.approx(1, abs=1e-4) and len(row) == 5
    network = befit.load(tmp_path / "run" / "best").module
    assert sum(weight.numel() for weight in network.parameters()) <= 8000
    assert search(asked)["finalists"] == summary["finalists"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished once-for-all run over cells."""
    out = tmp_path_factory.mktemp("shared") / "run"
    search(config(out, "once-for-all", train=TrainConfig(epochs=2, batch=32)))
    return out


def test_shared_weights_are_used_as_they_are(shared: Path) -> None:
    summary = json.loads((shared / "summary.json").read_text())
    assert summary["judged"] == "accuracy by shared weights" and len(summary["trials"]) == 6
    best = max(row["value"] for row in summary["trials"])
    chosen = next(row for row in summary["finalists"] if row["chosen"])
    assert chosen["seconds"] == 0 and chosen["validation"] == pytest.approx(
        best, abs=1e-9
    )  # the judge's network, to the image
    assert summary["extra"]["shared"]["losses"]


def test_another_budget_is_cut_without_training(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*") if path.is_file()}
    found = cut(shared, tmp_path / "small", budget="params<=6k", evaluations=5)
    assert found.priced.counted["params"] <= 6000
    network = befit.load(tmp_path / "small").module
    assert sum(weight.numel() for weight in network.parameters()) == found.priced.counted["params"]
    again = cut(shared, tmp_path / "again", budget="params<=6k", evaluations=5)
    images = torch.randn(5, 1, 8, 8)
    assert (
        torch.equal(network(images), befit.load(tmp_path / "again").module(images)) and again.accuracy == found.accuracy
    )
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*") if path.is_file()} == before
    assert main(["cut", str(shared), "--budget", "params<=5k", "--out", str(tmp_path / "cli")]) == 0
    assert "of 5,000 allowed" in capsys.readouterr().out


def test_what_cannot_be_cut_says_why(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(Infeasible, match="Binding: params<=10"):
        cut(shared, tmp_path / "none", budget="params<=10")
    (tmp_path / "config.json").write_text('{"verb": "search"}')
    with pytest.raises(RunConflict, match="holds no shared weights"):
        cut(tmp_path, tmp_path / "none", budget="params<=6k")
    assert str(Budget.parse("params<=6k")) == "params<=6K"


def test_a_searcher_of_trials_does_not_belong_here(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="trains every arch by itself"):
        search(config(tmp_path / "run", "evolution"))
    with pytest.raises(BadData, match="mixes the operations of cells"):
        search(config(tmp_path / "run", "gdas", space="mobile", space_options=""))


def test_curves_are_thinned_evenly() -> None:
    assert thinned([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert len(thinned([float(i) for i in range(1000)])) <= 400
