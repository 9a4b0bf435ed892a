import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from tests.elastic import nesteds
from transformers import AutoModelForCausalLM

import tiny
from befit.elastic.cut import cut
from befit.errors import RunConflict
from befit.export.card import base_model, said
from befit.export.hf import export_hf
from export.test_vllm import MIXED, child

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "demo.json"
"""A summary.json that a run has written."""


def summary(**changes: Any) -> dict[str, Any]:
    told = json.loads(RECORDED.read_text())
    command = 'befit puzzle --parent "someone/parent-1B" --budget "memory=70%" --out /home/someone/runs/demo'
    return told | {"parent": told["parent"] | {"name": "someone/parent-1B"}, "command": command} | changes


def run(folder: Path, told: dict[str, Any]) -> Any:
    """A run directory: the record of one child, and another in its place."""
    model = child(folder / "child", "llama", MIXED)
    (folder / "summary.json").write_text(json.dumps(told))
    return model


def test_a_child_is_a_repository(tmp_path: Path) -> None:
    model = run(tmp_path, summary())
    made = export_hf(tmp_path, tmp_path / "small", name="me/small", licence="apache-2.0")
    assert (made.own_code, made.dtype, made.command) == (True, "fp32", f"hf upload me/small {tmp_path / 'small'}")
    read = AutoModelForCausalLM.from_pretrained(made.folder, trust_remote_code=True)
    assert torch.equal(read(tiny.tokens()).logits, model(tiny.tokens()).logits)
    names = {path.name for path in made.folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_befit.py", "tokenizer.json"} <= names


def test_the_card_of_a_child(tmp_path: Path) -> None:
    told = summary()
    told["parent"] |= {"memory_bytes": 22.14 * 2**20, "latency_ms": {"predicted": 290.3, "measured": 323.49}}
    told["child"] |= {"memory_bytes": 12.53 * 2**20, "latency_ms": {"predicted": 178.7, "measured": 216.53}}
    run(tmp_path, told)
    export_hf(tmp_path, tmp_path / "small", name="me/small", licence="apache-2.0")
    card = ModelCard.load(tmp_path / "small" / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == (
        "transformers",
        "text-generation",
        "apache-2.0",
    )
    assert data["base_model"] == "someone/parent-1B" and {"befit", "custom_code"} <= set(data["tags"])
    text = card.text
    assert "| 1 | none | none |" in text and "| 3 | attention, 1 KV head | none |" in text  # as it is, not as it was
    assert f"`{told['budget']['text']}`" in text and 'befit puzzle --parent "someone/parent-1B" --budget' in text
    assert "| 22.1 MiB | 12.5 MiB |" in text and "| 323 ms | 217 ms | 179 ms |" in text
    assert f"{told['child']['kl']:.4f}" in text and "baseline: uniform" in text and "65,536 tokens of healing" in text
    assert 'from_pretrained("me/small", trust_remote_code=True)' in text
    assert "befit export --to vllm" in text


def test_the_parents_layers_stand_beside(tmp_path: Path) -> None:
    told = summary()
    told["parent"]["name"] = "/home/someone/llama"
    told["command"] = (
        "befit puzzle --parent /home/someone/llama --data '/home/someone/my texts.jsonl' --attention all,/2"
    )
    told["parent"]["arch"] = {"blocks": [{"attention": {"kv_heads": 2, "window": None}, "ffn": {"width": 48}}] * 5}
    run(tmp_path, told)
    export_hf(tmp_path, tmp_path / "small")
    text = ModelCard.load(tmp_path / "small" / "README.md").text
    assert "| 2 | none | width 512 | attention, 2 KV heads | width 48 |" in text
    assert "the parent's licence applies" in text and "A child of llama," in text and "/home" not in text
    assert "\nbefit puzzle --parent llama --data 'my texts.jsonl' --attention all,/2\n" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("befit's embedded parent", None),
        ("befit:dense", None),
        ("./my/model", None),
        ("/models/llama", None),
        ("models", None),
    ],
)
def test_only_a_hub_name_is_a_base_model(name: str, expected: str | None) -> None:
    assert base_model({"parent": {"name": name}}) == expected


def test_a_cut_is_a_plain_repository(tmp_path: Path) -> None:
    place = nesteds.written(tmp_path, nesteds.nested_of("nemotron_h"))
    manifest = json.loads((place / "nested" / "nested.json").read_text())
    for entry in manifest["entries"]:
        entry["quality"] = {"kl": 0.25, "loss": 2.5}
    (place / "nested" / "nested.json").write_text(json.dumps(manifest))
    result = cut(place, place / "cuts" / "half", budget="50%")
    made = export_hf(result.folder, tmp_path / "half", name="me/half", dtype="bf16")
    assert not made.own_code and not list(made.folder.glob("*.py"))
    card = ModelCard.load(made.folder / "README.md")
    assert "custom_code" not in card.data.to_dict()["tags"]
    assert 'from_pretrained("me/half")' in card.text and result.hash in card.text and "Mamba-2" in card.text
    assert "one of the budgets trained for" in card.text and "a KL of 0.2500 from the parent" in card.text
    read: Any = AutoModelForCausalLM.from_pretrained(made.folder)
    assert read.dtype == torch.bfloat16 and type(read).__name__ == "NemotronHForCausalLM"
    between = cut(place, place / "cuts" / "more", budget="60%")
    export_hf(between.folder, tmp_path / "more")
    assert "Not measured at this size" in (tmp_path / "more" / "README.md").read_text()


def test_engines_that_cannot_are_named(tmp_path: Path) -> None:
    child(tmp_path / "child", "qwen3", MIXED)
    export_hf(tmp_path, tmp_path / "small")
    assert "norms queries and keys" in (tmp_path / "small" / "README.md").read_text()


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", MIXED)
    for _ in range(2):
        export_hf(tmp_path, tmp_path / "small")
    with pytest.raises(RunConflict, match="no earlier export"):
        export_hf(tmp_path, tmp_path / "child")


def test_every_sub_block_has_words() -> None:
    assert [said(half) for block in MIXED.blocks[:2] for half in (block.attention, block.ffn)] == [
        "attention, 4 KV heads",
        "width 256",
        "none",
        "none",
    ]
