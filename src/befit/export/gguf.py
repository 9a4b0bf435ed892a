"""A language model as one GGUF file for llama.cpp (and all that is built on it).

Where all layers are alike the file is of the family's own architecture there (`llama`, `qwen2`, `qwen3`); where they differ,
of `deci`, which has KV heads and FFN widths for each layer; hybrids are `nemotron_h`, which has them too. Three things about
`deci` in llama.cpp shape what is written:

- a layer whose FFN has width 0 hands on its input, so that its attention is lost: a layer with attention and no FFN gets
  an FFN of 32 zeros instead, which adds nothing;
- sizes are taken from the first layer: where that has no attention, it gets a square matrix of zeros in its place, as a
  linear sub-block (no KV heads), which adds nothing either;
- rotary embeddings turn neighbouring channels, not halves: rows of queries and keys change places.

A layer of which nothing is left is not written; those after it move up.

Source: llama.cpp's src/models/deci.cpp and nemotron-h.cpp, read for what they expect; the `gguf` library writes the file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from befit.arch.decoder import Attention, Block, Ffn, Linear, Mamba, NoOp
from befit.errors import BefitError, RunConflict, UnsupportedModel
from befit.export.gguf_tokenizer import Tokens, read_tokens
from befit.export.language import Language, is_plain, open_language, present, uniform
from befit.lm.checkpoint import Checkpoint
from befit.lm.modeling_befit import PARTS
from befit.rundir import replacing

DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Number formats of the matrices, by the names that users write and those of the `gguf` library; vectors stay fp32."""

ZEROS = 32
"""Width of an FFN that stands for none: one block of Q8_0."""

PLAIN = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architecture for a family whose layers are alike."""

TURNED = ("llama", "deci")
"""Architectures whose rotary embedding turns neighbouring channels."""

OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
OUTSIDE |= {"model.embeddings": "token_embd", "model.norm_f": "output_norm"}
INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.linear_attn": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "norm": "attn_norm",
    "mixer.q_proj": "attn_q",
    "mixer.k_proj": "attn_k",
    "mixer.v_proj": "attn_v",
    "mixer.o_proj": "attn_output",
    "mixer.up_proj": "ffn_up",
    "mixer.down_proj": "ffn_down",
    "mixer.in_proj": "ssm_in",
    "mixer.conv1d": "ssm_conv1d",
    "mixer.norm": "ssm_norm",
    "mixer.out_proj": "ssm_out",
}
ALONE = {"mixer.A_log": "ssm_a", "mixer.D": "ssm_d", "mixer.dt_bias": "ssm_dt.bias"}
"""transformers' names of tensors and llama.cpp's: outside the layers, inside, and those without an ending."""


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A file for llama.cpp."""

    path: Path
    architecture: str
    """llama.cpp's: llama, qwen2, qwen3, deci or nemotron_h."""
    dtype: str
    """Of the matrices."""
    layers: tuple[int, ...]
    """The layers of the checkpoint that were written, in order."""
    kept: int
    """Matrices left in fp16 because their rows are no multiples of 32, in q8_0."""
    size_bytes: int

    @property
    def command(self) -> str:
        """The line that serves it."""
        return f"llama-server -m {self.path}"

    def notes(self) -> tuple[str, ...]:
        """What a user of this file should know."""
        return (f"{self.kept} matrices are in fp16: q8_0 needs rows of a multiple of 32",) if self.kept else ()


