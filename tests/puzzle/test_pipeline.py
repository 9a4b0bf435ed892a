"""The whole pipeline on a tiny parent: what a run leaves, what it reuses, and that kills change nothing."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import tiny, tiny_run
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import befit
from befit.arch.decoder import DecoderArch, Mamba
from befit.budget import Budget
from befit.cli import main
from befit.cost.latency import Correction, Latency
from befit.lm.child import arch_of
from befit.puzzle import pipeline
from befit.rundir import read_json, read_tensors

BUDGET = "memory=70%"
EARLY = ["text", "rank", "library", "score", "measure"]
COSTS = ("params", "weight_bytes", "cache_bytes", "memory_bytes", "flops")
TIMES = ("prefill_ms", "decode_ms", "latency_ms", "tokens_per_s")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parent and text in it; `run` is a finished run with baselines, which tests leave as it is."""
    folder = tmp_path_factory.mktemp("workshop")
    assert main(tiny_run.command(folder, folder / "run", BUDGET, "--baselines")) == 0
    return folder


def summary(run: Path) -> dict[str, Any]:
    return read_json(run / "summary.json")


def stages(run: Path) -> dict[str, bool]:
    """Name -> whether it was reused."""
    return {stage["name"]: stage["reused"] for stage in summary(run)["stages"]}


def final_rows(run: Path) -> Tensor:
    (file,) = run.glob("stages/text-*/text.safetensors")
    return read_tensors(file)["held_out"][8:]


def weights(run: Path) -> bytes:
    return (run / "child" / "model.safetensors").read_bytes()


def test_the_summary_has_its_documented_form(workshop: Path) -> None:
    told = summary(workshop / "run")
    assert set(told["baselines"]) == {"uniform", "depth", "greedy", "random"}
    for model in (told["parent"], told["child"], *told["baselines"].values()):
        assert all(isinstance(model[name], int) for name in COSTS)
        assert all(set(model[name]) == {"predicted", "measured"} and model[name]["measured"] > 0 for name in TIMES)
        assert {"loss", "kl", "kl_before_heal", "arch"} <= set(model)
        assert model["memory_bytes"] == model["weight_bytes"] + model["cache_bytes"]
    assert told["child"]["kl_sum"] > 0 and told["parent"]["kl"] == 0
    assert [set(stage) for stage in told["stages"]] == [{"name", "seconds", "reused"}] * len(told["stages"])
    heals = [f"heal {name}" for name in ("child", "uniform", "depth", "greedy", "random")]
    assert list(stages(workshop / "run")) == [*EARLY, "choose", "baselines", *heals, "evaluate"]
    assert not any(stages(workshop / "run").values())
    assert told["budget"]["met"]
    assert json.loads((workshop / "run" / "config.json").read_text())["budget"] == BUDGET


def test_child_and_baselines_keep_the_budget(workshop: Path) -> None:
    told = summary(workshop / "run")
    limit = 0.7 * told["parent"]["memory_bytes"]
    assert all(model["memory_bytes"] <= limit for model in (told["child"], *told["baselines"].values()))
    bound = Budget.parse(BUDGET).resolve({"memory_bytes": told["parent"]["memory_bytes"]}).bounds[0]
    assert told["budget"]["bounds"][0]["value"] == pytest.approx(bound.value)


