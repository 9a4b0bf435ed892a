"""A language model in a form that vLLM, SGLang and TensorRT-LLM serve as they are.

Where all layers are alike, that is a plain checkpoint of the parent's family. Where they differ, it is the `nemotron-nas` form
of NVIDIA's Puzzle models (DeciLMForCausalLM), whose `block_configs` say for each layer how many KV heads it has and how wide
its FFN is, or that one of them is absent. Engines of this form give no FFN width but `ffn_mult`, from which they compute

    width = int(2 * ffn_mult * hidden / 3), rounded up to a multiple of 256

so a width that is no multiple of 256 can only be given as `intermediate_size`, which vLLM alone reads.

A layer of which nothing is left is not written; those after it move up.

Source: the form as shipped with Llama-3_3-Nemotron-Super-49B-v1, and as vLLM's nemotron_nas.py reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copy
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Linear, Mamba
from befit.errors import RunConflict, UnsupportedModel
from befit.export.language import carry, is_plain, layer_name, open_language, present, uniform, write_weights
from befit.lm import modeling_befit
from befit.lm.precision import DTYPES
from befit.rundir import replacing_folder, write_json

FORMS = ("plain", "nemotron-nas")
"""What `write_config` may choose."""

MULTIPLE = 256
"""Of FFN widths that `ffn_mult` can express."""

RECORD = "export.json"
"""What an export says of itself; a folder that has it may be replaced by another export."""

FLASH_ATTENTION_2 = "--attention-config.flash_attn_version=2"
"""What `vllm serve` needs on Hopper GPUs before 0.29 where numbers of KV heads differ (vllm-project/vllm#53336)."""

CODE = ("configuration_decilm.py", "modeling_decilm.py", "modeling_befit.py")
"""Files that travel with the `nemotron-nas` form: engines read the first, transformers all."""

SHARED = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "attention_dropout",
    "use_cache",
)
"""What the `nemotron-nas` form takes over from the parent's configuration."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A checkpoint, or its configuration alone, in a form that engines serve."""

    folder: Path
    form: str
    """plain or nemotron-nas."""
    layers: tuple[int, ...]
    """The layers of the child that were written, in order."""
    odd_widths: tuple[int, ...]
    """FFN widths that are no multiple of 256, which of the engines vLLM alone reads; empty in the plain form."""
    dtype: str
    size_bytes: int
    """Of the weights; 0 for a configuration alone."""
    kv_heads: tuple[int, ...] = ()
    """Numbers of KV heads that its attentions have, each once."""

    @property
    def command(self) -> str:
        """The line that serves it."""
        return f"vllm serve {self.folder}" + (" --trust-remote-code" if self.form == "nemotron-nas" else "")

    def notes(self) -> tuple[str, ...]:
        """What a user of this folder should know."""
        told = []
        if self.odd_widths:
            widths = ", ".join(map(str, self.odd_widths))
            told.append(
                f"FFN widths {widths} are no multiples of {MULTIPLE}: vLLM reads them, SGLang, TensorRT-LLM and llama.cpp's "
                "converter do not (befit export --to gguf writes them for llama.cpp)"
            )
        if len(self.kv_heads) > 1:
            told.append(
                "on H100, H200 and other Hopper GPUs, serve it with vLLM 0.29 or later, or add "
                f"{FLASH_ATTENTION_2}: before, vLLM plans attention there as if all layers had the first one's KV heads, and "
                "gives wrong tokens"
            )
        return tuple(told)


def export_vllm(source: Path | str, out: Path, *, dtype: str | None = None) -> Served:
    """Write the checkpoint in `source` (a run of `befit puzzle`, its child, a cut, a plain checkpoint) to `out` for vLLM.

    `dtype` (fp32, bf16, fp16) is the format of the file, by default that of the checkpoint. Raises `UnsupportedModel` with the
    reason, before anything is written, for what no such form can express; `RunConflict` for a folder that is no checkpoint, or
    an `out` that holds anything but an earlier export.
    """
    found = open_language(source)
    dtype = check_dtype(dtype or found.dtype)
    form = form_of(found.arch, found.shape, found.config)
    check_out(out)
    layers = present(found.arch)
    new = {old: number for number, old in enumerate(layers)}
    with replacing_folder(out) as temporary:
        written = write_config(found.arch, found.shape, temporary, base=found.config, dtype=dtype)
        size = write_weights(found, temporary, dtype=dtype, rename=lambda name: layer_name(name, new))
        carry(found.folder, temporary)
        write_json(temporary / RECORD, {"to": "vllm", "form": form, "layers": layers, "arch": found.arch.to_json()})
    return replace(written, folder=out, layers=layers, size_bytes=size)


