"""The space of children: which variants each layer may use, and which combinations the target can run.

`DecoderSpace` is made from the parent's shape, a list of variants and a target; it knows every layer's legal options, tests
whole architectures, counts and samples them. Sources: options per layer as in Puzzle (arXiv 2411.19146, section 2);
the targets' rules as their loaders have them (vLLM's and llama.cpp's `nemotron-nas`).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from befit.arch.decoder import (
    Attention,
    AttentionVariant,
    Block,
    DecoderArch,
    DecoderShape,
    Ffn,
    FfnVariant,
    Linear,
    Mamba,
    NoOp,
)
from befit.errors import IllegalArch

TARGETS = ("hf", "vllm", "llama.cpp")
"""Where a child may have to run: transformers, vLLM's and llama.cpp's stock model classes."""

ATTENTION = ("all", "/2", "/4", "1", "window", "linear", "noop")
"""Default variants of attention and of Mamba-2: KV heads or Mamba heads kept, a sliding window, one matrix, nothing."""

FFN = ("100", "87", "75", "62", "50", "37", "25", "12", "linear", "noop")
"""Default FFN variants: percent of the parent's width, one matrix, nothing."""


@dataclass(frozen=True, kw_only=True)
class DecoderSpace:
    """All legal children of one parent for one target."""

    shape: DecoderShape
    """The parent."""
    target: str = "hf"
    """One of `TARGETS`."""
    attention: tuple[str, ...] = ATTENTION
    """Names of attention variants: all, /N, N (KV heads), window, window=N, linear, noop; of Mamba-2, where N KV heads and
    windows mean nothing: all, /N (Mamba heads, the same share of every SSM group), linear, noop."""
    ffn: tuple[str, ...] = FFN
    """Names of FFN variants: percent of the parent's width, linear, noop."""
    window: int = 64
    """Tokens of the variant named plain `window`."""

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise IllegalArch(f"unknown target {self.target!r}; expected one of {', '.join(TARGETS)}")
        own = self.shape.arch.blocks
        if self.target != "hf" and any(isinstance(block.attention, Mamba) for block in own):
            raise IllegalArch(
                f"target {self.target} cannot run children of a hybrid, whose layers differ; use target hf"
            )
        if not any(isinstance(block.attention, Attention) for block in own):
            raise IllegalArch("the parent has no attention layer; a child must keep at least one")
        for layer in range(self.shape.layers):
            self.blocks(layer)

    @property
    def multiple(self) -> int:
        """What FFN widths are rounded to: 256 for real models and for vLLM, 32 for small ones."""
        return 256 if self.target == "vllm" or self.shape.hidden >= 1024 else 32

    def attention_variants(self, layer: int) -> tuple[AttentionVariant, ...]:
        """The layer's own mixer first, then every other legal one, without repetition; in a layer without, only that."""
        own = self.shape.arch.blocks[layer].attention
        found: dict[AttentionVariant, None] = {own: None}
        for name in () if isinstance(own, NoOp) else self.attention:
            for variant in self._attention(name, own):
                if self._runs(layer, variant):
                    found[variant] = None
        return tuple(found)

    def ffn_variants(self, layer: int) -> tuple[FfnVariant, ...]:
        """The layer's own FFN first, then every other legal one, without repetition; in a layer without, only that."""
        own = self.shape.arch.blocks[layer].ffn
        found: dict[FfnVariant, None] = {own: None}
        for name in () if isinstance(own, NoOp) else self.ffn:
            variant = self._ffn(name, own)
            if variant is not None and not (isinstance(variant, Linear) and self.target != "hf"):
                found[variant] = None
        return tuple(found)

    def blocks(self, layer: int) -> tuple[Block, ...]:
        """Every legal pair for a layer, the parent's own pair first."""
        return self._options[layer]

    @cached_property
    def _options(self) -> tuple[tuple[Block, ...], ...]:
        """All layers' pairs: searches ask for them thousands of times."""
        return tuple(self._blocks(layer) for layer in range(self.shape.layers))

    @cached_property
    def _known(self) -> tuple[frozenset[Block], ...]:
        return tuple(frozenset(options) for options in self._options)

    def _blocks(self, layer: int) -> tuple[Block, ...]:
        pairs = [
            Block(attention=a, ffn=f)
            for a in self.attention_variants(layer)
            for f in self.ffn_variants(layer)
            # llama.cpp passes the layer's input on where there is no FFN, and so would lose the attention's output.
            if not (self.target == "llama.cpp" and isinstance(f, NoOp) and not isinstance(a, NoOp))
        ]
        return tuple(pairs)

    def check(self, arch: DecoderArch) -> None:
        """Raise `IllegalArch`, saying which layer and rule, unless the space contains `arch`."""
        if len(arch.blocks) != self.shape.layers:
            raise IllegalArch(f"the parent has {self.shape.layers} layers, the architecture {len(arch.blocks)}")
        for layer, block in enumerate(arch.blocks):
            if block not in self._known[layer]:
                raise IllegalArch(f"layer {layer}: {block.name} is not among the options for target {self.target}")
        if not any(isinstance(block.attention, Attention) for block in arch.blocks):
            raise IllegalArch("no layer has attention; at least one must keep it")

    def contains(self, arch: DecoderArch) -> bool:
        """Whether `check` accepts."""
        try:
            self.check(arch)
        except IllegalArch:
            return False
        return True

    @property
    def size(self) -> int:
        """How many architectures the space contains."""
        blocks = [self.blocks(layer) for layer in range(self.shape.layers)]
        without = [sum(not isinstance(b.attention, Attention) for b in options) for options in blocks]
        return math.prod(len(options) for options in blocks) - math.prod(without)

    def sample(self, rng: random.Random) -> DecoderArch:
        """One architecture, uniformly; `rng` is advanced."""
        while True:
            arch = DecoderArch(blocks=tuple(rng.choice(self.blocks(i)) for i in range(self.shape.layers)))
            if any(isinstance(block.attention, Attention) for block in arch.blocks):
                return arch

    def _runs(self, layer: int, variant: AttentionVariant) -> bool:
        """The rules for attention that depend on the target."""
        if self.target == "vllm" and layer == 0 and not isinstance(variant, Attention):
            return False  # vLLM's first layer hands its residual on only through real attention.
        if self.target == "hf":
            return True
        own = self.shape.arch.blocks[layer].attention
        if isinstance(variant, Attention) and isinstance(own, Attention):
            return variant.window == own.window
        return not isinstance(variant, Linear)

    def _attention(self, name: str, own: AttentionVariant) -> Sequence[AttentionVariant]:
        if name in ("linear", "noop"):
            return [Linear() if name == "linear" else NoOp()]
        word, _, number = name.partition("=")
        if name == "window" or (word == "window" and _counts(number)):
            window = int(number or self.window)
            if isinstance(own, Attention) and (own.window is None or window < own.window):
                return [Attention(kv_heads=own.kv_heads, window=window)]
            return []
        divisor = name.removeprefix("/")
        if name != "all" and not _counts(divisor):
            raise IllegalArch(
                f"unknown attention variant {name!r}; expected all, /N, N, window, window=N, linear or noop"
            )
        if isinstance(own, Mamba):
            return (
                [Mamba(heads=own.heads // int(divisor))] if name[0] == "/" and self._shares(own, int(divisor)) else []
            )
        if not isinstance(own, Attention):
            return []
        heads = own.kv_heads if name == "all" else own.kv_heads // int(divisor) if name[0] == "/" else int(name)
        exact = name == "all" or name[0] != "/" or own.kv_heads % int(divisor) == 0
        fits = exact and 0 < heads <= own.kv_heads and own.kv_heads % heads == 0
        return [Attention(kv_heads=heads, window=own.window)] if fits else []

    def _shares(self, own: Mamba, divisor: int) -> bool:
        """Whether every SSM group can keep exactly one `divisor`-th of its heads."""
        return self.shape.mamba is not None and own.heads % (divisor * self.shape.mamba.groups) == 0

    def _ffn(self, name: str, own: FfnVariant) -> FfnVariant | None:
        if name in ("linear", "noop"):
            return Linear() if name == "linear" else NoOp()
        if not (_counts(name) and int(name) <= 100):
            raise IllegalArch(f"unknown FFN variant {name!r}; expected a percentage from 1 to 100, linear or noop")
        if not isinstance(own, Ffn):
            return None
        width = round(own.width * int(name) / 100 / self.multiple) * self.multiple
        return Ffn(width=min(max(width, self.multiple), own.width)) if name != "100" else own


def _counts(text: str) -> bool:
    """Whether a text is a whole number of at least 1."""
    return text.isascii() and text.isdigit() and int(text) > 0
