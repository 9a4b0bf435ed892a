"""A member of a nested model as an ordinary network of its parent's family: its configuration, its weights, the module.

A member whose widths are the same in all layers is a plain checkpoint: transformers' own class loads it, no code of befit's
comes with it. FFN widths that differ from layer to layer fit no plain configuration, so there are two layouts: "padded"
(every FFN filled up with zero neurons to the widest: exact, loads everywhere, saves nothing for the padded part) and
"own-code" (just as wide as they are, with befit's modelling file beside the weights).

Two things that a plain class cannot hold are found here, before anything is written: a Llama whose width is no multiple of its
heads (transformers refuses the configuration; the same network as a Mistral without window is accepted and computes the same),
and a Nemotron-H without attention (its cache counts tokens in an attention layer).
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig
from transformers.dynamic_module_utils import custom_object_save
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from befit.arch.decoder import Attention, DecoderArch, DecoderShape, Ffn
from befit.arch.member import Member, cut_shape
from befit.errors import IllegalArch
from befit.lm.child import build, config_for
from befit.lm.family import Family
from befit.lm.network import Network
from befit.lm.prefix import Dimension, plan, prefix

LAYOUTS = ("padded", "own-code")
"""Of a member whose FFN widths differ."""

LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp", "architectures", "model_type", "transformers_version")
"""Keys of a Llama configuration that a Mistral configuration does not have, or has of its own."""


def member_config(config: Any, shape: DecoderShape, member: Member) -> Any:
    """The transformers configuration of a member: a changed copy of the parent's.

    FFN widths that differ are given as the widest. The class is the parent's, but a Mistral's for a Llama whose width is no
    multiple of its heads. Raises `IllegalArch` if `member` is no legal member, or if no plain class can hold it.
    """
    own = cut_shape(shape, member)
    found, classes = copy.deepcopy(config), cast("Mapping[Any, Any]", MODEL_FOR_CAUSAL_LM_MAPPING)
    sizes: dict[str, Any] = {"hidden_size": own.hidden, "head_dim": own.head_dim}
    kept_ffn = [block.ffn.width for block in own.arch.blocks if isinstance(block.ffn, Ffn)]
    if kept_ffn:
        sizes["intermediate_size"] = max(kept_ffn)
    if member.kv_heads:
        sizes |= {"num_attention_heads": own.heads, "num_key_value_heads": member.kv_heads}
    if own.mamba is not None:
        sizes |= {
            "mamba_num_heads": member.mamba_heads,
            "mamba_head_dim": own.mamba.head_dim,
            "ssm_state_size": own.mamba.state,
        }
    _check_attention(shape, own)
    if own.family == "llama" and own.hidden % own.heads:
        found = _as_mistral(found)
    _keep_layers(found, member.layers)
    for name, value in sizes.items():
        setattr(found, name, value)
    if "auto_map" in vars(found):
        del found.auto_map  # names the parent's own code, which is not carried along
    found.architectures = [classes[type(found)].__name__]
    return found


def padded(member: Member, shape: DecoderShape) -> Member:
    """The member with every FFN as wide as its widest."""
    widths = [member.ffn_of(i) for i in member.layers if isinstance(shape.arch.blocks[i].ffn, Ffn)]
    return member if isinstance(member.ffn, int) else replace(member, ffn=max(widths, default=member.widest_ffn))


def member_weights(
    weights: Mapping[str, Tensor], shape: DecoderShape, family: Family, member: Member
) -> dict[str, Tensor]:
    """The weights of a member by their names in its plain class: views where a view will do, FFNs padded with zeros."""
    own = prefix(weights, shape, family, member)
    if isinstance(member.ffn, int):
        return own
    wide = plan(shape, family, padded(member, shape))
    return {name: pad(tensor, sizes(wide[name][1])) for name, tensor in own.items()}


def member_model(config: Any, net: Network, weights: Mapping[str, Tensor], member: Member) -> Any:
    """A member as a module of transformers' plain class, in evaluation mode; parameters are views of `weights` where they can be.

    `config` and `weights` are those of the whole nested model. Raises `IllegalArch` as `member_config` does.
    """
    # A part that is no contiguous stretch is copied: transformers cannot save it otherwise.
    own = {
        name: tensor.detach().contiguous()
        for name, tensor in member_weights(weights, net.shape, net.family, member).items()
    }
    first = next(iter(own.values()))
    settings = member_config(config, net.shape, member)
    settings.dtype = first.dtype
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(settings)
    if net.shape.tied:
        own["lm_head.weight"] = own[f"{net.family.embedding}.weight"]
    model.load_state_dict(own, assign=True, strict=True)
    model.tie_weights()
    if net.rotary is not None:  # computed, not stored: build its table where the weights are
        model.model.rotary_emb = type(model.model.rotary_emb)(settings).to(first.device)
    return model.eval()


def own_code(config: Any, arch: DecoderArch, folder: Path) -> Any:
    """The configuration of a child of `arch` with befit's own class, whose modelling file is copied to `folder`.

    `config` is the member's plain one. Load such a checkpoint with `trust_remote_code=True`.
    """
    found = config_for(config, arch)
    found.dtype = config.dtype
    model = build(found)
    type(model).register_for_auto_class("AutoModelForCausalLM")
    custom_object_save(model, folder, config=found)
    return found


def sizes(dimensions: tuple[Dimension, ...]) -> tuple[int, ...]:
    """The shape of a tensor of which these dimensions' prefixes are kept."""
    return tuple(sum(math.prod(segment.keep) for segment in segments) for segments in dimensions)


def pad(tensor: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """`tensor` with zeros at the end of every dimension that is shorter than `wanted`; itself if none is."""
    if tensor.shape == wanted:
        return tensor
    missing = [size - have for size, have in zip(wanted, tensor.shape, strict=True)]
    return F.pad(tensor, [number for size in reversed(missing) for number in (0, size)])


def _check_attention(shape: DecoderShape, own: DecoderShape) -> None:
    """A hybrid's class counts the tokens it has seen in the cache of an attention layer, so one must stay."""
    parent, kept = (any(isinstance(b.attention, Attention) for b in s.arch.blocks) for s in (shape, own))
    if own.mamba is not None and parent and not kept:
        raise IllegalArch(
            "the member keeps no attention layer, and transformers' Nemotron-H cannot generate without one; "
            "keep at least one of the parent's attention layers"
        )


def _keep_layers(config: Any, layers: tuple[int, ...]) -> None:
    """Number the kept layers anew wherever a configuration tells something of each."""
    config.num_hidden_layers = len(layers)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return
    kept = [kinds[layer] for layer in layers]
    config.layer_types = kept
    if "max_window_layers" in vars(config):
        # What readers go by that know no `layer_types`: all layers from this one on have the window.
        config.max_window_layers = next((i for i, kind in enumerate(kept) if kind == "sliding_attention"), len(kept))


def _as_mistral(config: Any) -> Any:
    """The same network under another name, for sizes that LlamaConfig refuses. Raises `IllegalArch` if it has biases."""
    if config.attention_bias or config.mlp_bias:
        raise IllegalArch(
            "transformers' Llama needs a hidden size that is a multiple of the number of query heads, and with biases there is "
            "no other plain class for it; choose such a size"
        )
    told = {name: value for name, value in config.to_dict().items() if name not in LLAMA_ONLY}
    kind: Any = MistralConfig
    return kind(**(told | {"sliding_window": None}))
