"""The architecture of a decoder language model, layer by layer, as a value.

A decoder layer is two sub-blocks, a mixer of tokens (attention or Mamba-2) and an FFN, each added to the residual stream; a
hybrid's layers have one of the two and a no-op. `DecoderArch` says what every layer's two sub-blocks are; `DecoderShape` says
what all children of one parent share (hidden size, vocabulary, biases).
Together they determine every parameter, byte and FLOP of the network (`befit.cost.count`).

Source: the per-layer alternatives are those of Puzzle (arXiv 2411.19146, section 2): fewer KV heads, narrower FFN,
a single linear map, or nothing at all; windows follow gpt-oss-puzzle (arXiv 2602.11937).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from befit.errors import IllegalArch


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Softmax attention with `kv_heads` key/value heads, causal, over all tokens or the last `window`."""

    kv_heads: int
    """Key/value heads, at least 1; divides the number of query heads."""
    window: int | None = None
    """Tokens a query sees, itself included; None sees all earlier tokens."""

    def __post_init__(self) -> None:
        _positive("kv_heads", self.kv_heads)
        if self.window is not None:
            _positive("window", self.window)

    @property
    def name(self) -> str:
        return f"kv{self.kv_heads}" + (f"w{self.window}" if self.window else "")


@dataclass(frozen=True, kw_only=True)
class Mamba:
    """A Mamba-2 mixer with `heads` heads, shared evenly by the SSM groups."""

    heads: int
    """Heads, at least 1; a multiple of the groups in `MambaShape`."""

    def __post_init__(self) -> None:
        _positive("heads", self.heads)

    @property
    def name(self) -> str:
        return f"mamba{self.heads}"


@dataclass(frozen=True, kw_only=True)
class Ffn:
    """A feed-forward network with `width` intermediate neurons, gated or not as `DecoderShape.gated` says."""

    width: int
    """Intermediate neurons, at least 1."""

    def __post_init__(self) -> None:
        _positive("width", self.width)

    @property
    def name(self) -> str:
        return f"ffn{self.width}"


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One square matrix on the normalised hidden state: no mixing of tokens, no cache."""

    @property
    def name(self) -> str:
        return "linear"


@dataclass(frozen=True, kw_only=True)
class NoOp:
    """Nothing: the residual stream passes unchanged, and the sub-block's norm is dropped too."""

    @property
    def name(self) -> str:
        return "noop"


AttentionVariant = Attention | Mamba | Linear | NoOp
"""What may stand in the mixer's place."""
FfnVariant = Ffn | Linear | NoOp
Variant = Attention | Mamba | Ffn | Linear | NoOp


@dataclass(frozen=True, kw_only=True)
class Block:
    """One decoder layer: a mixer sub-block, then an FFN sub-block."""

    attention: AttentionVariant
    """The mixer: attention, Mamba-2, or what stands in for them."""
    ffn: FfnVariant

    @property
    def name(self) -> str:
        return f"{self.attention.name}+{self.ffn.name}"