def test_the_numbers_are_those_of_the_checkpoint(workshop: Path) -> None:
    """Loss and KL anew, from transformers' own parent and the child as anybody loads it."""
    run = workshop / "run"
    told, rows = summary(run)["child"], final_rows(run)
    parent = AutoModelForCausalLM.from_pretrained(workshop / "parent").eval()
    child = befit.load(run / "child")
    assert arch_of(child.config) == DecoderArch.from_json(told["arch"])
    assert sum(p.numel() for p in child.parameters()) == told["params"]
    with torch.no_grad():
        wanted, got = parent(rows).logits, child(rows).logits
    kl = F.kl_div(got.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
    loss = F.cross_entropy(got[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    assert told["kl"] == pytest.approx(float(kl), rel=1e-4) and told["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert told["kl"] < told["kl_before_heal"]


def test_transformers_loads_the_child_by_itself(workshop: Path) -> None:
    folder, rows = workshop / "run" / "child", final_rows(workshop / "run")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules")
    with torch.no_grad():
        assert model(rows).logits.equal(befit.load(folder)(rows).logits)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    told = tokenizer("river stone", return_tensors="pt")
    words = model.generate(**told, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert words.shape[1] == told["input_ids"].shape[1] + 4


def test_a_hybrid_is_refitted_and_loads_by_itself(tmp_path: Path) -> None:
    """Mamba-2, FFN, attention, FFN, Mamba-2; half the memory, so that more than one of the kinds must give."""
    tiny_run.write_parent(tmp_path / "parent", tiny.HYBRID, 5)
    tiny_run.write_text(tmp_path / "text.jsonl")
    run, variants = tmp_path / "run", "--attention=all,/2,noop"
    assert main(tiny_run.command(tmp_path, run, "params=70%, cache=60%", variants)) == 0
    told, rows = summary(run), final_rows(run)
    arch = DecoderArch.from_json(told["child"]["arch"])
    assert told["budget"]["met"] and told["child"]["kl"] < told["child"]["kl_before_heal"]
    mamba = [block.attention for block in arch.blocks if isinstance(block.attention, Mamba)]
    assert [m.heads for m in mamba] != [4, 4], "the cache is mostly Mamba's state"
    assert told["scores"]["layers"][1]["attention"] == told["scores"]["layers"][0]["ffn"] == {}
    assert f"{len(arch.blocks)} layers:" in (run / "report.html").read_text()
    model: Any = AutoModelForCausalLM.from_pretrained(run / "child", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules")
    assert sum(p.numel() for p in model.parameters()) == told["child"]["params"]
    with torch.no_grad():
        logits = model(rows).logits
        assert logits.equal(befit.load(run / "child")(rows).logits)
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "parent").eval()(rows).logits
    kl = F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
    assert told["child"]["kl"] == pytest.approx(float(kl), rel=1e-4)
    words = model.generate(rows[:1, :4], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert words.shape == (1, 8)


def test_the_report_and_the_table_are_there(workshop: Path) -> None:
    run = workshop / "run"
    assert "<html" in (run / "report.html").read_text() and "uniform" in (run / "report.html").read_text()
    told, table, costs = summary(run), read_json(run / "table.json"), read_json(run / "parent_costs.json")
    assert len(table["layers"]) == 3 and table["layers"][0]["options"][0]["score"] == 0
    assert all(costs[name] == told["parent"][name] for name in COSTS)


def test_the_same_run_again_reuses_every_stage(workshop: Path) -> None:
    run = workshop / "run"
    before, child = summary(run), weights(run)
    assert main(["resume", str(run)]) == 0
    assert all(stages(run).values())
    after = summary(run)
    changing = ("made", "stages")
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }
    assert [s["seconds"] for s in after["stages"]] == [s["seconds"] for s in before["stages"]]
    assert weights(run) == child


@pytest.fixture(scope="module")
def other(workshop: Path) -> Path:
    """A run without baselines, for tests that go on with it."""
    assert main(tiny_run.command(workshop, workshop / "other", BUDGET)) == 0
    return workshop / "other"


def test_another_budget_trains_nothing_again(workshop: Path, other: Path) -> None:
    kept = {p: p.stat().st_mtime_ns for p in other.glob("stages/*/*") if p.parent.name.split("-")[0] in EARLY}
    assert len(kept) > 8
    assert main(tiny_run.command(workshop, other, "memory=85%, params<=1M")) == 0
    assert stages(other) == dict.fromkeys(EARLY, True) | dict.fromkeys(("choose", "heal child", "evaluate"), False)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    parent, child = summary(other)["parent"], summary(other)["child"]
    limit = 0.85 * parent["memory_bytes"]
    assert limit >= child["memory_bytes"] > summary(workshop / "run")["child"]["memory_bytes"]
    assert child["kl_before_heal"] < summary(workshop / "run")["child"]["kl_before_heal"]
    earlier = [point for point in summary(other)["front"] if point["kl"] is not None and not point["chosen"]]
    assert summary(workshop / "run")["child"]["memory_bytes"] in [point["costs"]["memory_bytes"] for point in earlier]


def test_a_parent_that_stays_on_disk_has_the_same_child(workshop: Path) -> None:
    run = workshop / "disk"
    assert main(tiny_run.command(workshop, run, BUDGET, "--parent-in=disk")) == 0
    assert weights(run) == weights(workshop / "run")


def test_bounds_on_times_are_measured_at_several_batches(workshop: Path, other: Path) -> None:
    assert main(tiny_run.command(workshop, other, "throughput>=1.05x", "--batches=4")) == 0
    found = stages(other)
    assert found["measure"] and not found["measure batch 4"]
    told = summary(other)
    assert told["workload"]["batch"] in (1, 4)
    assert told["budget"]["child"][0]["kind"] == "measured"
    assert told["child"]["tokens_per_s"]["predicted"] > 0


def test_scores_may_come_from_a_function_of_the_user(workshop: Path) -> None:
    run = workshop / "task"
    more = [
        "--score.metric=task:tests.tiny_run:weight_sum",
        "--score.joint=none",
        "--heal.tokens=128",
        "--polish.evaluations=1",
    ]
    assert main(tiny_run.command(workshop, run, BUDGET, *more)) == 0
    told = summary(run)
    lost = told["parent"]["params"] - told["child"]["params"]
    assert told["child"]["kl_sum"] == lost


def test_measuring_alone_is_kept_for_the_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = workshop / "measured"
    arguments = tiny_run.command(workshop, run, BUDGET)
    assert main(["measure", *arguments[1:]]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("embedding and head", "kv2", "kv1", "ffn96", "prefill", "decode", "ms"))
    assert main(arguments) == 0
    assert stages(run)["measure"] and not stages(run)["library"]


STOPS = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path

plain, name = Path.replace, sys.argv[1]

def stopping(self, target):
    done = plain(self, target)
    if Path(target).name == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

Path.replace = stopping
from befit.cli import main
from befit.cost.latency import Correction, Latency

sys.exit(main(sys.argv[2:]))
"""
"""The command line, killed at the moment when a file of this name is complete."""


def killed_at(name: str, arguments: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    program = [sys.executable, "-c", STOPS, name, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_and_resumed_runs_end_with_the_same_child(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = workshop / "killed"
    killed_at("layer_001.safetensors", tiny_run.command(workshop, run, BUDGET))
    assert sorted(p.name for p in run.glob("stages/library-*/*")) == [
        "layer_000.json",
        "layer_000.safetensors",
        "layer_001.safetensors",
    ]
    killed_at("state.safetensors", ["resume", str(run)])
    assert list(run.glob("stages/heal child-*/checkpoint/state.safetensors")) and not (run / "child").exists()
    assert not (run / "summary.json").exists()

    plain = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        done = plain(self, target)
        if target.name == "results.json":
            os.kill(os.getpid(), signal.SIGINT)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        assert main(["resume", str(run)]) == 130
    assert "befit resume: stopped; what was finished is kept" in capsys.readouterr().err
    assert main(["resume", str(run)]) == 0
    found = stages(run)
    assert not found.pop("evaluate") and all(found.values())
    assert weights(run) == weights(workshop / "run")
    for file in ("scores.json", "chosen.json"):
        (a,), (b,) = (list((workshop / name).glob(f"stages/*/{file}")) for name in ("killed", "run"))
        assert a.read_bytes() == b.read_bytes()
    assert summary(run)["child"]["kl"] == summary(workshop / "run")["child"]["kl"]


def test_rounds_share_the_tokens_and_score_around_the_healed_child(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(tiny_run.command(workshop, run, BUDGET, "--rounds=2", "--baselines")) == 0
    told, plain = summary(run), summary(workshop / "run")
    names = list(stages(run))
    assert [name for name in names if "round" in name] == ["heal round 1", "score round 2", "choose round 2"]
    (first,), (last,) = run.glob("stages/heal round 1-*/heal.json"), run.glob("stages/heal child-*/heal.json")
    (rival,) = run.glob("stages/heal greedy-*/heal.json")
    assert [read_json(file)["tokens"] for file in (first, last, rival)] == [256, 256, 512]
    (again,) = run.glob("stages/score round 2-*/scores.json")
    scores = read_json(again)
    (chosen,) = run.glob("stages/choose-*/chosen.json")
    assert scores["around"] == read_json(chosen)["arch"] and scores["base"] > 0
    assert told["budget"]["met"] and told["child"]["memory_bytes"] <= 0.7 * told["parent"]["memory_bytes"]
    assert told["baselines"]["greedy"]["kl"] == pytest.approx(plain["baselines"]["greedy"]["kl"])
    assert main(["resume", str(run)]) == 0 and all(stages(run).values())


def test_another_number_of_rounds_keeps_what_they_share(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(tiny_run.command(workshop, run, BUDGET)) == 0
    assert main(tiny_run.command(workshop, run, BUDGET, "--rounds=2")) == 0
    reused = stages(run)
    assert all(reused[name] for name in (*EARLY, "choose"))
    assert not any(reused[name] for name in ("heal round 1", "score round 2", "choose round 2", "heal child"))


def test_a_parent_without_room_is_timed_at_its_own_batch(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = list[tuple[str, int]]()
    measure, table = pipeline.measure_models, pipeline.measure_table

    def level(*given: Any, **named: Any) -> Any:
        """A table in which two requests cannot be served 1.5 times as fast, by no child, and four take no longer than two."""
        found, one, tenth = (
            table(*given, **named),
            Latency(prefill_ms=1.0, decode_ms=1.0),
            Latency(prefill_ms=0.1, decode_ms=0.1),
        )
        parts = {kind: dict.fromkeys(getattr(found, kind), tenth) for kind in ("attention", "ffn")}
        return replace(found, base=one, prefill=Correction(), decode=Correction(), **parts)

    def watched(models: Any, workload: Any, *rest: Any, **named: Any) -> Any:
        timed.extend((name, workload.batch) for name in models)
        found = measure(models, workload, *rest, **named)
        return {name: replace(one, decode_ms=1.0, prefill_ms=1.0) for name, one in found.items()}

    monkeypatch.setattr(pipeline, "measure_models", watched)
    monkeypatch.setattr(pipeline, "measure_table", level)
    parent = summary(workshop / "run")["parent"]  # at a batch of one
    limit = (parent["weight_bytes"] + 2.5 * parent["cache_bytes"]) / 1024
    command = tiny_run.command(workshop, tmp_path / "run", f"memory={limit}KiB, throughput>=1.5x")
    command += ["--workload=batch=4,prompt=8,generate=4", "--baselines"]
    assert main(command) == 0
    told = summary(tmp_path / "run")
    assert told["workload"]["batch"] == 4 and {batch for name, batch in timed if name == "parent"} == {2}
    assert {batch for name, batch in timed if name != "parent"} == {4}
    assert told["parent"]["memory_bytes"] == parent["weight_bytes"] + 2 * parent["cache_bytes"]
    speeds = [told[name]["tokens_per_s"]["measured"] for name in ("parent", "child")]
    assert speeds[1] == pytest.approx(2 * speeds[0])  # the same time for twice as many
    assert any("no room for 4 requests" in note for note in told["notes"])


def test_healing_that_does_harm_is_not_kept(workshop: Path, tmp_path: Path) -> None:
    assert main(tiny_run.command(workshop, tmp_path / "run", BUDGET, "--heal.lr=1")) == 0
    told = summary(tmp_path / "run")
    assert told["child"]["kl"] == told["child"]["kl_before_heal"] > 0
    assert any("Healing made child worse" in note for note in told["notes"])
    (healed,) = (tmp_path / "run").glob("stages/heal child-*/healed.safetensors")
    child = read_tensors(tmp_path / "run" / "child" / "model.safetensors")
    assert {name: t.sum() for name, t in read_tensors(healed).items()} == {name: t.sum() for name, t in child.items()}
    assert not any("Healing made" in note for note in summary(workshop / "run")["notes"])
