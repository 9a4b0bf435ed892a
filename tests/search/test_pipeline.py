"""`befit search` as a user meets it: in one Python call, on the command line, with wrong input, and called again."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.search.nets import Net, digits, params
from torch.utils.data import DataLoader, TensorDataset

import befit
from befit.arch.space import Choice
from befit.cli import main
from befit.errors import BadBudget, BadData, Infeasible, RunConflict
from befit.search import finish, predictor
from befit.search.config import SearchConfig, parse_options
from befit.search.find import find
from befit.search.pipeline import search
from befit.search.pricing import Priced
from befit.vision.data import Sealed
from befit.vision.proxies import proxies
from befit.vision.training import TrainConfig

SHORT = {"epochs": 1, "trials": 4, "top": 2, "searcher": "random"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished search over a network of one's own."""
    return find(Net, digits(), budget="params<=2k", out=tmp_path_factory.mktemp("own") / "run", **SHORT)


def told(found: Any) -> dict[str, Any]:
    return json.loads((found.folder / "summary.json").read_text())


def test_the_best_network_keeps_the_budget_and_predicts(found: Any) -> None:
    assert found.costs["params"] == params(**found.arch) <= 2000
    images = np.zeros((8, 8), dtype=np.float32)
    assert found.best.predict(images).label in "0123456789"
    assert (found.folder / "report.html").stat().st_size > 10_000
    again = befit.load(found.folder / "best", build=Net)
    assert torch.equal(again.module.layers[1].weight, found.best.module.layers[1].weight)


def test_nothing_over_the_budget_was_trained_and_what_was_refused_is_counted(found: Any) -> None:
    summary = told(found)
    tried = [row["arch"] for row in summary["trials"]]
    assert len(tried) == 4 and all(params(**arch) <= 2000 for arch in tried)  # of six archs, four are small enough
    counts = {row["stage"]: row["count"] for row in summary["funnel"]}
    assert counts["refused before building"] > 0
    assert counts["proposed"] == counts["refused before building"] + counts["within budget by count and prediction"]


def test_one_finalist_is_chosen_by_validation(found: Any) -> None:
    rows = told(found)["finalists"]
    chosen = [row for row in rows if row["chosen"]]
    assert len(chosen) == 1 and chosen[0]["validation"] == max(row["validation"] for row in rows)
    assert all(0 < row["test"] < 1 for row in rows)


def test_the_same_call_reads_what_is_finished(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(self: Sealed) -> None:
        raise AssertionError("the test split was opened again")

    monkeypatch.setattr(Sealed, "open", opened)
    monkeypatch.setattr(finish, "train", lambda *_, **__: pytest.fail("trained again"))
    again = find(Net, digits(), budget="params<=2k", out=found.folder, **SHORT)
    assert again.arch == found.arch and again.test == found.test
    assert all(stage["reused"] for stage in told(found)["stages"])


def test_another_budget_needs_another_run(found: Any) -> None:
    with pytest.raises(RunConflict, match="budget was 'params<=2k', now 'params<=3k'"):
        find(Net, digits(), budget="params<=3k", out=found.folder, **SHORT)


def test_a_loader_will_do_and_latency_is_measured(tmp_path: Path) -> None:
    data = digits(0.2).train
    loader = DataLoader(TensorDataset(data.images, data.labels), batch_size=50)
    found = find(Net, loader, budget="latency<=1s", out=tmp_path / "run", **{**SHORT, "trials": 2})
    assert 0 < found.costs["latency_ms"] < 1000
    rows = told(found)["trials"]
    assert all("latency_ms" in row["measured"] and not row["predicted"] for row in rows)


def test_a_second_dataset_says_whether_the_order_holds(tmp_path: Path) -> None:
    found = find(Net, digits(), out=tmp_path / "run", then="digits", **{**SHORT, "trials": 6})
    transfer = told(found)["transfer"]
    assert len(transfer["rows"]) == 6 and -1 <= transfer["kendall"] <= 1
    assert all(0 <= row["there"] <= 1 for row in transfer["rows"])


def test_a_screen_trains_what_looks_best_untrained(tmp_path: Path) -> None:
    settings = {**SHORT, "trials": 2, "screen": 6, "proxy": "synflow"}
    rows = told(find(Net, digits(), out=tmp_path / "run", **settings))["trials"]
    data, scores = digits(), dict[tuple[int, int], float]()
    for width, depth in itertools.product((8, 16, 32), (1, 2)):
        torch.manual_seed(0)
        network = Net(data.task, width, depth)
        scores[width, depth] = proxies(network, data.normalised(data.train.images[:64]), data.train.labels[:64])[
            "synflow"
        ]
    best = sorted(scores, key=lambda arch: -scores[arch])[:2]
    assert [tuple(row["arch"].values()) for row in rows] == best


def test_the_predictor_learns_from_costs_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    real = predictor.encoded

    def encoded(space: Any, archs: Any, features: Any) -> Any:
        seen.append(len(features(archs[0])))
        return real(space, archs, features)

    monkeypatch.setattr(predictor, "encoded", encoded)
    settings = {**SHORT, "trials": 4, "searcher": "predictor", "searcher_options": "start=2", "proxy_features": True}
    rows = told(find(Net, digits(), out=tmp_path / "run", **settings))["trials"]
    assert len({tuple(row["arch"].values()) for row in rows}) == 4 and seen == [4, 4]  # params, MACs, memory and nwot


def test_of_several_objectives_there_is_a_front(tmp_path: Path) -> None:
    settings = {**SHORT, "trials": 5, "objectives": "accuracy, params", "searcher": "evolution"}
    summary = told(find(Net, digits(), out=tmp_path / "run", **settings))
    points = [(row["value"], -row["counted"]["params"]) for row in summary["trials"]]
    best = [
        row["number"]
        for row, own in zip(summary["trials"], points, strict=True)
        if not any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in points)
    ]
    assert summary["front"] == best
    assert summary["hypervolume"] == sorted(summary["hypervolume"]) and summary["axes"] == ["params"]


