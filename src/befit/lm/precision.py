"""Faster matrix products for training: bf16 inputs, fp32 weights and sums, everything between the products unchanged.

On CUDA this is torch's own autocast. On a CPU autocast also moves attention and the elementwise operations to bf16, which
there are slower than in fp32 (the backward of attention nearly twice); so only the linear maps change, through a torch
function mode, and only where the processor multiplies bf16 in hardware. Anywhere else nothing changes.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats, by the names that users write."""


def mixed(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which linear maps multiply in bf16 where the device is faster at that. Not for exact comparisons."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return Bf16Linear()
    return nullcontext()


class Bf16Linear(TorchFunctionMode):
    """Inside it, every `torch.nn.functional.linear` of fp32 tensors multiplies in bf16 and returns fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is not F.linear or kwargs or args[0].dtype != torch.float32 or args[1].dtype != torch.float32:
            return func(*args, **(kwargs or {}))
        x, weight, bias = (*args, None)[:3]
        product = _Product.apply(x, weight)
        return product if bias is None else product + bias


class _Product(Function):
    """x @ weight.T for x (..., I) and weight (O, I), and both gradients, from bf16 copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rows, short = x.reshape(-1, x.shape[-1]).bfloat16(), weight.bfloat16()
        ctx.save_for_backward(rows, short)
        ctx.shape = x.shape
        return (rows @ short.t()).float().view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rows, short = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1]).bfloat16()
        to_x, to_weight = ctx.needs_input_grad
        return (
            (grad @ short).float().view(ctx.shape) if to_x else None,
            (grad.t() @ rows).float() if to_weight else None,
        )


def _cpu_multiplies_bf16() -> bool:
    try:
        known = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):  # an older torch, or a processor it cannot ask
        return False
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
