"""Loading parents: what must be in a folder, and what is said when it is not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

import tiny
from befit.errors import UnsupportedModel
from befit.lm.parent import EMBEDDED, find, load_parent, read_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.original("qwen3").save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((EMBEDDED / name).read_bytes())
    return tmp_path


def load(folder: Path) -> object:
    return load_parent(str(folder), device="cpu", dtype=torch.float32)


def test_a_parent_is_its_own_class(folder: Path) -> None:
    parent = load_parent(str(folder), device="cpu", dtype=torch.float32)
    original, tokens = tiny.original("qwen3"), tiny.tokens()
    with torch.no_grad():
        torch.testing.assert_close(parent.model(tokens).logits, original(tokens).logits, rtol=0, atol=1e-6)
    assert (parent.name, parent.family.model_type, parent.shape.layers) == (str(folder), "qwen3", 4)
    assert parent.tokenizer("a text").input_ids
    half = load_parent(str(folder), device="cpu", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and half.digest == parent.digest


def test_the_digest_sees_weights_and_configuration(folder: Path) -> None:
    digests = {load_parent(str(folder), device="cpu", dtype=torch.float32).digest}
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    digests.add(load_parent(str(folder), device="cpu", dtype=torch.float32).digest)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    digests.add(load_parent(str(folder), device="cpu", dtype=torch.float32).digest)
    assert len(digests) == 3


def test_the_embedded_parent_is_the_default() -> None:
    assert find(None) == EMBEDDED
    assert read_config(EMBEDDED).model_type == "llama"


def test_no_such_parent() -> None:
    with pytest.raises(UnsupportedModel, match="parent 'no/where' is no folder here and could not be fetched"):
        find("no/where")


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"has no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "perceptron"}')
    with pytest.raises(UnsupportedModel, match=r"config\.json is not one that transformers knows"):
        load(tmp_path)


def test_another_family(tmp_path: Path) -> None:
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"family 'gpt2' \(GPT2LMHeadModel\); supported families: llama, "):
        load(tmp_path)


def test_a_quantised_checkpoint(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UnsupportedModel, match="the parent is quantised"):
        load(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"has no tokenizer \(tokenizer\.json, .*copy the parent's tokenizer"):
        load(folder)


def test_weights_that_are_not_all_there(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"lack 1 tensors, model\.layers\.1\.mlp\.up_proj\.weight among them"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"half a download")
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=r"has no \.safetensors weights; save them with save_pretrained"):
        load(folder)