def export_gguf(source: Path | str, out: Path, *, dtype: str | None = None) -> GgufFile:
    """Write the checkpoint in `source` (a run of `befit puzzle`, its child, a cut, a plain checkpoint) to the file `out`.

    `dtype`: fp32, fp16, bf16 or q8_0, by default that of the checkpoint. Raises `UnsupportedModel` with the reason, before
    anything is written, for what llama.cpp cannot compute; `RunConflict` for a folder that is no checkpoint, and for an `out`
    that is there and no GGUF file.
    """
    if find_spec("gguf") is None:
        raise BefitError("export to GGUF needs the library gguf: pip install 'befit[export]'")
    found = open_language(source)
    dtype = dtype or found.dtype
    if dtype not in DTYPES:
        raise UnsupportedModel(f"a GGUF file's dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    _check_file(out)
    layers = present(found.arch)
    blocks = [found.arch.blocks[i] for i in layers]
    architecture = architecture_of(blocks, found)
    tokens = read_tokens(found.folder, found.shape.vocab)
    with found.weights() as weights, replacing(out) as temporary:
        file = _File(source=found, weights=weights, layers=layers, architecture=architecture, dtype=dtype)
        kept = file.write(temporary, tokens)
    return GgufFile(
        path=out,
        architecture=architecture,
        dtype=dtype,
        layers=layers,
        kept=kept,
        size_bytes=out.stat().st_size,
    )


def _check_file(out: Path) -> None:
    """Raise `RunConflict` if `out` is anything but an earlier export."""
    if out.is_dir():
        raise RunConflict(
            f"{out} is a folder, this export needs a file; give another --out, such as {out / 'child.gguf'}"
        )
    if out.exists() and out.stat().st_size:
        with out.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise RunConflict(f"{out} exists and is no GGUF file; give another --out")


def architecture_of(blocks: list[Block], source: Language) -> str:
    """llama.cpp's architecture for these layers; raises `UnsupportedModel` with the reason if there is none."""
    shape, config = source.shape, source.config
    plain = is_plain(blocks, shape)
    halves = [half for block in blocks for half in (block.attention, block.ffn)]
    reasons = []
    if not blocks:
        reasons.append("no layer is left of it")
    if any(isinstance(half, Attention) and half.window is not None for half in halves):
        reasons.append(
            "it has windows, which llama.cpp does not compute in these families (search with --target llama.cpp)"
        )
    if shape.family == "nemotron_h":
        if any(isinstance(half, Linear) for half in halves):
            reasons.append("it has linear sub-blocks, which llama.cpp's nemotron_h does not know")
        if len({half.heads for half in halves if isinstance(half, Mamba)}) > 1:
            reasons.append("its Mamba layers have different numbers of heads, and llama.cpp has one number for all")
        if not any(isinstance(half, Attention) for half in halves):
            reasons.append("it has no attention layer, and llama.cpp's nemotron_h needs one")
        if config.mlp_hidden_act != "relu2":
            reasons.append(f"its FFN's activation is {config.mlp_hidden_act}, llama.cpp computes relu2")
    else:
        reasons += _dense_reasons(blocks, source, plain)
    if reasons:
        raise UnsupportedModel(f"this architecture cannot be written for llama.cpp: {'; '.join(reasons)}")
    return "nemotron_h" if shape.family == "nemotron_h" else PLAIN[shape.family] if plain else "deci"


def _dense_reasons(blocks: list[Block], source: Language, plain: bool) -> list[str]:
    shape, rope = source.shape, source.config.rope_parameters or {}
    reasons = []
    if source.config.hidden_act not in ("silu", "swish"):
        reasons.append(f"its FFN's activation is {source.config.hidden_act}, llama.cpp computes silu")
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3", "yarn"):
        reasons.append(f"its rotary embedding is scaled by the rule {rope['rope_type']!r}")
    if plain:
        return reasons
    if shape.qk_norm:
        reasons.append("its layers differ and it norms queries and keys; llama.cpp has no architecture with both")
    if any(isinstance(block.ffn, Linear) for block in blocks):
        reasons.append("it has a linear FFN, which llama.cpp does not know (search without the FFN variant linear)")
    if blocks and not any(isinstance(block.attention, Attention) for block in blocks):
        reasons.append("none of its layers has attention, and llama.cpp counts tokens by the cache of one")
    return reasons


@dataclass(frozen=True, kw_only=True)
class _File:
    """From a checkpoint to a file."""

    source: Language
    weights: Checkpoint
    layers: tuple[int, ...]
    architecture: str
    dtype: str

    @property
    def blocks(self) -> list[Block]:
        return [self.source.arch.blocks[i] for i in self.layers]

    def write(self, path: Path, tokens: Tokens) -> int:
        """Write all of it, one tensor after the other; how many matrices could not be in q8_0."""
        import gguf
        import numpy as np

        writer: Any = gguf.GGUFWriter(path, self.architecture)
        self._describe(writer)
        _describe_tokens(writer, tokens, self.source.config)
        kinds = {name: self._kind(name, shape) for name, shape, _ in self._tensors()}
        for name, shape, _ in self._tensors():
            size = int(np.prod(gguf.quants.quant_shape_to_byte_shape(shape, kinds[name])))
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _, read in self._tensors():
            writer.write_tensor_data(gguf.quants.quantize(read().float().contiguous().numpy(), kinds[name]))
        writer.close()
        half = gguf.GGMLQuantizationType.F16
        return sum(kind == half for kind in kinds.values()) if self.dtype == "q8_0" else 0

    def _kind(self, name: str, shape: tuple[int, ...]) -> Any:
        """The number format of a tensor: vectors and what is no factor of a matrix product stay fp32."""
        from gguf import GGMLQuantizationType

        if len(shape) < 2 or name.removesuffix(".weight").endswith(("norm", "ssm_a", "ssm_d", "ssm_conv1d")):
            return GGMLQuantizationType.F32
        if self.dtype == "q8_0" and shape[-1] % ZEROS:
            return GGMLQuantizationType.F16
        return GGMLQuantizationType[DTYPES[self.dtype]]

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
        """Every tensor of the file: its name, its shape, and how to read it. The same order every time."""
        factors = self._rope_factors()
        if factors is not None:
            yield "rope_freqs.weight", tuple(factors.shape), lambda: factors
        new = {old: number for number, old in enumerate(self.layers)}
        for name in self.weights.names():
            if self.source.shape.tied and name == "lm_head.weight":
                continue
            shape = self._reshaped(name, self.weights.shape(name))
            yield gguf_name(name, new), shape, partial(self._read, name, shape)
        if self.architecture == "deci":
            yield from self._zeros()

    def _zeros(self) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
        """What stands in a `deci` file for sub-blocks that llama.cpp wants to see and that add nothing."""
        hidden = self.source.shape.hidden
        ffn = {
            "ffn_gate": (ZEROS, hidden),
            "ffn_up": (ZEROS, hidden),
            "ffn_down": (hidden, ZEROS),
            "ffn_norm": (hidden,),
        }
        attention = {"attn_output": (hidden, hidden), "attn_norm": (hidden,)}
        for number, block in enumerate(self.blocks):
            wanted = ffn if isinstance(block.ffn, NoOp) else {}
            wanted = wanted | (attention if number == 0 and isinstance(block.attention, NoOp) else {})
            for part, shape in wanted.items():
                fill = torch.ones if part.endswith("norm") else torch.zeros
                yield f"blk.{number}.{part}.weight", shape, partial(fill, shape)

    def _reshaped(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that llama.cpp wants for the same numbers."""
        mamba = self.source.shape.mamba
        if mamba is None:
            return shape
        if name.endswith("mixer.conv1d.weight"):
            return shape[0], shape[2]
        if name.endswith(("mixer.A_log", "mixer.D")):
            return shape[0], 1
        if name.endswith("mixer.norm.weight"):
            return mamba.groups, shape[0] // mamba.groups
        return shape

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self.weights.whole(name)
        if name.endswith("mixer.A_log"):
            tensor = -tensor.float().exp()
        if self.architecture in TURNED and ".self_attn.q_proj." in name:
            tensor = neighbours(tensor, self.source.shape.head_dim)
        if self.architecture in TURNED and ".self_attn.k_proj." in name:
            tensor = neighbours(tensor, self.source.shape.head_dim)
        return tensor.reshape(shape)

    def _rope_factors(self) -> Tensor | None:
        """By how much Llama 3's rule slows every frequency; None for other rules."""
        config = uniform(self.source.config)
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") != "llama3":
            return None
        rotary: Any = PARTS[config.model_type].rotary
        slowed = rotary(config).inv_freq
        config.rope_parameters = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        plain = rotary(config).inv_freq
        return (plain.double() / slowed.double()).float()

    def _describe(self, writer: Any) -> None:
        """What llama.cpp must know beside the weights."""
        import gguf

        shape, config = self.source.shape, self.source.config
        writer.add_name(self.source.folder.resolve().name)
        writer.add_block_count(len(self.blocks))
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(shape.hidden)
        writer.add_vocab_size(shape.vocab)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if self.dtype == "fp32" else f"MOSTLY_{DTYPES[self.dtype]}"])
        attentions = [block.attention for block in self.blocks]
        kv_heads = [half.kv_heads if isinstance(half, Attention) else 0 for half in attentions]
        widths = [block.ffn.width if isinstance(block.ffn, Ffn) else 0 for block in self.blocks]
        if self.architecture == "deci":
            absent = [i > 0 and isinstance(half, NoOp) for i, half in enumerate(attentions)]
            writer.add_head_count([0 if gone else shape.heads for gone in absent])
            widths = [width or ZEROS for width in widths]
        else:
            writer.add_head_count(shape.heads)
        alike = self.architecture in PLAIN.values()
        writer.add_head_count_kv(kv_heads[0] if alike else kv_heads)
        writer.add_feed_forward_length(widths[0] if alike else widths)
        if shape.mamba is not None:
            self._describe_mamba(writer, attentions)
            return
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(shape.head_dim)
        _describe_rope(writer, config.rope_parameters)

    def _describe_mamba(self, writer: Any, attentions: list[Any]) -> None:
        mamba = self.source.shape.mamba
        heads = next((half.heads for half in attentions if isinstance(half, Mamba)), None)
        for add in (
            writer.add_layer_norm_rms_eps,
            writer.add_layer_norm_eps,
        ):  # the one it uses and the one it asks for
            add(self.source.config.layer_norm_epsilon)
        if mamba is None or heads is None:
            return
        writer.add_ssm_conv_kernel(mamba.kernel)
        writer.add_ssm_inner_size(heads * mamba.head_dim)
        writer.add_ssm_state_size(mamba.state)
        writer.add_ssm_time_step_rank(heads)
        writer.add_ssm_group_count(mamba.groups)