@dataclass(frozen=True, kw_only=True)
class DecoderArch:
    """What every layer is. Hashable; `to_json` and `from_json` are inverse and strict."""

    blocks: tuple[Block, ...]
    """One entry for each layer, first layer first; at least one."""

    def __post_init__(self) -> None:
        if not self.blocks:
            raise IllegalArch("an architecture needs at least one layer, got none")

    def to_json(self) -> dict[str, Any]:
        """`{"blocks": [{"attention": …, "ffn": …}]}`, first layer first.

        A mixer is `{"kv_heads": 4, "window": null}`, `{"mamba_heads": 8}`, "linear" or "noop", an FFN `{"width": 512}`,
        "linear" or "noop".
        """
        return {"blocks": [{"attention": _to_json(b.attention), "ffn": _to_json(b.ffn)} for b in self.blocks]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "DecoderArch":
        """Read what `to_json` wrote. Raises `IllegalArch` for an unknown or missing key or a wrong type."""
        given = _only_keys(data, ("blocks",), "architecture")["blocks"]
        if not isinstance(given, list):
            raise IllegalArch(f"architecture: 'blocks' must be a list, got {type(given).__name__}")
        blocks = cast("list[Any]", given)
        return DecoderArch(blocks=tuple(_block(entry, i) for i, entry in enumerate(blocks)))


@dataclass(frozen=True, kw_only=True)
class MambaShape:
    """What all Mamba-2 mixers of a network share."""

    head_dim: int
    """Channels of a head."""
    groups: int
    """SSM groups; the heads of a group share its B and C."""
    state: int
    """Size of the state of one channel."""
    kernel: int = 4
    """Width of the causal convolution, in tokens."""
    conv_bias: bool = True
    """Bias of the convolution."""
    bias: bool = False
    """Biases of the input and output projections."""

    def __post_init__(self) -> None:
        for field in ("head_dim", "groups", "state", "kernel"):
            _positive(field, getattr(self, field))


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """What a parent and all its children share, and the parent's own architecture."""

    family: str
    """transformers' model_type: llama, mistral, qwen2, qwen3, nemotron_h."""
    vocab: int
    """Rows of the embedding matrix."""
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads of every attention."""
    head_dim: int
    """Channels of a head; need not be hidden / heads."""
    tied: bool
    """Whether the output projection is the embedding matrix."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections."""
    o_bias: bool = False
    """Bias on the attention's output projection."""
    mlp_bias: bool = False
    """Biases on all FFN projections."""
    gated: bool = True
    """Whether the FFN has a gate: three projections, else two."""
    qk_norm: bool = False
    """RMSNorm over head_dim on queries and on keys (two weight vectors a layer)."""
    mamba: MambaShape | None = None
    """Sizes of the Mamba-2 mixers; None for a network without."""
    arch: DecoderArch
    """The parent's own layers."""

    def __post_init__(self) -> None:
        for field in ("vocab", "hidden", "heads", "head_dim"):
            _positive(field, getattr(self, field))
        for block in self.arch.blocks:
            if isinstance(block.attention, Attention) and self.heads % block.attention.kv_heads:
                raise IllegalArch(f"{self.heads} query heads cannot share {block.attention.kv_heads} KV heads evenly")
            if isinstance(block.attention, Mamba):
                check_mamba(self.mamba, block.attention.heads)

    @property
    def layers(self) -> int:
        return len(self.arch.blocks)


def check_mamba(mamba: MambaShape | None, heads: int) -> MambaShape:
    """The Mamba-2 sizes, if there are any and `heads` heads can share the groups evenly; else raises `IllegalArch`."""
    if mamba is None:
        raise IllegalArch("a layer is Mamba-2, but the network's shape has no `mamba` sizes")
    if heads % mamba.groups:
        raise IllegalArch(f"{heads} Mamba heads cannot share {mamba.groups} SSM groups evenly")
    return mamba


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise IllegalArch(f"{name} must be a whole number of at least 1, got {value!r}")


def _to_json(variant: Variant) -> Any:
    match variant:
        case Attention():
            return {"kv_heads": variant.kv_heads, "window": variant.window}
        case Mamba():
            return {"mamba_heads": variant.heads}
        case Ffn():
            return {"width": variant.width}
        case _:
            return variant.name


def _block(data: Any, index: int) -> Block:
    entry = _only_keys(data, ("attention", "ffn"), f"layer {index}")
    attention, ffn = entry["attention"], entry["ffn"]
    simple: dict[Any, Linear | NoOp] = {"linear": Linear(), "noop": NoOp()}
    if isinstance(attention, str):
        if attention not in simple:
            raise IllegalArch(f"layer {index}: attention must be an object, 'linear' or 'noop', got {attention!r}")
        mixer: AttentionVariant = simple[attention]
    elif isinstance(attention, Mapping) and "mamba_heads" in attention:
        mixer = Mamba(heads=_only_keys(attention, ("mamba_heads",), f"layer {index}, mixer")["mamba_heads"])
    else:
        mixer = Attention(**_only_keys(attention, ("kv_heads", "window"), f"layer {index}, attention"))
    if isinstance(ffn, str):
        if ffn not in simple:
            raise IllegalArch(f"layer {index}: ffn must be an object, 'linear' or 'noop', got {ffn!r}")
        return Block(attention=mixer, ffn=simple[ffn])
    return Block(attention=mixer, ffn=Ffn(**_only_keys(ffn, ("width",), f"layer {index}, ffn")))


def _only_keys(data: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise IllegalArch(f"{where}: expected an object with the keys {', '.join(keys)}, got {data!r}")
    given = cast("Mapping[str, Any]", data)
    unknown, missing = sorted(set(given) - set(keys)), [k for k in keys if k not in given]
    if unknown or missing:
        raise IllegalArch(f"{where}: unknown keys {unknown}, missing keys {missing}; expected exactly {list(keys)}")
    return dict(given)
