"""Keys, values and states in memory that stays where it is, for steps that are timed: every call of one does the same work.

Shapes: B batch, T prompt tokens, C context (prompt and generated tokens), G KV heads; Mamba-2: H heads, P channels of a head,
N state.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from befit.cost.passes import prefill_note
from befit.cost.workload import Workload
from befit.lm.modeling_befit import has_cache


class FixedState(LinearAttentionLayer):
    """The state of one Mamba-2 mixer in memory that stays where it is: of a prompt's beginning, or of earlier tokens."""

    def __init__(self, mixer: Any, batch: int, begun: bool) -> None:
        """Zeros: inputs of the convolution (B, channels, kernel), and the state (B, H, P, N), in fp32 as the scan makes it."""
        super().__init__()
        weight, state = mixer.conv1d.weight, (batch, mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
        self.lazy_initialization(weight.new_zeros(batch, weight.shape[0], weight.shape[-1]))
        self.lazy_initialization(recurrent_states=weight.new_zeros(state, dtype=torch.float32))
        self.begun = begun
        self.has_previous_state[0] = self.begun

    def update_conv_state(self, conv_states: Tensor, *args: Any, **options: Any) -> Tensor:
        """The same as ever, but a prompt that was seen before is a new one the next time."""
        found = super().update_conv_state(conv_states, *args, **options)
        self.has_previous_state[0] = self.begun
        return found


class FixedCache(DynamicCache):
    """Keys and values in preallocated memory that stays where it is; to a model it looks like transformers' plain cache.

    Empty for a prefill (`past` 0), or holding `past` earlier tokens for decode: each call of a step then writes the same
    new token into the last place, so that every call does the same work. A later pass of a long prefill writes its tokens
    behind the earlier ones. torch's causal kernels begin at the first key, so there each token sees as many keys as the
    pass's tokens see in the mean, and no mask: as many products as engines compute, of which no token is of use.
    """

    def __init__(
        self,
        layers: Iterable[Any],
        workload: Workload,
        past: int,
        buffers: Sequence[tuple[Tensor, Tensor]] = (),
        *,
        requests: int | None = None,
    ) -> None:
        """Room for the context, or the window, in every layer that attends: keys and values (B, G, C, head_dim).

        With `buffers`, those of another cache of the same layers: a long context leaves no room for two. With `requests`,
        so many of them are in a pass of the prefill.
        """
        super().__init__()
        self.past, self.part = past, requests is not None
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.layers: list[Any] = []
        self.windows: dict[int, int] = {}
        self.unmasked: list[Any] = []
        for number, layer in enumerate(filter(has_cache, layers)):
            if layer.recurrent:
                # A pass takes as long whatever state it begins with.
                state = FixedState(layer.self_attn, requests or workload.batch, past > 0 and not self.part)
                self.layers.append(state)
                self.buffers.append((torch.empty(0), torch.empty(0)))  # numbered as all caches of the model are
                continue
            self.layers.append(DynamicLayer())
            if layer.window and layer.window < workload.context:
                self.windows[number] = layer.window
            elif self.part and past:
                self.unmasked.append(layer.self_attn)
            self.buffers.append(buffers[number] if buffers else _room(layer, workload))

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Around each call: in a later pass attention must not take its keys for those of the pass's own tokens."""
        for attention in self.unmasked:
            attention.is_causal = False
        try:
            yield
        finally:
            for attention in self.unmasked:
                attention.is_causal = True

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this call, in every layer."""
        del layer_idx
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that a mask for this call tells of, and the position of the first; as many as queries need no mask."""
        seen, window = self.past + query_length, self.windows.get(layer_idx)
        if self.past and window is not None:
            held = min(window - 1, self.past) + query_length
            return held, seen - held
        return (query_length, 0) if self.part else (seen, 0)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, G, tokens, head_dim); what this call attends to comes back."""
        requests, count = len(key_states), key_states.shape[2]
        stored, new = [pair[:requests] for pair in self.buffers[layer_idx]], (key_states, value_states)
        if self.part and self.past and layer_idx in self.windows:
            held = min(self.windows[layer_idx] - 1, self.past)
            keys, values = (
                torch.cat([old[:, :, old.shape[2] - held :], own], 2) for old, own in zip(stored, new, strict=True)
            )
            return keys, values
        room = stored[0].shape[2]
        seen = self.past + (count + 1) // 2 if self.part and self.past else min(self.past + count, room)
        count = min(count, room)
        for old, own in zip(stored, new, strict=True):
            old[:, :, seen - count : seen] = own[:, :, -count:]
        return (stored[0][:, :, :seen], stored[1][:, :, :seen]) if self.past else new


def _room(layer: Any, workload: Workload) -> tuple[Tensor, Tensor]:
    """Memory for keys and values; random numbers where no measured pass fills all of it."""
    weight, head_dim = layer.self_attn.k_proj.weight, layer.self_attn.head_dim
    length = min(workload.context, layer.window or workload.context)
    held = weight.new_zeros(2, workload.batch, weight.shape[0] // head_dim, length, head_dim)
    if prefill_note(workload):
        held.normal_()
    return held[0], held[1]
