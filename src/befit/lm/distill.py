"""How far a child is from its parent: on logits, on hidden states, on the output of one block.

Shapes: B sequences, T tokens, D hidden, V vocabulary, N = B * T rows. All sums are made in fp32 whatever the inputs are, a
few rows at a time, so that fp32 copies of (B, T, V) never exist as a whole.

Source: the losses of Puzzle (arXiv 2411.19146): normalised MSE for one block (section 3), KL of the logits plus cosine
distance of the hidden states for the whole child, without a language-modelling loss (section 5).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from befit.lm.modeling_befit import BefitForCausalLM

CPU_ELEMENTS = 2**20
"""Numbers of one fp32 chunk on a CPU: 4 MiB, which its caches hold."""
GPU_ELEMENTS = 2**26
"""Numbers of one fp32 chunk elsewhere: 256 MiB, enough to fill the largest accelerator."""
LEAST_ROWS = 256
"""Rows of a chunk at least, however large the vocabulary: fewer would make the head's products slow."""


def outputs(model: BefitForCausalLM, tokens: Tensor) -> Iterator[Tensor]:
    """The hidden state (B, T, D) after every layer, first to last, and then after the final norm, for tokens (B, T)."""
    x = model.model.embed_tokens(tokens)
    context = model.model.begin(x)
    for layer in model.model.layers:
        x = layer(x, context)
        yield x
    yield model.model.norm(x)


