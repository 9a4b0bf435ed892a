"""Cuts: equal to the nested forward, within their budgets, read from their slices alone, and ordinary checkpoints."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests import members
from tests.elastic.nesteds import costs, nested_of, tokenizer, written
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from befit.arch.decoder import Ffn
from befit.arch.member import Member, cut_shape
from befit.elastic import cut as cutting
from befit.elastic.cut import cut
from befit.elastic.manifest import Manifest, note_files, read_manifest, write_manifest
from befit.elastic.nested import Nested, open_nested
from befit.errors import BadBudget, RunConflict
from befit.lm.network import logits
from befit.lm.prefix import plan, prefix, take


def load(folder: Path) -> Any:
    """As a user would: no remote code, no number format told."""
    loader: Any = AutoModelForCausalLM
    model, found = loader.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return model


def forward(nested: Nested, member: Member, share: float, tokens: torch.Tensor) -> torch.Tensor:
    """Logits by the nested forward: views of the weights, gains and all."""
    net = replace(nested.net, shape=cut_shape(nested.net.shape, member))
    weights = nested.folded(nested.weights, share)
    return logits(net, prefix(weights, nested.net.shape, nested.net.family, member), tokens)


def numbers(folder: Path) -> int:
    """Parameters in the files of a folder."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            total += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    return total


@pytest.mark.parametrize(
    ("family", "gains"),
    [
        ("nemotron_h", False),
        ("nemotron_h", True),
        ("llama", True),
        ("mistral", False),
        ("qwen2", True),
        ("qwen3", False),
    ],
)
@torch.no_grad()
def test_a_cut_is_the_nested_model_at_its_budget(family: str, gains: bool, tmp_path: Path) -> None:
    nested = nested_of(family, gains=gains)
    run = written(tmp_path, nested)
    tokens = tiny.tokens(2, 9)
    for budget, share in (("50%", 0.5), ("params=75%", 0.75), ("params=61.5%", 0.615)):
        result = cut(run, tmp_path / "small", budget=budget)
        assert result.member == nested.member(share) and result.share == pytest.approx(share)
        model = load(tmp_path / "small")
        expected = forward(nested, result.member, share, tokens)
        assert members.difference(model(tokens).logits, expected) < 1e-5
        assert numbers(tmp_path / "small") == result.cost.params == costs(nested, result.member).params
        limit = share * costs(nested, nested.space.whole).params
        assert 0.99 * limit <= result.cost.params <= limit
        assert model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (2, 13)
        entries = {entry.target.share: entry.hash for entry in read_manifest(run / "nested", nested.net.shape).entries}
        assert result.trained == (share in entries)
        assert entries.get(share, result.hash) == result.hash
        assert result.bytes_read < (run / "nested" / "model.safetensors").stat().st_size


@torch.no_grad()
def test_the_whole_is_the_parent(tmp_path: Path) -> None:
    nested = nested_of(gains=True)
    result = cut(written(tmp_path, nested), tmp_path / "small", budget="memory=1GiB")
    tokens = tiny.tokens(2, 9)
    assert result.member == nested.space.whole and result.trained
    assert (
        members.difference(load(tmp_path / "small")(tokens).logits, logits(nested.net, nested.weights, tokens)) < 1e-5
    )


def test_only_the_slices_are_read(tmp_path: Path) -> None:
    """Everything that the member does not keep is turned into NaN in the file, and nothing changes."""
    nested = nested_of(budgets="100%, 50%")
    run = written(tmp_path, nested)
    first = cut(run, tmp_path / "first", budget="50%")
    file = run / "nested" / "model.safetensors"
    tensors, size = load_file(file), file.stat().st_size
    spoilt = {name: torch.full_like(tensor, math.nan) for name, tensor in tensors.items()}
    kept = plan(nested.net.shape, nested.net.family, first.member)
    for name, dimensions in kept.values():
        stored = name.replace("model.", "backbone.", 1)
        places = take(torch.arange(tensors[stored].numel()).view(tensors[stored].shape), dimensions).flatten()
        spoilt[stored].view(-1)[places] = tensors[stored].view(-1)[places]
    save_file(spoilt, file, metadata={"format": "pt"})
    assert file.stat().st_size == size
    second = cut(run, tmp_path / "second", budget="50%")
    assert second.hash == first.hash
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == (
        tmp_path / "first" / "model.safetensors"
    ).read_bytes()
    # Columns in several stretches are read with what lies between; a whole tensor never is.
    whole = sum(tensors[name.replace("model.", "backbone.", 1)].nbytes for name, _ in kept.values())
    assert 4 * first.cost.params <= first.bytes_read < whole


def test_changed_weights_are_found_in_a_trained_member(tmp_path: Path) -> None:
    run = written(tmp_path, nested_of())
    file = run / "nested" / "model.safetensors"
    tensors = load_file(file)
    tensors["backbone.norm_f.weight"][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RunConflict, match="hash"):
        cut(run, tmp_path / "small", budget="50%")
    assert not (tmp_path / "small").exists()