def write_config(
    arch: DecoderArch, shape: DecoderShape, folder: Path, *, base: Any | None = None, dtype: str = "bf16"
) -> Served:
    """Write only `config.json` (and the code that it names) of an architecture to the existing folder `folder`.

    Enough to run an engine on weights that it makes up. `base` is the parent's transformers configuration, which tells the
    rest (rotary embedding, context, special tokens); without it the family's defaults stand. Raises `UnsupportedModel` as
    `export_vllm` does.
    """
    base = default_config(shape) if base is None else base
    form, layers = form_of(arch, shape, base), present(arch)
    blocks = [arch.blocks[i] for i in layers]
    if form == "plain":
        told = plain_config(blocks, base)
    else:
        told = nas_config(blocks, shape, base)
        for name in CODE:
            copy(Path(modeling_befit.__file__).with_name(name), folder / name)
    write_json(folder / "config.json", told | {"dtype": str(DTYPES[dtype]).removeprefix("torch.")})
    widths = {block.ffn.width for block in blocks if isinstance(block.ffn, Ffn)}
    odd = sorted(width for width in widths if width % MULTIPLE) if form == "nemotron-nas" else []
    heads = {block.attention.kv_heads for block in blocks if isinstance(block.attention, Attention)}
    return Served(
        folder=folder,
        form=form,
        layers=layers,
        odd_widths=tuple(odd),
        dtype=dtype,
        size_bytes=0,
        kv_heads=tuple(sorted(heads)),
    )


def form_of(arch: DecoderArch, shape: DecoderShape, config: Any) -> str:
    """plain or nemotron-nas; raises `UnsupportedModel` with the reason if it is neither."""
    blocks = [arch.blocks[i] for i in present(arch)]
    if is_plain(blocks, shape):
        return "plain"
    reasons = _reasons(blocks, shape, config)
    if reasons:
        raise UnsupportedModel(
            f"this architecture cannot be written for vLLM, SGLang or TensorRT-LLM: {'; '.join(reasons)}. "
            "befit.load and transformers run it as it is"
        )
    return "nemotron-nas"


def ffn_mult(width: int, hidden: int) -> float:
    """The number from which engines compute `width`, a multiple of 256 (see the module)."""
    return 3 * width / (2 * hidden)


def width_of(mult: float, hidden: int) -> int:
    """The FFN width that engines compute from `ffn_mult`."""
    return -(-int(2 * mult * hidden / 3) // MULTIPLE) * MULTIPLE


def plain_config(blocks: list[Block], base: Any) -> dict[str, Any]:
    """config.json of the family's own class."""
    config = uniform(base)
    attention = next((b.attention for b in blocks if isinstance(b.attention, Attention)), None)
    mamba = next((b.attention for b in blocks if isinstance(b.attention, Mamba)), None)
    ffn = next((b.ffn for b in blocks if isinstance(b.ffn, Ffn)), None)
    if config.model_type == "nemotron_h":
        config.layers_block_type = [_kind(block) for block in blocks]
    else:
        config.num_hidden_layers = len(blocks)
        _set_windows(config, [b.attention.window if isinstance(b.attention, Attention) else None for b in blocks])
    if attention is not None:
        config.num_key_value_heads = attention.kv_heads
    if mamba is not None:
        config.mamba_num_heads = mamba.heads
    if ffn is not None:
        config.intermediate_size = ffn.width
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
    return {k: v for k, v in _json(config).items() if k != "per_layer_config"} | {"architectures": [name]}


def _set_windows(config: Any, windows: list[int | None]) -> None:
    """The window of every layer in the words of the family; `is_plain` has seen to it that it has them."""
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = ["sliding_attention" if window else "full_attention" for window in windows]
    if "max_window_layers" in vars(config):
        config.max_window_layers = next((i for i, window in enumerate(windows) if window), len(windows))
    if "sliding_window" in vars(config):
        config.sliding_window = next((window for window in windows if window), None)


def nas_config(blocks: list[Block], shape: DecoderShape, base: Any) -> dict[str, Any]:
    """config.json of the `nemotron-nas` form."""
    parent = _json(uniform(base))
    widths = [block.ffn.width for block in blocks if isinstance(block.ffn, Ffn)]
    heads = [block.attention.kv_heads for block in blocks if isinstance(block.attention, Attention)]
    rope = parent.get("rope_parameters") or {}
    told: dict[str, Any] = {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {
            "AutoConfig": "configuration_decilm.DeciLMConfig",
            "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
        },
        "parent_family": shape.family,
    }
    told |= {name: parent[name] for name in SHARED if name in parent}
    told |= {
        "head_dim": shape.head_dim,
        "num_hidden_layers": len(blocks),
        # Engines take these from block_configs; transformers refuses null.
        "intermediate_size": max(widths, default=1),
        "num_key_value_heads": max(heads),
        "attention_bias": shape.o_bias,
        "mlp_bias": shape.mlp_bias,
        "rope_theta": rope.get("rope_theta", 10_000.0),  # where SGLang looks
    }
    if shape.qkv_bias != shape.o_bias:
        told["qkv_bias"] = shape.qkv_bias
    return told | {"block_configs": [_block_config(block, shape) for block in blocks]}


def default_config(shape: DecoderShape) -> Any:
    """A transformers configuration of the family with these sizes and the family's defaults for the rest."""
    known: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied,
        "mlp_bias": shape.mlp_bias,
        "attention_bias": shape.o_bias,
        "max_position_embeddings": 131_072,
        "sliding_window": None,
    }
    if shape.mamba is not None:
        known |= {
            "mamba_head_dim": shape.mamba.head_dim,
            "n_groups": shape.mamba.groups,
            "ssm_state_size": shape.mamba.state,
            "conv_kernel": shape.mamba.kernel,
            "use_conv_bias": shape.mamba.conv_bias,
            "use_bias": shape.mamba.bias,
        }
    return AutoConfig.for_model(shape.family, **known)