def chunks(rows: int, vocab: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `rows` rows of `vocab` numbers, each small enough to be worked on in fp32."""
    size = max(LEAST_ROWS, (CPU_ELEMENTS if device.type == "cpu" else GPU_ELEMENTS) // vocab)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def kl(parent_logits: Tensor, child_logits: Tensor) -> Tensor:
    """KL(parent || child), the mean over tokens, in nats: (B, T, V) twice -> scalar. Gradients go to the child only."""
    return _Kl.apply(parent_logits.detach(), child_logits)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class ParentTerms:
    """The parent's part of the divergence, computed once for many children. Holds 4 bytes for each logit."""

    probs: Tensor
    """The parent's probabilities p (B, T, V), fp32."""
    neg_entropy: Tensor
    """The sum over the vocabulary of p log p, in nats (B, T), fp32, never positive."""


def parent_terms(parent_logits: Tensor) -> ParentTerms:
    """What `kl_given` needs of the parent, from its logits (B, T, V)."""
    flat = parent_logits.detach().flatten(0, -2)
    probs = torch.empty(flat.shape, dtype=torch.float32, device=flat.device)
    entropy = torch.empty(len(flat), dtype=torch.float32, device=flat.device)
    for part in chunks(len(flat), flat.shape[-1], flat.device):
        logs = flat[part].float().log_softmax(-1)
        torch.exp(logs, out=probs[part])
        entropy[part] = logs.mul_(probs[part]).sum(-1)
    shape = parent_logits.shape
    return ParentTerms(probs=probs.view(shape), neg_entropy=entropy.view(shape[:-1]))


def kl_given(terms: ParentTerms, child_logits: Tensor) -> Tensor:
    """KL(parent || child), the mean over the tokens of each sequence, in nats: (..., B, T, V) -> (..., B).

    Children may be stacked in front of B; the parent's terms serve them all. No gradient: this is for scoring.
    """
    *_, count, time, vocab = child_logits.shape
    children = child_logits.detach().reshape(-1, count * time, vocab)
    probs, neg_entropy = terms.probs.flatten(0, 1), terms.neg_entropy.flatten()
    found = torch.empty(children.shape[:2], dtype=torch.float32, device=children.device)
    for part in chunks(count * time, vocab, children.device):
        for child, row in zip(children, found, strict=True):
            logs = child[part].float().log_softmax(-1)
            row[part] = neg_entropy[part] - logs.mul_(probs[part]).sum(-1)
    return found.view(child_logits.shape[:-1]).mean(-1)


def head_kl(parent: tuple[Tensor, Tensor], child: tuple[Tensor, Tensor], *, temperature: float = 1.0) -> Tensor:
    """The same divergence from the final hidden states, without ever holding the logits of all tokens.

    Each model is given as (hidden (B, T, D), head weight (V, D)); gradients go to the child's two tensors. With a
    temperature t the logits are divided by t and the result multiplied by t squared, which keeps the size of the
    gradient (Hinton et al., arXiv 1503.02531, section 2).
    """
    hidden, weight = parent
    # Dividing the hidden states divides the logits, at a fraction of the work.
    loss = _HeadKl.apply(hidden.detach() / temperature, weight.detach(), child[0] / temperature, child[1])
    return loss * temperature**2  # type: ignore[no-any-return]


def cosine(parent_states: Sequence[Tensor], child_states: Sequence[Tensor]) -> Tensor:
    """1 - cos between parent and child, the mean over layers and tokens: L tensors (B, T, D) each -> scalar in 0 .. 2.

    Puzzle sums over the layers; the mean makes the weight beside the KL independent of the depth.
    """
    pairs = zip(parent_states, child_states, strict=True)
    distances = [1 - F.cosine_similarity(p.detach().float(), c.float(), dim=-1).mean() for p, c in pairs]
    return torch.stack(distances).mean()


def normalised_mse(target: Tensor, output: Tensor) -> Tensor:
    """sum (target - output)^2 / sum target^2 over all elements, scalar: 0 if equal, 1 for an output of zeros."""
    target = target.detach().float()
    # The smallest normal number keeps 0 / 0 at 0.
    size = target.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    return (output.float() - target).square().sum() / size


def divergence(parent_logits: Tensor, child_logits: Tensor) -> Tensor:
    """KL(parent || child) of every row, in nats and fp32: logits (n, V) twice -> (n,). Makes fp32 copies of both."""
    return _divergence(parent_logits, child_logits)[0]


def _divergence(parent_logits: Tensor, child_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The divergence (n,), the parent's probabilities p and the child's log-probabilities log q, (n, V) each.

    The gradient with respect to the child's logits is q - p.
    """
    parent_logs, child_logs = parent_logits.float().log_softmax(-1), child_logits.float().log_softmax(-1)
    p = parent_logs.exp()
    return parent_logs.sub_(child_logs).mul_(p).sum(-1), p, child_logs


class _Kl(Function):
    """Mean KL with the gradient made in the forward pass: no graph of (N, V) intermediates is kept."""

    @staticmethod
    def forward(ctx: Any, parent_logits: Tensor, child_logits: Tensor) -> Tensor:
        parent_rows, child_rows = parent_logits.flatten(0, -2), child_logits.flatten(0, -2)
        rows, vocab = child_rows.shape
        gradient = torch.empty_like(child_rows) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=child_rows.device)
        for part in chunks(rows, vocab, child_rows.device):
            rows_kl, p, logs = _divergence(parent_rows[part], child_rows[part])
            total += rows_kl.sum()
            if gradient is not None:
                gradient[part] = logs.exp_().sub_(p).div_(rows)
        if gradient is not None:
            ctx.save_for_backward(gradient.view(child_logits.shape))
        return total / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return None, gradient * grads[0].to(gradient.dtype)


class _HeadKl(Function):
    """Mean KL through both output projections, chunk by chunk; the chunk's gradients are made while it is in cache."""

    @staticmethod
    def forward(ctx: Any, parent_hidden: Tensor, parent_weight: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        parent_rows, child_rows = parent_hidden.flatten(0, -2), hidden.flatten(0, -2)
        rows, vocab = len(child_rows), len(weight)
        train = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        to_hidden = torch.empty_like(child_rows) if train else None
        to_weight = torch.zeros_like(weight) if train else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for part in chunks(rows, vocab, hidden.device):
            # All products are `linear`, so that mixed precision sees them.
            parent_logits, child_logits = F.linear(parent_rows[part], parent_weight), F.linear(child_rows[part], weight)
            rows_kl, p, logs = _divergence(parent_logits, child_logits)
            total += rows_kl.sum()
            if to_hidden is not None and to_weight is not None:
                slope = logs.exp_().sub_(p).div_(rows)
                to_hidden[part] = F.linear(slope, weight.t())
                to_weight += F.linear(slope.t(), child_rows[part].t())
        if to_hidden is not None and to_weight is not None:
            ctx.save_for_backward(to_hidden.view(hidden.shape), to_weight)
        return total / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        to_hidden, to_weight = ctx.saved_tensors
        return None, None, to_hidden * grads[0].to(to_hidden.dtype), to_weight * grads[0].to(to_weight.dtype)
