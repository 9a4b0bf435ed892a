"""A decoder as a function of its weights: the forward of a member of a nested model, whatever its widths.

Weights are an argument, so views of a parent's weights (`befit.lm.prefix`) run as well as weights of one's own, and a smaller
member costs proportionally less. There is no module, no width hidden in a state, and nothing of full width. Names are those
of the family's own transformers class; `befit.lm.ssd` computes the state space scan.

Gates are for whoever must know what a channel is worth (the router's gradient, masking as a baseline): factors of 0 and 1 on
every axis. With them each norm divides by the number of channels that are open, so that the result equals the sliced
network's; dividing by the width instead would shrink every output by the square root of the kept share.

Shapes: B batch, T tokens, D hidden, H query heads, G KV heads, R = H / G, d head_dim, I FFN width; Mamba-2: Q SSM groups, M
heads of a group, P channels of a head, N state, C = QMP + 2QN convolved channels.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from befit.arch.decoder import Attention, DecoderShape, Ffn, Mamba
from befit.errors import IllegalArch, UnsupportedModel
from befit.lm import ssd
from befit.lm.family import Family
from befit.lm.modeling_befit import PARTS

Weights = Mapping[str, Tensor]
Tap = Callable[[str, int, Tensor], None]
"""Is shown intermediate values: a name (see `hidden_states`), the layer's number, the value."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
"""Of FFNs, by transformers' names."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a decoder is beside its weights."""

    shape: DecoderShape
    family: Family
    eps: float
    """Added to the mean square in every norm."""
    activation: str
    """Of the FFN, one of `ACTIVATIONS`."""
    rotary: nn.Module | None
    """transformers' rotary embedding, which depends on head_dim alone and so serves every member; None for none."""
    dt_min: float = 0.0
    """Smallest time step of Mamba-2."""
    chunk: int = 64
    """Tokens of one chunk of the scan; changes speed only."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise UnsupportedModel(
                f"the parent's FFN has the activation {self.activation!r}; a nested model knows {', '.join(ACTIVATIONS)}"
            )


def network_of(config: Any, family: Family) -> Network:
    """The network of a transformers configuration. Raises `UnsupportedModel` as `Family.describe` does."""
    shape = family.describe(config)
    if shape.mamba is not None or not shape.gated:
        return Network(
            shape=shape,
            family=family,
            eps=config.layer_norm_epsilon,
            activation=config.mlp_hidden_act,
            rotary=None,
            dt_min=config.time_step_min,
            chunk=min(config.chunk_size, 64),
        )
    return Network(
        shape=shape,
        family=family,
        eps=config.rms_norm_eps,
        activation=config.hidden_act,
        rotary=PARTS[config.model_type].rotary(config),
    )


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Factors on every axis, usually 0 or 1; None leaves an axis open. A prefix of ones equals a slice."""

    hidden: Tensor | None = None
    """(D,)"""
    ffn: Tensor | None = None
    """(I,), or (layers, I) where layers differ."""
    kv: Tensor | None = None
    """(G,)"""
    query: Tensor | None = None
    """(R,): query heads inside their group."""
    mamba_heads: Tensor | None = None
    """(M,): heads inside their SSM group."""
    channels: Tensor | None = None
    """(P,)"""
    state: Tensor | None = None
    """(N,)"""
    layers: Tensor | None = None
    """(layers,): what a layer adds to the residual stream is multiplied by it."""


OPEN = Gates()


@dataclass(kw_only=True)
class Memory:
    """What decoding remembers of earlier tokens, layer by layer; filled by `hidden_states`, empty at the start."""

    seen: int = 0
    """Tokens so far."""
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Attention: keys and values (B, G, K, d). Mamba-2: the convolution's last inputs (B, C, k - 1), the state (B, H, P, N)."""


def logits(net: Network, weights: Weights, tokens: Tensor, *, memory: Memory | None = None) -> Tensor:
    """Logits (B, T, V) for token ids (B, T)."""
    return F.linear(hidden_states(net, weights, tokens, memory=memory), head(net, weights))


def head(net: Network, weights: Weights) -> Tensor:
    """The output projection (V, D)."""
    return weights[f"{net.family.embedding}.weight" if net.shape.tied else "lm_head.weight"]


def hidden_states(
    net: Network,
    weights: Weights,
    tokens: Tensor,
    *,
    gates: Gates = OPEN,
    memory: Memory | None = None,
    tap: Tap | None = None,
    recompute: bool = False,
) -> Tensor:
    """The last hidden states (B, T, D), after the final norm, for token ids (B, T).

    `weights` are those of a network of `net.shape`. `memory` holds earlier tokens and is updated; `recompute` keeps only the
    layers' inputs for the backward pass (gradient checkpointing). `tap` is shown, of each layer: "input" (B, T, D), the
    residual stream before it; "norm" (B, T, D), after its norm; and "ffn" (B, T, I) before the activation, "heads"
    (B, T, G, R, d) what attention hands to its output projection, "mamba" (B, T, Q, M, P) the x-projection, "state"
    (B, T, Q, N) the B-projection times the C-projection; "output" (B, T, D), what it adds.
    """
    run = _Run(net=net, weights=weights, gates=gates, memory=memory, tap=tap or _ignore)
    x = _gate(F.embedding(tokens, weights[f"{net.family.embedding}.weight"]), gates.hidden)
    rope = None
    if net.rotary is not None:
        places = torch.arange(tokens.shape[1], device=tokens.device) + (memory.seen if memory else 0)
        rope = net.rotary(x, position_ids=places[None])
    for index in range(net.shape.layers):
        if recompute and torch.is_grad_enabled():
            x = checkpoint(run.layer, index, x, rope, use_reentrant=False)  # type: ignore[assignment]
        else:
            x = run.layer(index, x, rope)
    if memory is not None:
        memory.seen += tokens.shape[1]
    return run.norm(x, f"{net.family.final_norm}.weight")


