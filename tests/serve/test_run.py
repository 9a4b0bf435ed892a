"""A whole run of `befit puzzle` whose device is vLLM, and `befit bench` of what it leaves, with a vLLM that has no model."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny_run

from befit.cli import main
from befit.cost.device import this_device
from befit.cost.latency import LatencyTable, errors
from befit.puzzle import job
from befit.rundir import read_json
from befit.serve import bench as module
from befit.serve.bench import bench

WORK = "batch=4,prompt=16,generate=8"


@pytest.mark.usefixtures("fake_vllm")
def test_a_throughput_budget_is_met_in_vllm_and_bench_says_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = "vLLM without a model"
    monkeypatch.setattr(job, "measured_on", lambda device, setting: replace(device, engine=engine))
    run = tmp_path / "run"
    more = (
        "--engine=vllm",
        f"--workload={WORK}",
        "--batches=4",
        "--measure.held-out-runs=3",
        "--attention=all,2,1,noop",
    )
    assert main(tiny_run.command(tmp_path, run, "throughput>=1.3x", *more)) == 0, capsys.readouterr().err

    told = read_json(run / "summary.json")
    assert told["device"]["engine"] == engine and told["budget"]["met"]
    parent, child = (told[name]["tokens_per_s"]["measured"] for name in ("parent", "child"))
    assert child >= 1.3 * parent
    (stage,) = run.glob("stages/measure-*")
    table = LatencyTable.from_json(read_json(stage / "latency-4.json"))
    assert table.device.engine == engine and len(table.held_out) == 3
    assert errors(table, table.held_out).worst() < 0.02

    place = replace(this_device("cpu"), name="made up", kind="cuda")
    monkeypatch.setattr(module, "this_device", lambda kind: place)
    found = bench([str(tmp_path / "parent"), str(run)], engine="vllm", workload=WORK, log=tmp_path / "vllm.log")
    speeds = [row.measured.tokens_per_s(found.workload) for row in found.rows]
    assert speeds == pytest.approx([parent, child])
