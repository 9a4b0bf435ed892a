"""The state-space scan of Mamba-2 (SSD): a linear recurrence over tokens, computed as matrix products over chunks.

    s_t = exp(dt_t a) s_(t-1) + dt_t x_t b_t^T        y_t = s_t c_t + d x_t        for every head

Inside a chunk this is attention without a softmax: scores c_i . b_j, weighted by the decay between j and i. Between chunks
only the state travels, in a short loop: a product of all pairs of chunks was no faster for 2 to 32 chunks, and its sums of
exponents over the whole sequence lose digits. Every exponent is a sum of dt a over some tokens, thus never positive: nothing
overflows, and gradients stay finite however fast a head forgets. They are differences of running sums, so a weight's relative
error is about 1e-7 times the sum of -dt a over its chunk, as in the original kernel.

Shapes: B sequences, T tokens, H heads of P channels, N state, G groups (b and c are shared by the R = H / G heads of a group
and never copied for each), K chunks of L tokens. Products run in x's dtype, decays and states in fp32 (fp64 for fp64).

Source: Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060), section 6. We split T into equal chunks, which pads less than
full chunks and a rest, and keep the state as (N, R, P), so that the products with it need no transposed copies.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_KERNEL_CHUNK = 16
"""Tokens of the kernel's chunk at least: the smallest tile of a tensor core."""


def scan(  # noqa: PLR0913 - the terms of the recurrence
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, *, chunk: int = 64, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The outputs (B, T, H, P) in x's dtype, and the state after the last token (B, H, P, N) in fp32.

    x (B, T, H, P); dt (B, T, H) positive: bias, softplus and clamp are done; a (H,) negative; b and c (B, T, G, N) with H a
    multiple of G: head h belongs to group h // (H / G); d (H,); state (B, H, P, N) before the first token, zeros if None.
    At least one token; a chunk has `chunk` tokens at most. On a GPU mamba_ssm's kernel does the work where it can (`fused`).
    """
    if fused(x):
        return _fused(x, dt, a, b, c, d, chunk=chunk, state=state)
    (batch, time, heads, _), (groups, size) = x.shape, b.shape[2:]
    count = -(-time // chunk)
    length = -(-time // count)
    wide = torch.promote_types(x.dtype, torch.float32)
    # A padded token has dt = 0: it neither decays the state nor adds to it.
    parts = [_chunked(part, count, length) for part in (x, dt.to(wide), b.to(x.dtype), c.to(x.dtype))]
    inputs, steps = (part.unflatten(3, (groups, heads // groups)).transpose(2, 3) for part in parts[:2])
    keys, queries = (part.transpose(2, 3) for part in parts[2:])  # (B, K, G, L, N)
    fall = (steps * a.to(wide).view(groups, 1, -1)).cumsum(3)  # (B, K, G, L, R), the exponents since the chunk began
    inputs = (inputs * steps[..., None]).to(x.dtype)  # (B, K, G, L, R, P)

    inside = _inside(fall, inputs, keys, queries)
    left = (fall[:, :, :, -1:] - fall).exp()
    added = keys.transpose(-1, -2) @ (inputs * left[..., None]).to(x.dtype).flatten(-2)  # (B, K, G, N, R P)
    added = added.to(wide).unflatten(-1, inputs.shape[-2:])
    first = added.new_zeros(added[:, 0].shape) if state is None else _grouped(state.to(wide), groups)
    before, last = _carry(added, fall[:, :, :, -1].exp(), first)
    carried = (queries @ before.to(x.dtype).flatten(-2)).unflatten(-1, inputs.shape[-2:])
    y = torch.addcmul(inside.to(wide), fall.exp()[..., None], carried.to(wide))
    y = y.transpose(2, 3).reshape(batch, count * length, heads, -1)[:, :time]
    y = torch.addcmul(y, x.to(wide), d.to(wide)[:, None])
    return y.to(x.dtype), last.permute(0, 1, 3, 4, 2).reshape(batch, heads, -1, size)


def step(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: its output (B, H, P) in x's dtype and the new state (B, H, P, N) in fp32; `state` itself is left as it is.

    x (B, H, P); dt (B, H); a and d (H,); b and c (B, G, N); state (B, H, P, N). Terms as in `scan`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    groups, dt, wide_x = b.shape[1], dt.to(wide), x.to(wide)
    decay = (dt * a.to(wide))[..., None, None].exp()
    inputs = (dt[..., None] * wide_x).unflatten(1, (groups, -1))  # (B, G, R, P)
    added = inputs[..., None] * b.to(wide)[:, :, None, None]
    new = torch.addcmul(added.flatten(1, 2), decay, state.to(wide))
    y = (new.unflatten(1, (groups, -1)) * c.to(wide)[:, :, None, None]).sum(-1).flatten(1, 2)
    return torch.addcmul(y, wide_x, d.to(wide)[:, None]).to(x.dtype), new


@cache
def kernels() -> bool:
    """Whether mamba_ssm's Triton kernel of the scan can be used here: a GPU and a mamba_ssm that can be imported.

    Importing mamba_ssm needs its compiled module `selective_scan_cuda`, although the scan itself is Triton: a mamba_ssm
    built without that module (MAMBA_SKIP_CUDA_BUILD), or built for another torch, counts as absent.
    """
    return torch.cuda.is_available() and _kernel() is not None


def fused(x: Tensor) -> bool:
    """Whether `scan` gives x to mamba_ssm's kernel: x on a GPU, `kernels()`, and these two conditions.

    The kernel multiplies fp32 numbers in TF32, so fp32 goes there only where torch may do so too
    (`torch.set_float32_matmul_precision`), fp64 never. Inside torch.compile the plain form is used: the compiler fuses it,
    and cannot look into the kernel's launches.
    """
    if not x.is_cuda or torch.compiler.is_compiling() or not kernels():
        return False
    half = x.dtype in (torch.bfloat16, torch.float16)
    return half or (x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest")


@cache
def _kernel() -> Callable[..., tuple[Tensor, Tensor]] | None:
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # type: ignore[import-not-found]
    except ImportError:
        return None
    return mamba_chunk_scan_combined


def _fused(  # noqa: PLR0913 - as `scan`
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, *, chunk: int, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`scan` by mamba_ssm: it wants a power of two as chunk and one dtype for x, b and c; it pads by itself."""
    kernel = _kernel()
    assert kernel is not None
    size = max(LEAST_KERNEL_CHUNK, 1 << (min(chunk, x.shape[1]) - 1).bit_length())
    return kernel(
        x.contiguous(),
        dt.float().contiguous(),
        a.float().contiguous(),
        b.to(x.dtype).contiguous(),
        c.to(x.dtype).contiguous(),
        chunk_size=size,
        D=d.float().contiguous(),
        dt_softplus=False,
        initial_states=None if state is None else state.float().contiguous(),
        return_final_states=True,
    )


def _chunked(part: Tensor, count: int, length: int) -> Tensor:
    """(B, T, …) -> (B, K, L, …), with zeros after the last token."""
    missing = count * length - part.shape[1]
    if missing:
        part = F.pad(part, (0, 0) * (part.ndim - 2) + (0, missing))
    return part.unflatten(1, (count, length))


def _grouped(state: Tensor, groups: int) -> Tensor:
    """(B, H, P, N) -> (B, G, N, R, P)."""
    return state.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3)


