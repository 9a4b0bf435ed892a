import inspect
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tests.elastic import nesteds
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

import llama_cpp
import tiny
from befit.arch.decoder import Attention, DecoderArch, Linear, Mamba
from befit.elastic.cut import cut
from befit.errors import RunConflict, UnsupportedModel
from befit.export.gguf import export_gguf, neighbours
from befit.export.gguf_tokenizer import RULES, read_tokens
from befit.lm.child import build, config_for, save
from export.test_vllm import arch, block

TEXT = "river stone model layer small green under light"


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose every token is printable: llama.cpp answers in text, and holds back halves of characters."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    ascii_only = [*map(chr, range(33, 127)), "Ġ"]
    trainer = trainers.BpeTrainer(
        vocab_size=110, special_tokens=["<end>"], initial_alphabet=ascii_only, show_progress=False
    )
    made.train_from_iterator([TEXT] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


VOCAB = len(tokenizer())


def child(folder: Path, family: str, wanted: DecoderArch, **values: Any) -> Any:
    """A child with random weights, saved to the folder as `befit puzzle` does."""
    sizes = {"vocab_size": VOCAB, "eos_token_id": 0, "bos_token_id": None} | values
    model = build(config_for(tiny.config(family, len(wanted.blocks), **sizes), wanted), device="cpu")
    tiny.randomise(model)
    save(model, folder, tokenizer())
    return model


ROPE: dict[str, Any] = {"rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = Linear()
MIXED = arch(block(4, 96), block(None, 64), block(1, None), block(None, None), block(2, 40))
SAME = arch(*[block(2, 40)] * 3)
HYBRID = arch(
    block(Mamba(heads=4), None), block(None, 48), block(1, None), block(None, None), block(None, 32), block(2, None)
)
CASES: dict[str, tuple[str, DecoderArch, dict[str, Any], str]] = {
    "llama": ("llama", MIXED, {}, "deci"),
    "biases": ("llama", MIXED, {"attention_bias": True, "mlp_bias": True}, "deci"),
    "wide heads": ("llama", MIXED, {"head_dim": 12}, "deci"),
    "linear attention": ("llama", arch(block(4, 96), block(LINEAR, 64), block(LINEAR, None)), {}, "deci"),
    "first without attention": ("llama", arch(block(None, 64), block(1, 96), block(2, 40)), {}, "deci"),
    "mistral": ("mistral", MIXED, {"sliding_window": None}, "deci"),
    "qwen2": ("qwen2", MIXED, {}, "deci"),
    "rope of llama 3": (
        "llama",
        MIXED,
        {
            "head_dim": 16,
            "rope_parameters": ROPE | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
        "deci",
    ),
    "linear rope": ("llama", MIXED, {"rope_parameters": ROPE | {"rope_type": "linear"}}, "deci"),
    "yarn": ("llama", MIXED, {"rope_parameters": ROPE | {"rope_type": "yarn"}}, "deci"),
    "plain llama": ("llama", SAME, {}, "llama"),
    "plain mistral": ("mistral", SAME, {"sliding_window": None}, "llama"),
    "plain qwen2": ("qwen2", SAME, {}, "qwen2"),
    "plain qwen3": ("qwen3", SAME, {}, "qwen3"),
    "hybrid": ("nemotron_h", HYBRID, {}, "nemotron_h"),
}


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_says_what_transformers_says(case: str, tmp_path: Path) -> None:
    family, wanted, values, architecture = CASES[case]
    model = child(tmp_path / "child", family, wanted, **values)
    made = export_gguf(tmp_path, tmp_path / "child.gguf")
    assert (made.architecture, made.dtype, made.kept) == (architecture, "fp32", 0)
    assert made.command == f"llama-server -m {tmp_path / 'child.gguf'}"
    prompt = tiny.tokens(1, 40, VOCAB, seed=1)[0].tolist()
    tokens, logs = llama_cpp.greedy(made.path, prompt, 12, VOCAB)
    same, truth = llama_cpp.expected(model, prompt, tokens)
    assert tokens == same
    assert (logs - truth).abs().max() < 1e-4


@pytest.mark.parametrize(("family", "architecture"), [("llama", "llama"), ("nemotron_h", "nemotron_h")])
def test_a_cut_is_written_too(family: str, architecture: str, tmp_path: Path) -> None:
    nested = nesteds.nested_of(family, vocab_size=VOCAB, eos_token_id=0, bos_token_id=None)
    cut(nesteds.written(tmp_path, nested), tmp_path / "cut", budget="60%")
    tokenizer().save_pretrained(tmp_path / "cut")
    made = export_gguf(tmp_path / "cut", tmp_path / "cut.gguf")
    assert made.architecture == architecture
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32)
    prompt = tiny.tokens(1, 40, VOCAB)[0].tolist()
    tokens, logs = llama_cpp.greedy(made.path, prompt, 12, VOCAB)
    same, truth = llama_cpp.expected(model.eval(), prompt, tokens)
    assert tokens == same and (logs - truth).abs().max() < 1e-4


def test_llama_cpp_reads_text_as_the_tokenizer_does(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", MIXED)
    made = export_gguf(tmp_path, tmp_path / "child.gguf")
    text = "river stones, 12 small\n\n  lights<end>under it's layer"
    answer = llama_cpp.complete(made.path, text, 4)
    ids = tokenizer()(text)["input_ids"]
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["choices"][0]["text"] == llama_cpp.complete(made.path, ids, 4)["choices"][0]["text"]


@pytest.mark.parametrize(("dtype", "near"), [("fp16", 0.02), ("bf16", 0.15), ("q8_0", 0.4)])
def test_smaller_formats_are_near(dtype: str, near: float, tmp_path: Path) -> None:
    model = child(tmp_path / "child", "llama", MIXED)
    whole = export_gguf(tmp_path, tmp_path / "whole.gguf")
    made = export_gguf(tmp_path, tmp_path / "child.gguf", dtype=dtype)
    assert made.size_bytes < whole.size_bytes and made.dtype == dtype
    prompt = tiny.tokens(1, 40, VOCAB)[0].tolist()
    tokens, logs = llama_cpp.greedy(made.path, prompt, 4, VOCAB)
    truth = llama_cpp.expected(model, prompt, tokens)[1]
    assert (logs - truth).abs().max() < near
    # Width 40 is no multiple of 32, which one down projection feels.
    assert (made.kept, bool(made.notes())) == ((1, True) if dtype == "q8_0" else (0, False))
    stored = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(made.path).tensors}
    assert stored["blk.0.attn_q.weight"] == {"fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}[dtype]
    assert stored["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "q8_0"])
def test_a_hybrids_scan_stays_in_fp32(dtype: str, tmp_path: Path) -> None:
    """llama.cpp ends the whole process where it does not."""
    child(tmp_path / "child", "nemotron_h", HYBRID)
    made = export_gguf(tmp_path, tmp_path / "child.gguf", dtype=dtype)
    stored = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(made.path).tensors}
    parts = ("ssm_a", "ssm_d", "ssm_dt.bias", "ssm_conv1d.weight", "ssm_norm.weight")
    assert {stored[f"blk.0.{part}"] for part in parts} == {"F32"} and stored["blk.0.ssm_in.weight"] != "F32"
    assert len(llama_cpp.greedy(made.path, tiny.tokens(1, 40, VOCAB)[0].tolist(), 2, VOCAB)[0]) == 2


def test_layers_keep_their_sizes(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", MIXED)
    reader = gguf.GGUFReader(export_gguf(tmp_path, tmp_path / "child.gguf").path)

    def field(name: str) -> list[int]:
        found: Any = reader.get_field(f"deci.{name}")
        return list(found.contents())

    assert field("attention.head_count") == [4, 0, 4, 4]
    assert field("attention.head_count_kv") == [4, 0, 1, 2]
    assert field("feed_forward_length") == [96, 64, 32, 40]  # 32 zeros for the FFN that is not there
    zeros = [tensor for tensor in reader.tensors if tensor.name == "blk.2.ffn_down.weight"]
    assert len(zeros) == 1 and not zeros[0].data.any()


def test_neighbours_are_turned_together() -> None:
    rows = torch.arange(8.0).unsqueeze(1)  # two heads of four channels; 0 turns with 2, 1 with 3
    assert neighbours(rows, 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


REFUSED: dict[str, tuple[str, DecoderArch, dict[str, Any], str]] = {
    "window": ("llama", arch(block(Attention(kv_heads=2, window=8), 48)), {}, "windows"),
    "linear FFN": ("llama", arch(block(2, LINEAR), block(2, 48)), {}, "linear FFN"),
    "no attention": ("llama", arch(block(None, 48), block(None, 40)), {}, "none of its layers has attention"),
    "qk norm": ("qwen3", arch(block(2, 48), block(1, 40)), {}, "norms queries and keys"),
    "nothing": ("llama", arch(block(None, None)), {}, "no layer is left"),
    "activation": ("llama", SAME, {"hidden_act": "gelu"}, "activation is gelu"),
    "rope": ("llama", SAME, {"rope_parameters": ROPE | {"rope_type": "dynamic"}}, "'dynamic'"),
    "hybrid heads": (
        "nemotron_h",
        arch(block(Mamba(heads=4), None), block(Mamba(heads=2), None), block(2, None)),
        {},
        "Mamba",
    ),
    "hybrid linear": (
        "nemotron_h",
        arch(block(Mamba(heads=4), None), block(LINEAR, None), block(2, None)),
        {},
        "linear",
    ),
    "hybrid attention": ("nemotron_h", arch(block(Mamba(heads=4), None), block(None, 32)), {}, "no attention layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    family, wanted, values, words = REFUSED[case]
    child(tmp_path / "child", family, wanted, **values)
    with pytest.raises(UnsupportedModel, match=words):
        export_gguf(tmp_path, tmp_path / "child.gguf")
    assert not (tmp_path / "child.gguf").exists()


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", SAME)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").touch()
    with pytest.raises(RunConflict, match=r"notes.txt exists and is no GGUF file; give another --out"):
        export_gguf(tmp_path / "child", tmp_path / "notes.txt")
    with pytest.raises(RunConflict, match=r"is a folder, this export needs a file; give another --out, such as"):
        export_gguf(tmp_path / "child", tmp_path)
    for out in ("new.gguf", "new.gguf", "empty"):
        export_gguf(tmp_path / "child", tmp_path / out)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", SAME)
    with pytest.raises(UnsupportedModel, match="q8_0, got 'int4'"):
        export_gguf(tmp_path, tmp_path / "child.gguf", dtype="int4")


def ruled(folder: Path, pattern: str, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer with text split by a regular expression first, saved."""
    made = tokenizer()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.save_pretrained(folder)
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["ignore_merges"] = ignore_merges
    (folder / "tokenizer.json").write_text(json.dumps(told))
    return made


TIKTOKEN = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
"""transformers' own copy of the rule of Llama 3."""


@pytest.mark.parametrize(
    ("pattern", "ignore", "name"),
    [
        (TIKTOKEN, True, "llama-bpe"),
        (TIKTOKEN, False, "smaug-bpe"),
        (PRETOKENIZE_REGEX, False, "qwen2"),
        (next(rule for rule, name in RULES.items() if name == "tekken"), True, "tekken"),
    ],
)
def test_llama_cpp_knows_the_rule_by_its_name(pattern: str, ignore: bool, name: str, tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", MIXED)
    own = ruled(tmp_path / "child", pattern, ignore)
    assert read_tokens(tmp_path / "child", VOCAB).rule == name
    made = export_gguf(tmp_path, tmp_path / "child.gguf")
    text = "river's STONES 1234567 small\n\n\n  lights    underLight. it'll /path"
    answer = llama_cpp.complete(made.path, text, 1)
    assert answer["usage"]["prompt_tokens"] == len(own(text)["input_ids"])


def test_a_tokenizer_that_llama_cpp_cannot_have_is_refused(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", MIXED)
    file = tmp_path / "child" / "tokenizer.json"
    told = json.loads(file.read_text())
    ruled(tmp_path / "child", r"\s+|\S+")
    with pytest.raises(UnsupportedModel, match="splits text by a rule that has no name"):
        export_gguf(tmp_path, tmp_path / "child.gguf")
    file.write_text(json.dumps(told | {"model": told["model"] | {"byte_fallback": True}}))
    with pytest.raises(UnsupportedModel, match="SentencePiece"):
        export_gguf(tmp_path, tmp_path / "child.gguf")
    file.unlink()
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json"):
        export_gguf(tmp_path, tmp_path / "child.gguf")
    assert not (tmp_path / "child.gguf").exists()


def test_rows_without_a_token_are_padding(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    found = read_tokens(tmp_path, VOCAB + 2)
    assert found.tokens[-2:] == (f"[PAD{VOCAB}]", f"[PAD{VOCAB + 1}]") and found.kinds[-2:] == (5, 5)
    assert found.kinds[0] == 3 and not found.add_bos and found.chat_template == "{{ messages }}"
    with pytest.raises(UnsupportedModel, match="only 5 rows"):
        read_tokens(tmp_path, 5)
