"""A decoder language model whose layers may differ: the module that befit's checkpoints carry with them.

This file stands alone (it imports torch and transformers, nothing of befit), so that `save_pretrained` can ship it inside a
checkpoint and `AutoModelForCausalLM.from_pretrained(dir, trust_remote_code=True)` loads it on a machine without befit.

The configuration is the parent family's own (LlamaConfig, ...) with transformers' `per_layer_config`, layer by layer:
`num_key_value_heads`, `intermediate_size` and `sliding_window` override the global value, `skip` lists sub-blocks that are
absent with their norm ("attention", "mlp"), and `linear` lists sub-blocks that are one square matrix. All other parts are
the family's own transformers classes, and the tensor names are the family's own too.

Shapes: B batch, T tokens of this call, K tokens seen by attention (cache included), D hidden, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import (
    MistralAttention,
    MistralMLP,
    MistralRMSNorm,
    MistralRotaryEmbedding,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm, Qwen3RotaryEmbedding


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The four classes of a family that a layer-by-layer model is built from."""

    attention: type[nn.Module]
    mlp: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]


PARTS = {
    "llama": Parts(attention=LlamaAttention, mlp=LlamaMLP, norm=LlamaRMSNorm, rotary=LlamaRotaryEmbedding),
    "mistral": Parts(attention=MistralAttention, mlp=MistralMLP, norm=MistralRMSNorm, rotary=MistralRotaryEmbedding),
    "qwen2": Parts(attention=Qwen2Attention, mlp=Qwen2MLP, norm=Qwen2RMSNorm, rotary=Qwen2RotaryEmbedding),
    "qwen3": Parts(attention=Qwen3Attention, mlp=Qwen3MLP, norm=Qwen3RMSNorm, rotary=Qwen3RotaryEmbedding),
}


@dataclass(kw_only=True)
class Context:
    """What every layer of one forward call shares."""

    rope: tuple[Tensor, Tensor] | None
    """Cosines and sines of the rotary embedding, each (B or 1, T, head_dim); None in a family without one."""
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)
    """Attention mask for each window; None where the kernel's own causal mask says it all. Else (B or 1, 1, T, K)."""
    cache: Cache | None = None
    """Keys and values of earlier tokens, updated by each attention."""
    padding: Tensor | None = None
    """1 for tokens of this call, 0 for padding (B, T), for mixers that are no attention; None where nothing is padded."""


class LinearAttention(nn.Module):
    """A single matrix in place of attention: every token attends to itself alone."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_attn(x)


class LinearMlp(nn.Module):
    """A single matrix in place of the feed-forward network."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_mlp(x)


class BefitLayer(GradientCheckpointingLayer):
    """One decoder layer: `x + attention(norm(x))`, then `x + mlp(norm(x))`; either half may be absent or linear."""

    recurrent = False
    """Whether the mixer remembers a state of fixed size, in place of keys and values."""

    def __init__(self, config: Any, index: int, cache_index: int) -> None:
        super().__init__()
        parts, own = PARTS[config.model_type], config.per_layer_config[index]
        skip, linear = getattr(own, "skip", ()), getattr(own, "linear", ())
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.window = window_of(config, index)
        self.input_layernorm = self.self_attn = self.post_attention_layernorm = self.mlp = None
        if "attention" not in skip:
            self.input_layernorm = parts.norm(hidden, eps=eps)
            if "attention" in linear:
                self.self_attn = LinearAttention(hidden)
            else:
                attention: Any = parts.attention(own, index)
                # The family numbers caches by layer; here only real attention has one, counted without gaps.
                attention.layer_idx = cache_index
                self.self_attn = attention
        if "mlp" not in skip:
            self.post_attention_layernorm = parts.norm(hidden, eps=eps)
            self.mlp = LinearMlp(hidden) if "mlp" in linear else parts.mlp(own)

    def attend(self, x: Tensor, context: Context) -> Tensor:
        """The first half: (B, T, D) -> (B, T, D), residual included."""
        if self.self_attn is None or self.input_layernorm is None:
            return x
        normed = self.input_layernorm(x)
        if isinstance(self.self_attn, LinearAttention):
            return x + self.self_attn(normed)
        mask = context.masks[self.window]
        mixed, _ = self.self_attn(
            normed, position_embeddings=context.rope, attention_mask=mask, past_key_values=context.cache
        )
        return x + mixed

    def feed(self, x: Tensor) -> Tensor:
        """The second half: (B, T, D) -> (B, T, D), residual included."""
        if self.mlp is None or self.post_attention_layernorm is None:
            return x
        return x + self.mlp(self.post_attention_layernorm(x))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.feed(self.attend(x, context))