def _inside(fall: Tensor, inputs: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """What the tokens of a chunk give to each other: (B, K, G, L, R, P).

    fall (B, K, G, L, R); inputs, which are dt x, (B, K, G, L, R, P); keys and queries, which are b and c, (B, K, G, L, N).
    """
    fall = fall.transpose(3, 4).contiguous()  # (B, K, G, R, L): the layout of all that follows
    length = fall.shape[-1]
    # Later tokens get an exponent of -inf, before the exp: their true exponents are positive and could overflow.
    later = torch.full((length, length), -torch.inf, dtype=fall.dtype, device=fall.device).triu(1)
    # The minus stands on the small tensor, so that the backward pass negates that one.
    decay = (fall[..., :, None] + (later + (-fall)[..., None, :])).exp()
    weights = decay * (queries @ keys.transpose(-1, -2))[:, :, :, None]  # (B, K, G, R, L, L)
    return (weights.to(inputs.dtype) @ inputs.transpose(3, 4)).transpose(3, 4)


def _carry(added: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk (B, K, G, N, R, P) and after the last one (B, G, N, R, P).

    added, by each chunk, (B, K, G, N, R, P); decay over each chunk (B, K, G, R); state before the first (B, G, N, R, P).
    """
    before: list[Tensor] = []
    for new, kept in zip(added.unbind(1), decay[:, :, :, None, :, None].unbind(1), strict=True):
        before.append(state)
        state = torch.addcmul(new, kept, state)
    return torch.stack(before, 1), state