def embed(net: Network, weights: Weights, tokens: Tensor) -> Tensor:
    """The residual stream (B, T, D) before the first layer, for token ids (B, T)."""
    return F.embedding(tokens, weights[f"{net.family.embedding}.weight"])


def advance(net: Network, weights: Weights, x: Tensor, layers: Iterable[int]) -> Tensor:
    """The residual stream (B, T, D) after the given layers, one after the other, from the stream before the first of them.

    A layer that is not named is left out: what depth search needs, which runs from the first layer that changes.
    """
    run = _Run(net=net, weights=weights, gates=OPEN, memory=None, tap=_ignore)
    rope = None if net.rotary is None else net.rotary(x, position_ids=torch.arange(x.shape[1], device=x.device)[None])
    for index in layers:
        x = run.layer(index, x, rope)
    return x


def finish(net: Network, weights: Weights, x: Tensor) -> Tensor:
    """The last hidden states (B, T, D), which the output projection reads, from the stream after the last layer."""
    return _rms_norm(x, weights[f"{net.family.final_norm}.weight"], net.eps)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One call of `hidden_states`."""

    net: Network
    weights: Weights
    gates: Gates
    memory: Memory | None
    tap: Tap

    def layer(self, index: int, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, D) -> (B, T, D), residual included."""
        block, family, base = self.net.shape.arch.blocks[index], self.net.family, f"model.layers.{index}."
        self.tap("input", index, x)
        if isinstance(block.attention, Attention | Mamba):
            normed = self.norm(x, f"{base}{family.attention_norm}.weight")
            self.tap("norm", index, normed)
            if isinstance(block.attention, Attention):
                x = self._add(index, x, self._attention(index, block.attention, normed, rope))
            else:
                x = self._add(index, x, self._mamba(index, block.attention, normed))
        if isinstance(block.ffn, Ffn):
            normed = self.norm(x, f"{base}{family.ffn_norm}.weight")
            self.tap("norm", index, normed)
            x = self._add(index, x, self._ffn(index, normed))
        return x

    def norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm over the open channels."""
        return _rms_norm(x, self.weights[name], self.net.eps, self.gates.hidden)

    def _add(self, index: int, x: Tensor, output: Tensor) -> Tensor:
        output = _gate(output, self.gates.hidden)
        if self.gates.layers is not None:
            output = output * self.gates.layers[index]
        self.tap("output", index, output)
        return x + output

    def _linear(self, index: int, name: str, x: Tensor) -> Tensor:
        base = f"model.layers.{index}.{name}"
        return F.linear(x, self.weights[f"{base}.weight"], self.weights.get(f"{base}.bias"))

    def _ffn(self, index: int, x: Tensor) -> Tensor:
        family, act = self.net.family, ACTIVATIONS[self.net.activation]
        up = self._linear(index, family.up, x)
        if self.net.shape.gated:
            first = self._linear(index, family.gate, x)
            self.tap("ffn", index, first)
            inner = act(first) * up
        else:
            self.tap("ffn", index, up)
            inner = act(up)
        gate = self.gates.ffn
        return self._linear(
            index, family.down, _gate(inner, gate[index] if gate is not None and gate.ndim > 1 else gate)
        )

    def _attention(self, index: int, own: Attention, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        shape, family, (batch, time, _) = self.net.shape, self.net.family, x.shape
        q, k, v = (
            self._linear(index, name, x).view(batch, time, -1, shape.head_dim).transpose(1, 2)
            for name in (family.query, family.key, family.value)
        )
        if shape.qk_norm:
            base = f"model.layers.{index}.self_attn"
            q = _rms_norm(q, self.weights[f"{base}.q_norm.weight"], self.net.eps)
            k = _rms_norm(k, self.weights[f"{base}.k_norm.weight"], self.net.eps)
        if rope is not None:
            q, k = _rotate(q, rope), _rotate(k, rope)
        past = 0
        if self.memory is not None:
            if index in self.memory.layers:
                past = self.memory.layers[index][0].shape[2]
                k, v = (torch.cat(pair, dim=2) for pair in zip(self.memory.layers[index], (k, v), strict=True))
            self.memory.layers[index] = k, v
        mask = None if own.window is None and not past else _mask(time, past, own.window, x.device)
        repeats = shape.heads // own.kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)  # (B, H, T, d)
        heads = mixed.transpose(1, 2).unflatten(2, (own.kv_heads, repeats))  # (B, T, G, R, d)
        self.tap("heads", index, heads)
        if self.gates.kv is not None:
            heads = heads * self.gates.kv[:, None, None]
        if self.gates.query is not None:
            heads = heads * self.gates.query[:, None]
        return self._linear(index, family.out, heads.flatten(2))

    def _mamba(self, index: int, own: Mamba, x: Tensor) -> Tensor:
        sizes, gates, base = self.net.shape.mamba, self.gates, f"model.layers.{index}.{self.net.family.mamba}"
        if sizes is None:
            raise IllegalArch("a layer is Mamba-2, but the network's shape has no `mamba` sizes")
        inner, state = own.heads * sizes.head_dim, sizes.groups * sizes.state
        z, xbc, dt = self._linear(index, f"{self.net.family.mamba}.in_proj", x).split(
            [inner, inner + 2 * state, own.heads], dim=-1
        )
        self.tap("mamba", index, xbc[..., :inner].unflatten(-1, (sizes.groups, -1, sizes.head_dim)))
        xbc, past = self._convolve(index, f"{base}.conv1d", xbc, sizes.kernel)
        value, b, c = xbc.split([inner, state, state], dim=-1)
        b, c = (part.unflatten(-1, (sizes.groups, sizes.state)) for part in (b, c))
        self.tap("state", index, b * c)
        if gates.state is not None:
            b = b * gates.state
        dt = F.softplus(_wide(dt) + _wide(self.weights[f"{base}.dt_bias"]))
        if past is None or x.shape[1] > 1:  # transformers' class, too, has no lower limit when it decodes
            dt = dt.clamp_min(self.net.dt_min)
        decay = -_wide(self.weights[f"{base}.A_log"]).exp()
        y, last = ssd.scan(
            value.unflatten(-1, (own.heads, sizes.head_dim)),
            dt,
            decay,
            b,
            c,
            self.weights[f"{base}.D"],
            chunk=self.net.chunk,
            state=past,
        )
        if self.memory is not None:
            self.memory.layers[index] = self.memory.layers[index][0], last
        gated = (_wide(y.flatten(2)) * F.silu(_wide(z))).unflatten(-1, (sizes.groups, -1))  # (B, T, Q, MP)
        gate = _head_gate(gates, own.heads // sizes.groups, sizes.head_dim, x.device)
        weight = self.weights[f"{base}.norm.weight"].unflatten(0, (sizes.groups, -1))
        normed = _rms_norm(_gate(gated, gate), weight, self.net.eps, gate).to(y.dtype)
        return self._linear(index, f"{self.net.family.mamba}.out_proj", normed.flatten(2))

    def _convolve(self, index: int, name: str, x: Tensor, kernel: int) -> tuple[Tensor, Tensor | None]:
        """Causal convolution of x (B, T, C) and SiLU; with it the scan's state after earlier tokens, if there were any."""
        rows, state = x.transpose(1, 2), None
        earlier = rows.new_zeros(*rows.shape[:2], kernel - 1)
        if self.memory is not None:
            if index in self.memory.layers:
                earlier, state = self.memory.layers[index]
            rows = torch.cat([earlier, rows], dim=2)
            # The scan puts the state after these tokens in its place.
            self.memory.layers[index] = rows[:, :, rows.shape[2] - kernel + 1 :], rows.new_zeros(0)
        else:
            rows = F.pad(rows, (kernel - 1, 0))
        mixed = F.conv1d(rows, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), groups=rows.shape[1])
        return F.silu(mixed).transpose(1, 2), state


