"""Build, save and load models layer by layer: the parent as a row of blocks, and any child of it.

`config_for` writes an architecture into the parent's configuration (transformers' `per_layer_config`); `build` makes the
module without weights; `half` makes one sub-block alone, which is how libraries train and store their variants.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, Linear, Mamba, NoOp, Variant
from befit.errors import IllegalArch, UnsupportedModel
from befit.lm.families import family_of
from befit.lm.modeling_befit import (
    BefitForCausalLM,
    BefitLayer,
    BefitLlamaForCausalLM,
    BefitMistralForCausalLM,
    BefitQwen2ForCausalLM,
    BefitQwen3ForCausalLM,
    window_of,
)
from befit.lm.modeling_befit_hybrid import BefitNemotronHForCausalLM

MODELS: dict[str, type[BefitForCausalLM]] = {
    "llama": BefitLlamaForCausalLM,
    "mistral": BefitMistralForCausalLM,
    "nemotron_h": BefitNemotronHForCausalLM,
    "qwen2": BefitQwen2ForCausalLM,
    "qwen3": BefitQwen3ForCausalLM,
}
"""The class of each family's children, by transformers' name of the family."""


def config_for(parent: Any, arch: DecoderArch) -> Any:
    """A copy of the parent's transformers configuration that describes `arch`.

    Sub-blocks that are absent or linear get 0 KV heads or 0 width, so that code which reads only global values fails
    loudly instead of building the parent's layers.
    """
    config = copy.deepcopy(parent)
    config.per_layer_config = None
    vars(config).pop("auto_map", None)  # code that came with the parent's checkpoint and does not go with the child's
    single = family_of(parent).single
    windows = [b.attention.window if isinstance(b.attention, Attention) else None for b in arch.blocks]
    if single:
        config.layers_block_type = [_kind(block, i) for i, block in enumerate(arch.blocks)]
        config.sliding_window = None  # the family's own class does not know it
    else:
        config.num_hidden_layers = len(arch.blocks)
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = ["sliding_attention" if w else "full_attention" for w in windows]
    for name in ("sliding_window", "linear"):
        if getattr(config, name, None) is None:
            setattr(config, name, [] if name == "linear" else None)
    if any(windows) and (single or not hasattr(type(parent), "sliding_window")):
        # The family's own class would ignore windows in silence; no layer has 0 KV heads, so now it must read per layer.
        config.num_key_value_heads = 0
    overrides = _single_overrides if single else _overrides
    config.per_layer_config = {i: overrides(block) for i, block in enumerate(arch.blocks)}
    config.architectures = [MODELS[config.model_type].__name__]
    return config


def arch_of(config: Any) -> DecoderArch:
    """The architecture written in a configuration by `config_for`, or the homogeneous one of a plain parent."""
    single = family_of(config).single
    blocks = []
    for i, own in enumerate(config.per_layer_config):
        skip, linear = getattr(own, "skip", ()), getattr(own, "linear", ())
        kind = config.layers_block_type[i] if single else ""
        attention: Any = Linear() if "attention" in linear else NoOp()
        ffn: Any = Linear() if "mlp" in linear else NoOp()
        if kind == "linear_attention":
            attention = Mamba(heads=own.mamba_num_heads)
        elif kind == "full_attention":
            attention = Attention(kv_heads=own.num_key_value_heads, window=own.sliding_window)
        elif not single and "attention" not in (*skip, *linear):
            attention = Attention(kv_heads=own.num_key_value_heads, window=window_of(config, i))
        if "mlp" not in (*skip, *linear) and (not single or (kind == "mlp" and not linear)):
            ffn = Ffn(width=own.intermediate_size)
        blocks.append(Block(attention=attention, ffn=ffn))
    return DecoderArch(blocks=tuple(blocks))


def build(config: Any, *, device: str | torch.device = "meta", dtype: torch.dtype | None = None) -> BefitForCausalLM:
    """The module of a configuration; on the meta device (no memory) unless told otherwise, random weights elsewhere."""
    config = copy.deepcopy(config)
    config._attn_implementation = "sdpa"
    config._experts_implementation = (
        "eager"  # There are none; the one that a family's own class chose would be refused.
    )
    with torch.device(device):
        model = MODELS[config.model_type](config)
    for parameter in model.parameters():
        # Not `model.to`: it would round the rotary frequencies too.
        parameter.data = parameter.data.to(dtype or torch.float32)
    return model.eval()


def half(config: Any, index: int, variant: Variant, kind: str) -> BefitLayer:
    """Layer `index` with only its attention (`kind` "attention") or its FFN ("ffn") sub-block, on the meta device."""
    if (kind == "ffn" and isinstance(variant, Attention | Mamba)) or (kind == "attention" and isinstance(variant, Ffn)):
        raise IllegalArch(f"{variant.name} cannot stand in for the {kind} sub-block")
    absent = Block(attention=NoOp(), ffn=NoOp())
    own = Block(
        attention=variant if kind == "attention" else NoOp(),  # type: ignore[arg-type]
        ffn=variant if kind == "ffn" else NoOp(),  # type: ignore[arg-type]
    )
    count = config.num_hidden_layers
    alone = config_for(config, DecoderArch(blocks=tuple(own if i == index else absent for i in range(count))))
    alone._attn_implementation = "sdpa"
    make: Any = MODELS[config.model_type].body.layer
    with torch.device("meta"):
        return make(alone, index, 0).eval()


def from_parent(model: Any, config: Any | None = None) -> BefitForCausalLM:
    """The parent itself as a row of blocks, sharing its tensors: same logits, no copy."""
    config = config or config_for(model.config, family_of(model.config).describe(model.config).arch)
    row = build(config, dtype=model.dtype)
    adopt(row, dict(model.state_dict()))
    row.generation_config = copy.deepcopy(model.generation_config)
    return row


def adopt(model: BefitForCausalLM, tensors: dict[str, Tensor]) -> None:
    """Give a model built on the meta device its weights, without a copy. Raises if a name is missing or left over."""
    if model.config.tie_word_embeddings:
        for same, source in model._tied_weights_keys.items():
            tensors.setdefault(same, tensors[source])
    model.load_state_dict(tensors, assign=True, strict=True)
    model.tie_weights()
    model.model.compute()
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def save(model: BefitForCausalLM, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write an ordinary checkpoint: safetensors, config.json, the modelling file, the tokenizer."""
    type(model).register_for_auto_class("AutoModelForCausalLM")
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load(folder: str | Path, *, dtype: torch.dtype | None = None) -> BefitForCausalLM:
    """Load a checkpoint that `save` wrote. Raises `UnsupportedModel` if the folder holds another model, or not all of it."""
    if not (Path(folder) / "config.json").is_file():
        raise UnsupportedModel(f"{folder} has no config.json; give the folder of a child that befit wrote")
    config = AutoConfig.from_pretrained(folder)
    kind: Any = MODELS.get(config.model_type)
    if kind is None or kind.__name__ not in (config.architectures or []):
        raise UnsupportedModel(
            f"{folder} holds {config.architectures}, no befit child; load it with transformers' AutoModelForCausalLM"
        )
    number_format = dtype or config.dtype or torch.float32
    model, found = kind.from_pretrained(folder, config=config, dtype=number_format, output_loading_info=True)
    wrong = sorted({*found["missing_keys"], *found["unexpected_keys"]})
    if wrong:  # transformers would fill what is missing with random numbers
        raise UnsupportedModel(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing or left over, "
            f"{wrong[0]} among them; fetch or save the child again"
        )
    return model.eval()