class BefitModel(nn.Module):
    """Embedding, layers, final norm."""

    layer: type[nn.Module] = BefitLayer

    def __init__(self, config: Any) -> None:
        super().__init__()
        parts = PARTS[config.model_type]
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        numbers = cache_numbers(config)
        self.layers: Any = nn.ModuleList(BefitLayer(config, i, numbers[i]) for i in range(config.num_hidden_layers))
        self.norm = parts.norm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb: nn.Module | None = parts.rotary(config)

    def compute(self) -> None:
        """Make the rotary table, which is computed and not stored, where the weights are: a meta device has none."""
        if self.rotary_emb is not None:
            self.rotary_emb = PARTS[self.config.model_type].rotary(self.config).to(self.embed_tokens.weight.device)

    def begin(
        self,
        x: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        windows: Iterable[int | None] = (),
    ) -> Context:
        """Everything the layers share for embedded tokens x (B, T, D); `cache` already fits this model.

        `windows` asks for the masks of windows that no layer of this model has, for trying other layers in it.
        """
        count = x.shape[1]
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(f"attention_mask must have the shape (B, K), got {tuple(attention_mask.shape)}")
        context = Context(rope=None, cache=cache)
        if self.rotary_emb is not None:
            if position_ids is None:
                past = 0 if cache is None else cache.get_seq_length()
                position_ids = (torch.arange(count, device=x.device) + past).unsqueeze(0)
            context.rope = self.rotary_emb(x, position_ids=position_ids)
        if attention_mask is not None and count > 1 and not attention_mask.all():
            context.padding = attention_mask[:, -count:]
        attentions = {
            layer.window: layer.self_attn for layer in self.layers if has_cache(layer) and not layer.recurrent
        }
        eager = any(attention.config._attn_implementation == "eager" for attention in attentions.values())
        wanted = {window: attention.layer_idx for window, attention in attentions.items()}
        for window, number in ({w: 0 for w in windows} | wanted).items():
            mask = _mask(window, count, number, cache, attention_mask, x.device, eager)
            context.masks[window] = mask if mask is None or not eager else _additive(mask, x.dtype)
        return context


class BefitForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model of one of the families in `PARTS`, every layer as `config.per_layer_config` says."""

    body: type[BefitModel] = BefitModel
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BefitLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        """Leave the padding mask as it is: layers differ in their windows, and `begin` makes a mask for each."""
        del kwargs
        return attention_mask

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> Any:
        """An empty cache for `fit_cache` to fill: older transformers read a global `sliding_window` to make one."""
        plain = generation_config.use_cache and generation_config.cache_implementation in (None, "dynamic")
        if plain and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = DynamicCache()
            return None
        family_way: Any = super()
        return family_way._prepare_cache_for_generation(generation_config, model_kwargs, *args)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) for tokens (B, T), as every transformers causal model gives them.

        `hidden_states`, if asked for, holds the input of every layer and the final hidden state after the norm.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.training and any(layer.gradient_checkpointing for layer in self.model.layers):
            use_cache = False  # Layers run a second time in the backward pass and would enter their keys twice.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if past_key_values is not None:
            fit_cache(past_key_values, self.model)
        context = self.model.begin(x, attention_mask=attention_mask, position_ids=position_ids, cache=past_key_values)
        states: list[Tensor] = []
        for layer in self.model.layers:
            states.append(x)
            x = layer(x, context)
        x = self.model.norm(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        hidden = (*states, x) if output_hidden_states else None
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values, hidden_states=hidden)


class BefitLlamaForCausalLM(BefitForCausalLM):
    """A Llama, layer by layer. transformers registers remote code by configuration class, hence a class for each family."""

    config_class = LlamaConfig


class BefitMistralForCausalLM(BefitForCausalLM):
    """A Mistral, layer by layer."""

    config_class = MistralConfig


class BefitQwen2ForCausalLM(BefitForCausalLM):
    """A Qwen 2, layer by layer."""

    config_class = Qwen2Config


class BefitQwen3ForCausalLM(BefitForCausalLM):
    """A Qwen 3, layer by layer."""

    config_class = Qwen3Config


def has_cache(layer: Any) -> bool:
    """Whether a layer has a mixer that remembers something: keys and values, or a state."""
    return layer.self_attn is not None and not isinstance(layer.self_attn, LinearAttention)


def window_of(config: Any, index: int) -> int | None:
    """The layer's sliding window in tokens; families with `layer_types` use it only where the type says so."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[index] != "sliding_attention":
        return None
    return getattr(config.per_layer_config[index], "sliding_window", None)


