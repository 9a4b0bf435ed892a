"""`befit puzzle` in two processes: layers and scores are shared, the result is that of one."""

from pathlib import Path

import pytest
import torch
from tests import tiny_run
from tests.teams import Ended, together

from befit.cli import main
from befit.rundir import read_json, read_tensors

BUDGET = "memory=70%"
MORE = ("--score.batch=2", "--baselines")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module")
def ended(folder: Path) -> list[list[Ended]]:
    """A run of two processes, after one that cannot be; for each process."""
    wrong = tiny_run.command(folder, folder / "wrong", "memory=1%")
    return together([wrong, tiny_run.command(folder, folder / "team", BUDGET, *MORE)])


def test_two_processes_make_what_one_makes(folder: Path, ended: list[list[Ended]]) -> None:
    (code, out, _), other = ended[0][-1], ended[1][-1]
    assert code == 0 and "report.html" in out
    assert other == (0, "", "")
    assert main(tiny_run.command(folder, folder / "alone", BUDGET, *MORE)) == 0
    one, two = (read_json(folder / name / "summary.json") for name in ("alone", "team"))
    assert not any(stage["reused"] for stage in two["stages"])
    assert two["child"]["arch"] == one["child"]["arch"]
    for name in ("kl", "loss", "kl_before_heal"):
        assert two["child"][name] == pytest.approx(one["child"][name], abs=1e-3)
        for rival in one["baselines"]:
            assert two["baselines"][rival][name] == pytest.approx(
                one["baselines"][rival][name], abs=1e-3
            )  # Adam magnifies the rounding of a mean taken in two parts
    chosen = [read_json(_only(folder / run, "choose") / "chosen.json") for run in ("alone", "team")]
    assert chosen[0] == chosen[1] and len(chosen[0]["tried"]) == 8
    library, scores = ({run: _only(folder / run, name) for run in ("alone", "team")} for name in ("library", "score"))
    for layer in range(3):
        alone, team = (read_tensors(library[run] / f"layer_{layer:03d}.safetensors") for run in ("alone", "team"))
        assert alone.keys() == team.keys() and all(bool((alone[n] == team[n]).all()) for n in alone)
    assert read_json(scores["alone"] / "scores.json") == read_json(scores["team"] / "scores.json")


def test_an_error_is_told_once_and_ends_both(ended: list[list[Ended]]) -> None:
    (code, _, told), other = ended[0][0], ended[1][0]
    assert code == 2 and "memory" in told
    assert other == (2, "", "")


@pytest.mark.gpu
def test_two_gpus_make_what_one_makes(folder: Path) -> None:
    """Each process has a GPU; they heal through NCCL."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    names = ("gpus", "gpu")
    runs = [
        [argument.replace("=cpu", "=cuda") for argument in tiny_run.command(folder, folder / name, BUDGET, *MORE)]
        for name in names
    ]
    for own in runs:
        own.append("--dtype=fp32")
    (code, out, told), other = (ended[0] for ended in together(runs[:1]))
    assert code == 0 and "report.html" in out, told
    assert other[:2] == (0, ""), other
    assert main(runs[1]) == 0
    two, one = (read_json(folder / name / "summary.json") for name in names)
    assert two["child"]["arch"] == one["child"]["arch"]
    assert two["child"]["kl_before_heal"] == pytest.approx(one["child"]["kl_before_heal"], abs=1e-4)
    for name in ("kl", "loss"):  # healing computes in bf16
        assert two["child"][name] == pytest.approx(one["child"][name], rel=0.05)
    tried = [read_json(_only(folder / name, "choose") / "chosen.json")["tried"] for name in names]
    assert all(child["arch"] in [other["arch"] for other in tried[1]] for child in tried[0])
    scores = [read_json(_only(folder / name, "score") / "scores.json")["layers"] for name in names]
    for layer, alone in zip(*scores, strict=True):
        assert layer == pytest.approx(alone, abs=1e-5)


def _only(run: Path, stage: str) -> Path:
    (found,) = run.glob(f"stages/{stage}-*")
    return found