def check_dtype(dtype: str) -> str:
    """The number format if it is one that a checkpoint can have; raises `UnsupportedModel`."""
    if dtype not in DTYPES:
        raise UnsupportedModel(f"a checkpoint's dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype


def check_out(out: Path) -> None:
    """Raise `RunConflict` if `out` holds anything but an earlier export."""
    if out.is_file():
        raise RunConflict(f"{out} is a file, this export needs a directory; give another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise RunConflict(f"{out} exists, is not empty and holds no earlier export; give another --out")


def _reasons(blocks: list[Block], shape: DecoderShape, config: Any) -> list[str]:
    """Why the `nemotron-nas` form cannot express this; nothing if it can."""
    halves = [(i, half) for i, block in enumerate(blocks) for half in (block.attention, block.ffn)]
    reasons = []
    if not blocks:
        return ["no layer is left of it"]
    if shape.family == "nemotron_h":
        return ["layers of a hybrid (Mamba-2, FFNs without a gate) differ, and the nemotron-nas form has neither"]
    if shape.qk_norm:
        reasons.append("it norms queries and keys, which the nemotron-nas form does not know")
    if any(isinstance(half, Linear) for _, half in halves):
        reasons.append("it has linear sub-blocks, which vLLM does not read (search with --target vllm)")
    if any(isinstance(half, Attention) and half.window is not None for _, half in halves):
        reasons.append("it has windows, which the nemotron-nas form does not know (search with --target vllm)")
    if not isinstance(blocks[0].attention, Attention):
        reasons.append(
            "its first layer has no attention, with which vLLM and SGLang cannot begin (keep the first layer's attention)"
        )
    if config.hidden_act not in ("silu", "swish"):
        reasons.append(f"its FFN's activation is {config.hidden_act}, and engines of this form compute silu only")
    return reasons


def _block_config(block: Block, shape: DecoderShape) -> Mapping[str, Any]:
    """One entry of `block_configs`. Readers want all three keys in each half, but an `ffn_mult` only where it says the truth."""
    attention: dict[str, Any] = {"n_heads_in_group": None, "no_op": True, "replace_with_linear": False}
    ffn: dict[str, Any] = {"ffn_mult": None, "no_op": True, "replace_with_linear": False}
    if isinstance(block.attention, Attention):
        attention |= {"n_heads_in_group": shape.heads // block.attention.kv_heads, "no_op": False}
    if isinstance(block.ffn, Ffn):
        width = block.ffn.width
        ffn |= {"ffn_mult": ffn_mult(width, shape.hidden), "intermediate_size": width, "no_op": False}
        if width % MULTIPLE:
            del ffn["ffn_mult"]
    return {"attention": attention, "ffn": ffn}


def _json(config: Any) -> dict[str, Any]:
    """All values as transformers writes them to a file (infinity, for one, has a form of its own there)."""
    return json.loads(config.to_json_string())


def _kind(block: Block) -> str:
    match block.attention:
        case Mamba():
            return "linear_attention"
        case Attention():
            return "full_attention"
    return "mlp"