def gguf_name(name: str, new: Mapping[int, int]) -> str:
    """llama.cpp's name of a tensor, its layer numbered anew."""
    parts = name.split(".")
    if parts[:2] != ["model", "layers"]:
        part, ending = name.rsplit(".", 1)
        return f"{OUTSIDE[part]}.{ending}"
    inside = ".".join(parts[3:])
    part, _, ending = inside.rpartition(".")
    return f"blk.{new[int(parts[2])]}." + (ALONE[inside] if inside in ALONE else f"{INSIDE[part]}.{ending}")


def neighbours(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows (heads · head_dim, …) of queries or keys so that the two channels that are turned together lie side by side."""
    halves = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _describe_rope(writer: Any, rope: Mapping[str, Any]) -> None:
    from gguf import RopeScalingType

    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR if kind == "linear" else RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn" and rope.get("original_max_position_embeddings"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _describe_tokens(writer: Any, tokens: Tokens, config: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokens.rule)
    writer.add_token_list(list(tokens.tokens))
    writer.add_token_types(list(tokens.kinds))
    writer.add_token_merges(list(tokens.merges))
    writer.add_add_bos_token(tokens.add_bos)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    for number, add in (
        (config.bos_token_id, writer.add_bos_token_id),
        (ends[0], writer.add_eos_token_id),
        (config.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    if tokens.chat_template is not None:
        writer.add_chat_template(tokens.chat_template)
