"""The models of a finished run, and the results that its report shows as long as they are of these models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_run

from befit.cli import main
from befit.errors import RunConflict
from befit.lm.contender import Place
from befit.lm.finished import contenders, is_run, keep, models_key, parent_of, with_evaluation
from befit.rundir import read_json


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    assert main(tiny_run.command(folder, folder / "run", "memory=70%", "--heal.tokens=128", "--baselines")) == 0
    return folder


def test_every_model_of_the_summary_is_opened(workshop: Path) -> None:
    run, place = workshop / "run", Place()
    summary = read_json(run / "summary.json")
    found = contenders(run, place)
    assert [one.name for one in found] == ["parent", "child", *summary["baselines"]]
    assert len(found) > 3
    ids = torch.arange(1, 9)[None]
    seen = []
    for one in found:
        told: Any = summary["parent"] if one.name == "parent" else summary["child"]
        told = summary["baselines"].get(one.name, told)
        model = place.speaker(one).model
        assert sum(weight.numel() for weight in model.parameters()) == told["params"]
        with torch.no_grad():
            seen.append(model(ids).logits)
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert is_run(run) and not is_run(run / "child") and not is_run(workshop)
    assert parent_of(run / "child") == str(workshop / "parent") and parent_of(workshop / "parent") is None


def test_healed_weights_are_those_that_were_judged(workshop: Path) -> None:
    """A baseline opened from its healed weights has the loss that the run told of it."""
    from befit.lm.quality import evaluate
    from befit.rundir import read_tensors

    run = workshop / "run"
    (text,) = (run / "stages").glob("text-*/text.safetensors")
    rows = read_tensors(text)["held_out"][8:]
    summary = read_json(run / "summary.json")
    for one in contenders(run, Place())[1:]:
        told = summary["child"] if one.name == "child" else summary["baselines"][one.name]
        assert evaluate(Place().speaker(one).model, rows).loss == pytest.approx(told["loss"], abs=1e-5)


def test_results_are_kept_and_shown_until_the_models_change(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    summary = read_json(workshop / "run" / "summary.json")
    (run / "summary.json").write_text(json.dumps(summary))
    found = {"models": {"parent": {}}, "seed": 0, "tasks": {"needle": {}}, "notes": ["short"]}
    assert with_evaluation(summary, run) == summary
    keep(run, found)
    told = keep(run, found | {"tasks": {"arithmetic": {}}, "notes": ["short", "long"]})
    assert list(told["tasks"]) == ["needle", "arithmetic"] and told["notes"] == ["short", "long"]
    assert with_evaluation(summary, run)["evaluation"] == read_json(run / "eval.json") == told
    other = summary | {"child": summary["child"] | {"loss": 1.0}}
    assert models_key(other) != models_key(summary)
    stale = with_evaluation(other, run)
    assert "evaluation" not in stale and "no longer has" in stale["notes"][-1]
    (run / "summary.json").write_text(json.dumps(other))
    assert list(keep(run, found)["tasks"]) == ["needle"]


def test_what_is_not_finished(workshop: Path, tmp_path: Path) -> None:
    shutil.copy(workshop / "run" / "config.json", tmp_path)
    with pytest.raises(RunConflict, match="finish the run first"):
        contenders(tmp_path, Place())
    (tmp_path / "config.json").write_text(json.dumps({"budgets": "50%", "parent": str(workshop / "parent")}))
    with pytest.raises(RunConflict, match="has no cuts yet"):
        contenders(tmp_path, Place())
    shutil.copytree(workshop / "run" / "child", tmp_path / "cuts" / "half")
    assert [one.name for one in contenders(tmp_path, Place())] == ["parent", "half"]


def test_an_export_for_vllm_is_the_child(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served, out = workshop / "served", workshop / "served.json"
    assert main(["export", str(workshop / "run"), "--to=vllm", f"--out={served}"]) == 0
    command = [
        "eval",
        str(served),
        f"--parent={workshop / 'run' / 'child'}",
        "--tasks=tool_call",
        "--levels=2",
        "--items=3",
    ]
    command += ["--no-write", "--device=cpu", f"--out={out}"]
    assert main([*command, "--trust-remote-code"]) == 0
    nats = read_json(out)["tasks"]["tool_call"]["measures"]["nats"]["models"]["served"]
    assert nats["difference"]["mean"] == pytest.approx(0, abs=1e-5)
    capsys.readouterr()
    assert main(command) == 2 and "--trust-remote-code" in capsys.readouterr().err


def test_the_command_line_compares_and_the_report_shows_it(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = workshop / "run", workshop / "out.json"
    quick = ["--tasks=tool_call", "--levels=2", "--items=4", "--no-write", "--device=cpu"]
    assert main(["eval", str(run), *quick, f"--out={out}"]) == 0
    told = capsys.readouterr().out
    assert "tool_call" in told and "nats a token of the right answer" in told and str(run / "eval.json") in told
    found = read_json(out)
    names = list(found["models"])
    assert names[:2] == ["parent", "child"] and found["tasks"] == read_json(run / "eval.json")["tasks"]
    page = (run / "report.html").read_text()
    assert "<h2>Tasks</h2>" in page and "nats a token of the right answer" in page
    assert main(["report", str(run)]) == 0 and (run / "report.html").read_text() == page
    assert main(["resume", str(run)]) == 0 and "<h2>Tasks</h2>" in (run / "report.html").read_text()
    child = str(run / "child")
    assert main(["eval", child, *quick, f"--out={out}"]) == 0
    alone = read_json(out)
    assert list(alone["models"]) == ["parent", "child"]
    (own, same) = (each["tasks"]["tool_call"]["measures"]["nats"]["models"]["child"]["mean"] for each in (alone, found))
    assert own == pytest.approx(same)
    assert main(["eval", child, *quick, "--parent=none", f"--out={out}"]) == 0
    assert list(read_json(out)["models"]) == ["child"]
    capsys.readouterr()
    for wrong, words in (
        ([str(run), child], "give it alone"),
        ([], "name a run directory"),
        (["x/y"], "no folder here"),
    ):
        assert main(["eval", *wrong, *quick]) == 2 and words in " ".join(capsys.readouterr().err.split())
