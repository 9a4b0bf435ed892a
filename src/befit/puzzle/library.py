"""The library: for every layer, the weights of every variant of its two sub-blocks, one safetensors file a layer.

A child is assembled from the library without computing anything: sub-blocks that stay as they are share the parent's
tensors, the others come from their layer's file.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from befit.arch.decoder import DecoderArch, NoOp, Variant
from befit.arch.decoder_space import DecoderSpace
from befit.lm.child import adopt, arch_of, build, config_for, half
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM, BefitLayer
from befit.lm.slice import KINDS, halves


@dataclass(kw_only=True)
class Library:
    """Variants with weights, read from disk when first used and kept."""

    parent: BefitForCausalLM
    """The sorted parent; never changed."""
    space: DecoderSpace
    """Which variants there are."""
    family: Family
    """Where the parent's parts are."""
    folder: Path
    """Holds `layer_000.safetensors`, ...; tensor names are `attention/kv2/self_attn.q_proj.weight` and so on."""
    key: str = ""
    """Names what is in it, for the stages that use it."""
    healed: BefitForCausalLM | None = None
    """A child that an earlier round has healed: its blocks stand for the variants it is made of, the others stay as they were."""
    loaded: dict[int, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def start(self) -> BefitForCausalLM:
        """The network in which single blocks are replaced: the parent, or the healed child."""
        return self.parent if self.healed is None else self.healed

    @cached_property
    def around(self) -> DecoderArch:
        """What that network is."""
        return self.space.shape.arch if self.healed is None else arch_of(self.healed.config)

    def file(self, layer: int) -> Path:
        """Where a layer's variants lie."""
        return self.folder / f"layer_{layer:03d}.safetensors"

    def variants(self, layer: int, kind: str) -> tuple[Variant, ...]:
        """All variants of one sub-block, the parent's own first."""
        return self.space.attention_variants(layer) if kind == "attention" else self.space.ffn_variants(layer)

    def own(self, layer: int, kind: str) -> Variant:
        """The parent's own variant."""
        block = self.space.shape.arch.blocks[layer]
        return block.attention if kind == "attention" else block.ffn

    def tensors(self, layer: int, kind: str, variant: Variant) -> dict[str, Tensor]:
        """The weights of one variant, named relative to its layer; the parent's own are shared, not copied."""
        if isinstance(variant, NoOp):
            return {}
        there = self.around.blocks[layer]
        is_there = variant == (there.attention if kind == "attention" else there.ffn)
        if is_there or variant == self.own(layer, kind):
            named = (self.start if is_there else self.parent).model.layers[layer].state_dict()
            return {name: t for name, t in named.items() if name.startswith(halves(self.family, kind))}
        if layer not in self.loaded:
            self.loaded[layer] = self._read(layer)
        prefix = f"{kind}/{variant.name}/"
        return {name.removeprefix(prefix): t for name, t in self.loaded[layer].items() if name.startswith(prefix)}

    @torch.inference_mode(False)  # What is made here is kept, and may be trained later.
    def half(self, layer: int, kind: str, variant: Variant) -> BefitLayer:
        """A layer with this sub-block alone, ready to run."""
        module = half(self.parent.config, layer, variant, kind)
        module.load_state_dict(self.tensors(layer, kind, variant), assign=True)
        return module.requires_grad_(False)

    def assemble(self, arch: DecoderArch) -> BefitForCausalLM:
        """The child of an architecture of the space, sharing tensors with parent and library.

        Raises `IllegalArch` outside the space.
        """
        self.space.check(arch)
        return self.compose(arch)

    @torch.inference_mode(False)
    def compose(self, arch: DecoderArch) -> BefitForCausalLM:
        """The same for any combination that has weights, legal for the target or not: for measuring quality."""
        model = build(config_for(self.parent.config, arch), dtype=self.parent.dtype)
        named = {name: t for name, t in self.start.state_dict().items() if not name.startswith("model.layers.")}
        for layer, block in enumerate(arch.blocks):
            for kind, variant in zip(KINDS, (block.attention, block.ffn), strict=True):
                for name, tensor in self.tensors(layer, kind, variant).items():
                    named[f"model.layers.{layer}.{name}"] = tensor
        adopt(model, named)
        model.generation_config = copy.deepcopy(self.parent.generation_config)
        return model

    @torch.inference_mode(False)
    def _read(self, layer: int) -> dict[str, Tensor]:
        with safe_open(self.file(layer), framework="pt", device=str(self.parent.device)) as file:
            return {name: file.get_tensor(name).to(self.parent.dtype) for name in file.keys()}  # noqa: SIM118


def flat(variants: Mapping[tuple[str, Variant], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The names of a layer's file for tensors grouped by (kind, variant)."""
    return {
        f"{kind}/{variant.name}/{name}": tensor.contiguous()
        for (kind, variant), named in variants.items()
        for name, tensor in named.items()
    }


def parent_layer(model: BefitForCausalLM, layer: int) -> dict[str, Tensor]:
    """The parent's tensors of one layer, copied, both sub-blocks together."""
    return {name: t.detach().clone() for name, t in model.model.layers[layer].state_dict().items()}


def free(model: BefitForCausalLM) -> BefitForCausalLM:
    """A copy of a child that shares no tensor with its library, for training."""
    twin = build(model.config, dtype=model.dtype)
    adopt(twin, {name: t.detach().clone() for name, t in model.state_dict().items()})
    twin.generation_config = copy.deepcopy(model.generation_config)
    assert next(twin.parameters()).device != torch.device("meta")
    return twin