@torch.no_grad()
def test_large_checkpoints_come_and_go_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = nested_of("qwen2")
    run = written(tmp_path, nested)
    folder = run / "nested"
    plain = cut(run, tmp_path / "plain", budget="50%")
    load(folder).save_pretrained(tmp_path / "split", max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    for file in (tmp_path / "split").glob("model*"):
        file.rename(folder / file.name)
    assert len(list(folder.glob("model-*"))) > 2
    write_manifest(folder, replace(_manifest_of(folder, nested), files=note_files(folder)))
    monkeypatch.setattr(cutting, "SHARD_BYTES", 10_000)
    result = cut(run, tmp_path / "small", budget="50%")
    assert result.hash == plain.hash
    assert len(list((tmp_path / "small").glob("model-*"))) > 2
    tokens = tiny.tokens(2, 9)
    assert members.difference(load(tmp_path / "small")(tokens).logits, load(tmp_path / "plain")(tokens).logits) == 0


def _manifest_of(folder: Path, nested: Nested) -> Any:
    return Manifest.from_json(json.loads((folder / "nested.json").read_text()), nested.net.shape)


@pytest.mark.parametrize("layout", ["padded", "own-code"])
@pytest.mark.parametrize("family", ["nemotron_h", "qwen3"])
@torch.no_grad()
def test_ffns_of_different_widths(family: str, layout: str, tmp_path: Path) -> None:
    nested = nested_of(family, "100%, 70%", ffn_per_layer=True)
    run = written(tmp_path, nested)
    result = cut(run, tmp_path / "small", budget="70%", layout=layout)
    shape = cut_shape(nested.net.shape, result.member)
    widths = {block.ffn.width for block in shape.arch.blocks if isinstance(block.ffn, Ffn)}
    assert len(widths) > 1 and result.layout == layout and result.trained
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=layout == "own-code")
    tokens = tiny.tokens(2, 9)
    expected = forward(nested, result.member, result.share, tokens)
    assert members.difference(loaded(tokens).logits, expected) < 1e-5
    assert loaded.generate(tokens, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (2, 12)
    limit = 0.7 * costs(nested, nested.space.whole).params
    assert numbers(tmp_path / "small") == result.cost.params
    assert (result.cost.params <= limit) == (layout == "own-code")
    other = cut(run, tmp_path / "other", budget="80%", layout=layout)
    assert numbers(tmp_path / "other") == other.cost.params <= limit / 0.7 * 0.8
    assert result.network == costs(nested, result.member)
    told = "\n".join(result.lines())
    assert ("zeros" in told and "% over" in told) == (layout == "padded")
    assert ("trust_remote_code" in told) == (layout == "own-code")


def test_the_largest_that_fits_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = nested_of()
    run = written(tmp_path, nested)
    whole = costs(nested, nested.space.whole).memory_bytes
    monkeypatch.setattr(cutting, "free_memory", lambda: (round(0.8 * whole), "a test"))
    result = cut(run, tmp_path / "small", fit=True)
    assert 0.99 * 0.72 * whole <= result.cost.memory_bytes <= 0.72 * whole
    both = cut(run, tmp_path / "both", fit=True, budget="memory=90%, params=50%")
    assert {bound.cost: bound.value for bound in both.bounds}["memory_bytes"] == pytest.approx(0.72 * whole, rel=1e-3)
    assert both.cost.params < result.cost.params
    assert any("a test" in line for line in result.lines())


def test_the_files_of_a_cut(tmp_path: Path) -> None:
    run = written(tmp_path, nested_of())
    result = cut(run / "nested", tmp_path / "small", budget="50%", dtype="bf16")
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "small" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(tmp_path / "small")("a b").input_ids == tokenizer()("a b").input_ids
    told = json.loads((tmp_path / "small" / "cut.json").read_text())
    assert Member.from_json(told["member"]) == result.member and told["hash"] == result.hash
    assert set(tensors) <= set(load_file(run / "nested" / "model.safetensors")), "names are those of the family's files"
    assert not list((tmp_path / "small").glob("nested*")) and not list((tmp_path / "small").glob("router*"))


def test_what_the_user_is_told(tmp_path: Path) -> None:
    run = written(tmp_path, nested_of())
    told = "\n".join(cut(run, tmp_path / "small", budget="50%").lines())
    assert "50 %" in told and "trained for" in told and "counted: params" in told and "plain checkpoint" in told
    told = "\n".join(cut(run, tmp_path / "small", budget="60%").lines())
    assert "between the budgets" in told


def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    run = written(tmp_path, nested_of(budgets="100%, 60%"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    for out in (full, run, run / "nested", full / "thesis.txt"):
        with pytest.raises(RunConflict):
            cut(run, out, budget="60%")
    assert (full / "thesis.txt").read_text() == "years of work" and open_nested(run / "nested")
    with pytest.raises(RunConflict, match="holds no nested model"):
        cut(full, tmp_path / "small", budget="60%")
    first = cut(run, tmp_path / "small", budget="60%")
    assert cut(run, tmp_path / "small", budget="70%").cost.params > first.cost.params, (
        "a cut may be replaced by another"
    )
    with pytest.raises(BadBudget, match="layout"):
        cut(run, tmp_path / "small", budget="60%", layout="dense")
    with pytest.raises(BadBudget, match="dtype"):
        cut(run, tmp_path / "small", budget="60%", dtype="int3")