def _overrides(block: Block) -> dict[str, Any]:
    skip, linear, own = [], [], {}
    match block.attention:
        case Attention(kv_heads=kv_heads, window=window):
            own |= {"num_key_value_heads": kv_heads, "sliding_window": window}
        case other:
            (linear if isinstance(other, Linear) else skip).append("attention")
            own |= {"num_key_value_heads": 0, "sliding_window": None}
    match block.ffn:
        case Ffn(width=width):
            own |= {"intermediate_size": width}
        case other:
            (linear if isinstance(other, Linear) else skip).append("mlp")
            own |= {"intermediate_size": 0}
    if skip:
        own["skip"] = skip
    return own | {"linear": linear}


def _kind(block: Block, index: int) -> str:
    """The type of a layer that is one mixer or one FFN; one that has lost its own is called an FFN, with no cache."""
    if not isinstance(block.attention, NoOp) and not isinstance(block.ffn, NoOp):
        raise IllegalArch(f"layer {index}: {block.name} has two sub-blocks; a layer of this family has one")
    match block.attention:
        case Mamba():
            return "linear_attention"
        case Attention():
            return "full_attention"
    return "mlp"


def _single_overrides(block: Block) -> dict[str, Any]:
    """What differs from the parent in a layer that is one mixer or one FFN; values that its kind does not read stay."""
    match block:
        case Block(attention=Mamba(heads=heads)):
            return {"mamba_num_heads": heads, "linear": []}
        case Block(attention=Attention(kv_heads=kv_heads, window=window)):
            return {"num_key_value_heads": kv_heads, "sliding_window": window, "linear": []}
        case Block(ffn=Ffn(width=width)):
            return {"intermediate_size": width, "linear": []}
    linear = [name for name, half in (("attention", block.attention), ("mlp", block.ffn)) if isinstance(half, Linear)]
    return {"intermediate_size": 0, "linear": linear} | ({} if linear else {"skip": ["attention", "mlp"]})
