"""A Nemotron-H whose layers may differ: beside `modeling_befit`, the module that befit's hybrid checkpoints carry with them.

The two files stand alone together: `save_pretrained` ships this one and, because of the relative import, the other.

The configuration is NemotronHConfig with transformers' `per_layer_config`: `mamba_num_heads`, `num_key_value_heads`,
`sliding_window` and `intermediate_size` override the global value in a layer. A layer has one mixer or one FFN;
`layers_block_type` says which, and "mlp" with `skip` or `linear` also stands for a layer that has lost its own: to nothing, or
to one square matrix in the place of its "attention" (any mixer) or its "mlp". All other parts are transformers' own classes,
and the tensor names are the family's own too.

Shapes: B batch, T tokens of this call, D hidden.
"""

from typing import Any

from torch import Tensor, nn
from transformers import NemotronHConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.nemotron_h.modeling_nemotron_h import (
    NemotronHAttention,
    NemotronHMamba2Mixer,
    NemotronHMLP,
    NemotronHRMSNorm,
)

from .modeling_befit import BefitForCausalLM, BefitModel, Context, LinearAttention, LinearMlp

CACHED = ("linear_attention", "full_attention")
"""Kinds of layers, in `layers_block_type`, that remember earlier tokens: Mamba-2 and attention."""


class BefitHybridLayer(GradientCheckpointingLayer):
    """One layer, `x + mixer(norm(x))`: its mixer is Mamba-2, attention, an FFN, one matrix, or absent with its norm."""

    def __init__(self, config: Any, index: int, cache_index: int) -> None:
        super().__init__()
        own, kind = config.per_layer_config[index], config.layers_block_type[index]
        skip, linear = getattr(own, "skip", ()), getattr(own, "linear", ())
        mixer: Any = None
        if kind == "linear_attention":
            mixer = NemotronHMamba2Mixer(own, index)
        elif kind == "full_attention":
            mixer = NemotronHAttention(own, index)
        elif linear:
            mixer = LinearAttention(config.hidden_size) if "attention" in linear else LinearMlp(config.hidden_size)
        elif "mlp" not in skip:
            mixer = NemotronHMLP(own)
        if kind in CACHED:
            # The family numbers caches by layer; here only layers that remember have one, counted without gaps.
            mixer.layer_idx = cache_index
        self.window = own.sliding_window if kind == "full_attention" else None
        self.recurrent = kind == "linear_attention"
        self.norm = None if mixer is None else NemotronHRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer: Any = mixer

    @property
    def self_attn(self) -> Any:
        """What mixes tokens or stands in for it, under the name that it has in other families; None in FFN layers."""
        return None if isinstance(self.mixer, (NemotronHMLP, LinearMlp)) else self.mixer

    def attend(self, x: Tensor, context: Context) -> Tensor:
        """The layer if it mixes tokens: (B, T, D) -> (B, T, D), residual included."""
        if self.self_attn is None or self.norm is None:
            return x
        normed = self.norm(x)
        if isinstance(self.mixer, LinearAttention):
            return x + self.mixer(normed)
        if self.recurrent:
            return x + self.mixer(normed, cache_params=context.cache, attention_mask=context.padding)
        mixed, _ = self.mixer(normed, attention_mask=context.masks[self.window], past_key_values=context.cache)
        return x + mixed

    def feed(self, x: Tensor) -> Tensor:
        """The layer if it is an FFN: (B, T, D) -> (B, T, D), residual included."""
        if self.self_attn is not None or self.norm is None:
            return x
        return x + self.mixer(self.norm(x))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.feed(self.attend(x, context))


class BefitHybridModel(BefitModel):
    """Embedding, layers, final norm, under the names of Nemotron-H."""

    layer = BefitHybridLayer

    def __init__(self, config: Any) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        kinds = config.layers_block_type
        numbers = [sum(kind in CACHED for kind in kinds[:i]) for i in range(len(kinds))]
        self.layers = nn.ModuleList(BefitHybridLayer(config, i, numbers[i]) for i in range(len(kinds)))
        self.norm_f = NemotronHRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.rotary_emb = None

    @property
    def embed_tokens(self) -> Any:
        """The embedding, under the name that it has in other families."""
        return self.embeddings

    @property
    def norm(self) -> Any:
        """The final norm, under the name that it has in other families."""
        return self.norm_f


class BefitNemotronHForCausalLM(BefitForCausalLM):
    """A Nemotron-H, layer by layer."""

    config_class = NemotronHConfig
    body = BefitHybridModel
    _no_split_modules = ["BefitHybridLayer"]
    _is_stateful = True
    _tied_weights_keys = {}  # The family's own class never ties, whatever its configuration says.

    def set_input_embeddings(self, value: Any) -> None:
        self.model.embeddings = value