def _gate(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * gate


def _wide(x: Tensor) -> Tensor:
    """In fp32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _head_gate(gates: Gates, heads: int, channels: int, device: torch.device) -> Tensor | None:
    """The gate of a group's inner channels (M * P,)."""
    if gates.mamba_heads is None and gates.channels is None:
        return None
    one = torch.ones((), device=device)
    by_head = one.expand(heads) if gates.mamba_heads is None else gates.mamba_heads
    by_channel = one.expand(channels) if gates.channels is None else gates.channels
    return (by_head[:, None] * by_channel).flatten()


def _rms_norm(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None = None) -> Tensor:
    """x / rms(x) * weight over the last dimension, of which only the open channels count."""
    wide = _wide(x)
    if gate is None and x.is_cuda:  # one kernel instead of five; on a CPU it is the slower of the two
        return F.rms_norm(wide, weight.shape, weight.to(wide.dtype), eps).to(x.dtype)
    count = x.shape[-1] if gate is None else gate.sum()
    scaled = wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) / count + eps)
    return (scaled * weight).to(x.dtype)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of x (B, H, T, d); cosines and sines are (1, T, d)."""
    cos, sin = (part[:, None] for part in rope)
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def _mask(time: int, past: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the past + time tokens each of the last `time` sees, (T, K)."""
    query = torch.arange(past, past + time, device=device)[:, None]
    key = torch.arange(past + time, device=device)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def _ignore(name: str, index: int, value: Tensor) -> None:
    """The tap that looks at nothing."""
