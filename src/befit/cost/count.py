"""Exact costs of a decoder from its architecture alone: parameters, bytes and FLOPs, sub-block by sub-block.

Every cost is a sum over sub-blocks plus a fixed part, so a solver may add them up in any order and get the same integers.
A sub-block owns the RMSNorm before it (`hidden` weights); a no-op has neither and costs nothing.

The cache of a Mamba-2 mixer is the same at every context: the last `kernel` inputs of its convolution, in the workload's
cache format (bf16 if that is quantised, as engines quantise keys and values alone), and its state, which they keep in fp32.
What is quantised among the weights, and what scales add to it, is told in `befit.cost.formats`.

FLOPs are those that `torch.utils.flop_counter` counts for one forward of the prompt over the batch: matrix products at
2 per multiply-add, attention scores and their product with the values over the full T x T square (causal masks and windows
skip none of it in that count), and logits at every position. Norms, rotary embedding, softmax and activations count zero there.
A scan counts as the recurrence it computes (update of the state and its product with C, 4 FLOPs for each state element and
token); a chunked scan spends more, depending on its chunks.

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
    Mamba,
    NoOp,
    check_mamba,
)
from befit.cost.formats import key_bytes, matrix_bytes, plain_bytes
from befit.cost.workload import Workload
from befit.errors import IllegalArch


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a part of a network costs; costs of disjoint parts add."""

    params: int = 0
    """Parameters."""
    weight_bytes: int = 0
    """Bytes of the parameters in the workload's weight format, scales included."""
    cache_bytes: int = 0
    """Bytes of keys and values of all requests at full context, and of their SSM states."""
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
    """One mixer sub-block with its norm.

    The cache holds min(context, window) tokens: a window includes the query's own token, so engines that drop the oldest
    token before the next step hold one fewer between steps, and exactly this many while they attend.
    """
    match variant:
        case NoOp():
            return Cost()
        case Linear():
            return _linear(shape, workload)
        case Mamba():
            return _mamba(shape, variant, workload)
        case Attention():
            if shape.heads % variant.kv_heads:
                raise IllegalArch(f"{shape.heads} query heads cannot share {variant.kv_heads} KV heads evenly")
            q, kv = shape.heads * shape.head_dim, variant.kv_heads * shape.head_dim
            matrices = ((q, shape.hidden), (kv, shape.hidden), (kv, shape.hidden), (shape.hidden, q))
            biases = shape.qkv_bias * (q + 2 * kv) + shape.o_bias * shape.hidden
            norms = shape.hidden + shape.qk_norm * 2 * shape.head_dim
            scores = 2 * 2 * workload.batch * shape.heads * workload.prompt**2 * shape.head_dim
            cached = min(workload.context, variant.window or workload.context)
            keys = workload.batch * cached * variant.kv_heads * key_bytes(shape.head_dim, workload.cache)
            return _cost(matrices, biases + norms, workload) + Cost(cache_bytes=2 * keys, flops=scores)


def ffn_cost(shape: DecoderShape, variant: FfnVariant, workload: Workload) -> Cost:
    """One FFN sub-block (up and down projection, and the gate if there is one) with its norm."""
    match variant:
        case NoOp():
            return Cost()
        case Linear():
            return _linear(shape, workload)
        case Ffn():
            inner = 1 + shape.gated
            matrices = ((variant.width, shape.hidden),) * inner + ((shape.hidden, variant.width),)
            biases = shape.mlp_bias * (inner * variant.width + shape.hidden)
            return _cost(matrices, biases + shape.hidden, workload)


def fixed_cost(shape: DecoderShape, workload: Workload) -> Cost:
    """What no choice of blocks changes: embedding, last norm and output projection; a tied projection is counted once."""
    head = shape.vocab * shape.hidden
    params = head * (1 if shape.tied else 2) + shape.hidden
    return Cost(params=params, weight_bytes=plain_bytes(params, workload.weights), flops=_matmul_flops(head, workload))


def _mamba(shape: DecoderShape, variant: Mamba, workload: Workload) -> Cost:
    """Input projection to z, x, B, C and dt, convolution over x, B and C, three numbers a head, gated norm, output."""
    mamba = check_mamba(shape.mamba, variant.heads)
    inner = variant.heads * mamba.head_dim
    convolved = inner + 2 * mamba.groups * mamba.state
    projected = inner + convolved + variant.heads
    convolution = convolved * mamba.kernel
    vectors = 3 * variant.heads + inner + shape.hidden
    biases = mamba.conv_bias * convolved + mamba.bias * (projected + shape.hidden)
    state = inner * mamba.state
    return _cost(((projected, shape.hidden), (shape.hidden, inner)), convolution + vectors + biases, workload) + Cost(
        cache_bytes=workload.batch * (plain_bytes(convolution, workload.cache) + plain_bytes(state, "fp32")),
        flops=_matmul_flops(convolution + 2 * state, workload),
    )


def _linear(shape: DecoderShape, workload: Workload) -> Cost:
    """A square matrix without bias, and its norm."""
    return _cost(((shape.hidden, shape.hidden),), shape.hidden, workload)


def _cost(matrices: tuple[tuple[int, int], ...], others: int, workload: Workload) -> Cost:
    """Of linear layers (rows, columns) that read every token of the prompt, and of other weights beside them."""
    numbers = sum(rows * columns for rows, columns in matrices)
    size = sum(matrix_bytes(rows, columns, workload.weights) for rows, columns in matrices)
    return Cost(
        params=numbers + others,
        weight_bytes=size + plain_bytes(others, workload.weights),
        flops=_matmul_flops(numbers, workload),
    )


def _matmul_flops(matrix_elements: int, workload: Workload) -> int:
    return 2 * workload.batch * workload.prompt * matrix_elements