def test_a_finalist_over_the_budget_as_measured_is_passed_over(found: Any) -> None:
    job: Any = type("Job", (), {"budget": befit.Budget.parse("latency=1ms")})
    slow = finish.Finalist(
        arch=befit.Space({"a": Choice(1, 2)}).arch({"a": 1}),
        validation=0.9,
        priced=Priced(counted={}, measured={"latency_ms": 2.0}),
        within=False,
        seconds=0.0,
        epochs=0.0,
        weights=Path("unused"),
    )
    quick = replace(slow, validation=0.5, within=True)
    assert finish.choose(job, [slow, quick]) is quick
    with pytest.raises(
        Infeasible, match=r"none of 1 finalists keeps latency<=1ms as measured now: latency 2\.00 ms"
    ) as info:
        finish.choose(job, [slow])
    assert info.value.nearest == {"latency_ms": 2.0}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"budget": "params<=60%"}, BadBudget, "is relative, but a search has no parent"),
        ({"budget": "params<=10"}, Infeasible, "Binding: params<=10"),
        ({"budget": "throughput>=2"}, BadBudget, "throughput"),
        ({"space": "cells"}, BadData, 'expected cell, mobile or "module:Class"'),
        ({"space_options": "channels"}, BadData, "expected name=value"),
        ({"space_options": "chanels=3"}, RunConflict, "chanels"),
        ({"searcher_options": "size=3", "searcher": "evolution"}, befit.BefitError, "it has no size"),
        ({"objectives": "latency"}, BadBudget, "accuracy first"),
    ],
)
def test_wrong_settings_say_so_before_anything_is_trained(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    config = SearchConfig(**{"out": tmp_path / "run", "workers": 0, "searcher": "random", **settings})
    with pytest.raises(error, match=re.escape(message)):
        search(config)
    assert not list(tmp_path.glob("run/stages/train*"))


def test_settings_that_cannot_be_are_refused_at_once() -> None:
    for wrong in ({"trials": 0}, {"share": 0.0}, {"searcher": "magic"}, {"searcher": "gdas", "halving": 1}):
        with pytest.raises(BadData):
            SearchConfig(**wrong)  # type: ignore[arg-type]


def test_a_config_survives_json() -> None:
    config = SearchConfig(
        budget="latency=4ms", train=TrainConfig(epochs=3), out=Path("runs/x"), latency_table=Path("t.json")
    )
    assert SearchConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_options_are_read_as_json_or_text() -> None:
    assert parse_options("a=1, b=x,c=[1,2], d=true", "o") == {"a": 1, "b": "x", "c": (1, 2), "d": True}
    assert parse_options("", "o") == {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the command line: cells on digits, with workers."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = [
        "search",
        "--out",
        str(folder),
        "--trials",
        "2",
        "--train.epochs",
        "1",
        "--final.epochs",
        "1",
        "--top",
        "1",
    ]
    assert main([*words, "--share", "0.2", "--searcher", "random", "--budget", "params<=30k"]) == 0
    return folder


def test_the_command_line_searches_resumes_and_reports(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "summary.json").read_text()
    assert main(["resume", str(run)]) == 0
    out = capsys.readouterr().out
    assert "best" in out and "of 30,000 allowed" in out
    after = json.loads((run / "summary.json").read_text())
    assert [row["arch"] for row in after["trials"]] == [row["arch"] for row in json.loads(before)["trials"]]
    assert main(["report", str(run)]) == 0


def test_the_command_line_predicts(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((20, 20), 200, dtype=np.uint8)).save(tmp_path / name)
    assert main(["predict", str(run), str(tmp_path), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.fullmatch(r".*\.png(\t\d\t0\.\d{4}){2}", line) for line in lines)
    assert main(["predict", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no network that befit search made" in capsys.readouterr().err


def test_latencies_measured_elsewhere_price_a_search_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "device" / "latency.json"
    assert main(["measure", "--space", "cell", "--out", str(table.parent)]) == 0
    assert "others" in capsys.readouterr().out
    told = json.loads(table.read_text())
    told["rates"] = {name: 10 * rate for name, rate in told["rates"].items()}  # a device ten times as slow
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps(told))
    brief = TrainConfig(epochs=1)
    config = SearchConfig(
        out=tmp_path / "run",
        latency_table=slow,
        budget="latency=10ms",
        searcher="random",
        trials=2,
        top=1,
        share=0.2,
        train=brief,
        final=brief,
        workers=0,
    )
    summary = search(config)
    for row in summary["trials"]:
        assert row["predicted"]["latency_ms"] <= 10 and not row["measured"]
    assert any("measured elsewhere" in note for note in summary["notes"])
    assert main(["measure", "--space", "tests.search.nets:Net", "--out", str(tmp_path / "own")]) == 2
