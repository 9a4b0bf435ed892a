"""Exact costs of a decoder from its architecture alone: parameters, bytes and FLOPs, sub-block by sub-block.

Every cost is a sum over sub-blocks plus a fixed part, so a solver may add them up in any order and get the same integers.
A sub-block owns the RMSNorm before it (`hidden` weights); a no-op has neither and costs nothing.

FLOPs are those that `torch.utils.flop_counter` counts for one forward of the prompt over the batch: matrix products at
2 per multiply-add, attention scores and their product with the values over the full T x T square (causal masks and windows
skip none of it in that count), and logits at every position. Norms, rotary embedding, softmax and activations count zero there.

Nothing here imports torch.
"""

from dataclasses import dataclass

from befit.arch.decoder import (
    Attention,
    AttentionVariant,
    Block,
    DecoderArch,
    DecoderShape,
    Ffn,
    FfnVariant,
    Linear,
    NoOp,
)
from befit.cost.workload import BYTES, Workload
from befit.errors import IllegalArch


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a part of a network costs; costs of disjoint parts add."""

    params: int = 0
    """Parameters."""
    weight_bytes: int = 0
    """Bytes of the parameters in the workload's weight format."""
    cache_bytes: int = 0
    """Bytes of keys and values of all requests at full context, in the workload's cache format."""
    flops: int = 0
    """FLOPs of one forward of the prompt over the batch (see the module's docstring for what counts)."""

    @property
    def memory_bytes(self) -> int:
        """Weights and cache together."""
        return self.weight_bytes + self.cache_bytes

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            params=self.params + other.params,
            weight_bytes=self.weight_bytes + other.weight_bytes,
            cache_bytes=self.cache_bytes + other.cache_bytes,
            flops=self.flops + other.flops,
        )


def count(shape: DecoderShape, arch: DecoderArch, workload: Workload) -> Cost:
    """The whole network. Raises `IllegalArch` if KV heads do not divide the query heads."""
    total = fixed_cost(shape, workload)
    for block in arch.blocks:
        total += block_cost(shape, block, workload)
    return total


def block_cost(shape: DecoderShape, block: Block, workload: Workload) -> Cost:
    """One layer: its attention and its FFN."""
    return attention_cost(shape, block.attention, workload) + ffn_cost(shape, block.ffn, workload)


def attention_cost(shape: DecoderShape, variant: AttentionVariant, workload: Workload) -> Cost:
    """One attention sub-block with its norm.

    The cache holds min(context, window) tokens: a window includes the query's own token, so engines that drop the oldest
    token before the next step hold one fewer between steps, and exactly this many while they attend.
    """
    match variant:
        case NoOp():
            return Cost()
        case Linear():
            return _linear(shape, workload)
        case Attention():
            if shape.heads % variant.kv_heads:
                raise IllegalArch(f"{shape.heads} query heads cannot share {variant.kv_heads} KV heads evenly")
            q, kv = shape.heads * shape.head_dim, variant.kv_heads * shape.head_dim
            matrices = shape.hidden * (q + 2 * kv) + q * shape.hidden
            biases = shape.qkv_bias * (q + 2 * kv) + shape.o_bias * shape.hidden
            norms = shape.hidden + shape.qk_norm * 2 * shape.head_dim
            scores = 2 * 2 * workload.batch * shape.heads * workload.prompt**2 * shape.head_dim
            cached = min(workload.context, variant.window or workload.context)
            return Cost(
                params=matrices + biases + norms,
                weight_bytes=_bytes(matrices + biases + norms, workload.weights),
                cache_bytes=_bytes(2 * kv * cached * workload.batch, workload.cache),
                flops=_matmul_flops(matrices, workload) + scores,
            )


def ffn_cost(shape: DecoderShape, variant: FfnVariant, workload: Workload) -> Cost:
    """One FFN sub-block (gate, up and down projection) with its norm."""
    match variant:
        case NoOp():
            return Cost()
        case Linear():
            return _linear(shape, workload)
        case Ffn():
            matrices = 3 * shape.hidden * variant.width
            params = matrices + shape.mlp_bias * (2 * variant.width + shape.hidden) + shape.hidden
            return Cost(
                params=params,
                weight_bytes=_bytes(params, workload.weights),
                flops=_matmul_flops(matrices, workload),
            )


def fixed_cost(shape: DecoderShape, workload: Workload) -> Cost:
    """What no choice of blocks changes: embedding, last norm and output projection; a tied projection is counted once."""
    head = shape.vocab * shape.hidden
    params = head * (1 if shape.tied else 2) + shape.hidden
    return Cost(params=params, weight_bytes=_bytes(params, workload.weights), flops=_matmul_flops(head, workload))


def _linear(shape: DecoderShape, workload: Workload) -> Cost:
    """A square matrix without bias, and its norm."""
    matrix = shape.hidden**2
    params = matrix + shape.hidden
    return Cost(params=params, weight_bytes=_bytes(params, workload.weights), flops=_matmul_flops(matrix, workload))


def _matmul_flops(matrix_elements: int, workload: Workload) -> int:
    return 2 * workload.batch * workload.prompt * matrix_elements


def _bytes(numbers: int, number_format: str) -> int:
    return round(numbers * BYTES[number_format])
