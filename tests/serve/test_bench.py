"""Checkpoints side by side: in PyTorch for real, in vLLM around one without a model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny

from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, NoOp
from befit.cli import main
from befit.cost.count import count
from befit.cost.device import Device, this_device
from befit.errors import BadBudget, BadData, BefitError, UnsupportedModel
from befit.lm.child import build, config_for, save
from befit.lm.families import family_of
from befit.lm.parent import EMBEDDED
from befit.serve import bench as module
from befit.serve.bench import Comparison, bench

WORK = "batch=2,prompt=8,generate=3"
ARCH = DecoderArch(
    blocks=(
        Block(attention=Attention(kv_heads=2), ffn=Ffn(width=32)),
        Block(attention=NoOp(), ffn=Ffn(width=48)),
        Block(attention=Attention(kv_heads=1), ffn=NoOp()),
    )
)


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("child")
    model = build(config_for(tiny.config("llama", 3), ARCH), device="cpu")
    tiny.randomise(model)
    save(model, folder)
    return folder


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a GPU."""
    place = replace(this_device("cpu"), name="made up", kind="cuda")
    monkeypatch.setattr(module, "this_device", lambda kind: place)


def test_parent_and_child_in_pytorch(child: Path) -> None:
    found = bench([str(EMBEDDED), str(child)], workload=WORK, device="cpu")
    shape = family_of(tiny.config("llama", 3)).describe(tiny.config("llama", 3))
    parent, small = (row.measured for row in found.rows)
    assert small.weight_bytes == count(shape, ARCH, found.workload).weight_bytes < parent.weight_bytes
    assert small.kv_tokens > parent.kv_tokens > 0
    assert 0 < small.first_ms < small.total_ms
    told = found.to_json()
    assert told["kv_tokens"] == "counted" and [m["name"] for m in told["models"]] == [str(EMBEDDED), str(child)]
    assert json.loads(json.dumps(told)) == told
    rows = found.table()
    assert rows[0][""] == "1.00x" and "tokens that fit, counted" in rows[0]


@pytest.mark.usefixtures("fake_vllm", "on_a_gpu")
def test_in_vllm_each_folder_is_served_in_its_own_form(child: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text('{"model_type": "nemotron-nas", "vocab_size": 10}')
    sources = [str(EMBEDDED), str(child), str(export)]
    found = bench(sources, engine="vllm", workload=WORK, log=tmp_path / "vllm.log")
    assert [row.measured.kv_tokens for row in found.rows] == [1000] * 3
    assert found.kv_tokens == "measured" and found.device.engine.startswith("vLLM 0.25.0, not compiled")
    assert found.workload.weights == "bf16"


def test_what_is_not_computed_as_it_is_counted_is_noted(child: Path) -> None:
    quantised = bench([str(child)], workload=f"{WORK},weights=fp8", device="cpu")
    (note,) = quantised.notes()
    assert note.startswith("Times are those of weights bf16, cache fp32, which PyTorch computes in")
    assert note.endswith("counted with weights fp8, cache fp32.")
    assert bench([str(child)], workload=WORK, device="cpu").notes() == []


def test_weights_that_are_cut_off_are_named(child: Path, tmp_path: Path) -> None:
    shutil.copytree(child, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UnsupportedModel, match=r"the weights in .*cut cannot be read .*; copy them again"):
        bench([str(tmp_path / "cut")], workload=WORK, device="cpu")


def test_wrong_questions_are_refused(child: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nemotron-nas"}')
    with pytest.raises(BadData, match="give the child that it was made of, or --engine vllm"):
        bench([str(tmp_path)], workload=WORK, device="cpu")
    with pytest.raises(BadData, match="one of torch, vllm"):
        bench([str(child)], engine="onnx")
    with pytest.raises(BadData, match="at least one folder"):
        bench([])
    with pytest.raises(BadBudget, match="generate=2"):
        bench([str(child)], workload="generate=1", device="cpu")
    with pytest.raises(BefitError, match="no folder here"):
        bench(["no such model, and no name"], workload=WORK, device="cpu")


@pytest.mark.usefixtures("fake_vllm")
def test_vllm_needs_a_gpu(child: Path) -> None:
    with pytest.raises(BefitError, match="measures on a GPU"):
        bench([str(child)], engine="vllm", workload=WORK, device="cpu")


def test_the_verb_prints_a_table_and_writes_json(
    child: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", str(child), "--workload", WORK, "--device", "cpu", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown and "\n\n" not in shown
    assert json.loads(out.read_text())["workload"]["batch"] == 2
    assert main(["bench", str(child), "--engine", "vllm", "--device", "cpu"]) == 2
    assert "pip install vllm" in capsys.readouterr().err


def test_a_comparison_is_a_value(child: Path) -> None:
    found = bench([str(child)], workload=WORK, device="cpu")
    assert isinstance(found, Comparison) and isinstance(found.device, Device)