def cache_numbers(config: Any) -> list[int]:
    """For each layer, how many layers before it have a cache: the number of its own cache."""
    numbers, count = [], 0
    for own in config.per_layer_config:
        numbers.append(count)
        count += "attention" not in getattr(own, "skip", ()) and "attention" not in getattr(own, "linear", ())
    return numbers


def fit_cache(cache: Cache, model: BefitModel) -> None:
    """Give an unused cache exactly one entry for each mixer that remembers, sliding where the attention is.

    `generate` builds caches with one entry a layer; those of layers without attention would stay empty, and the first of
    them would report a length of zero for all.
    """
    entries: list[Any] = cache.layers
    states = [entry.conv_states[0] if isinstance(entry, LinearAttentionLayer) else entry.keys for entry in entries]
    if isinstance(cache, (StaticCache, DynamicCache)) and all(state is None for state in states):
        room = max((entry.max_cache_len for entry in entries if isinstance(entry, StaticLayer)), default=None)
        cache.layers = [_entry(layer, room) for layer in model.layers if has_cache(layer)]


def _entry(layer: Any, room: int | None) -> Any:
    """An empty cache for a layer: with room for so many tokens, or growing."""
    w = layer.window
    if layer.recurrent:
        return LinearAttentionLayer()
    if room is None:
        return DynamicSlidingWindowLayer(sliding_window=w) if w else DynamicLayer()
    return StaticSlidingWindowLayer(max_cache_len=room, sliding_window=w) if w else StaticLayer(max_cache_len=room)


def _mask(
    window: int | None,
    count: int,
    number: int,
    cache: Cache | None,
    padding: Tensor | None,
    device: torch.device,
    eager: bool,
) -> Tensor | None:
    """True where query t may look at key k, (B or 1, 1, T, K); None where `scaled_dot_product_attention` needs none."""
    past, length, offset = 0, count, 0
    if cache is not None:
        past = cache.get_seq_length()
        length, offset = cache.get_mask_sizes(count, number)
    padded = padding is not None and not bool(padding.all())
    static = cache is not None and not isinstance(cache, DynamicCache)  # then keys may be places not yet filled
    fresh = not static and length == count and (window is None or count <= window)
    single = not static and count == 1
    if not eager and not padded and (fresh or single):
        return None
    query = torch.arange(count, device=device) + past
    key = torch.arange(length, device=device) + offset
    allowed = (key <= query[:, None]) & (key >= 0)
    if window is not None:
        allowed = allowed & (key > query[:, None] - window)
    allowed = allowed[None, None]
    if padded and padding is not None:
        known = key.clamp(0, padding.shape[1] - 1)
        visible = padding[:, known].bool() & (key < padding.shape[1])
        allowed = allowed & visible[:, None, None, :]
        # A query that may look nowhere (left padding) would make softmax divide zero by zero.
        allowed = allowed | ~allowed.any(-1, keepdim=True)
    return allowed


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The same mask as numbers to add to attention logits."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
