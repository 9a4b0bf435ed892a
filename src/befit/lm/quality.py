"""How good a language model is on given text: the loss of the next token, and the divergence from its parent.

Shapes: N sequences, B batch, T tokens, V vocabulary.
"""

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from befit.errors import BadData
from befit.lm.distill import chunks, divergence, outputs
from befit.lm.modeling_befit import BefitForCausalLM
from befit.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Two opinions on a model, in nats per token; lower is better in both."""

    loss: float
    """Mean cross-entropy of the next token, over the N * (T - 1) tokens that have one before them."""
    kl: float
    """Mean KL(parent || model) over all N * T positions; NaN where no parent was given."""
    tokens: int
    """Positions looked at, N * T."""


@torch.inference_mode()
def evaluate(
    model: BefitForCausalLM,
    tokens: Tensor,
    parent: BefitForCausalLM | None = None,
    *,
    batch: int = 8,
    progress: Progress = silent,
) -> Quality:
    """Loss, and KL to `parent` if there is one, on token ids (N, T), `batch` sequences at a time.

    The models run on their own devices in their own number format; logits are compared in fp32.
    Raises `BadData` unless there is a sequence of at least two tokens.
    """
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise BadData(
            f"evaluation needs token ids (N, T) with N at least 1 and T at least 2, got {tuple(tokens.shape)}"
        )
    loss, kl = 0.0, 0.0
    pieces = tokens.split(batch)
    for ids in progress(pieces, "evaluate", len(pieces)):
        batch_loss, batch_kl = _sums(model, None if parent is model else parent, ids)
        loss, kl = loss + batch_loss, kl + batch_kl
    count, length = tokens.shape
    kl = math.nan if parent is None else kl / (count * length)
    return Quality(loss=loss / (count * (length - 1)), kl=kl, tokens=count * length)


def _sums(model: BefitForCausalLM, parent: BefitForCausalLM | None, ids: Tensor) -> tuple[float, float]:
    """Loss and KL summed over the positions of a batch (B, T)."""
    rows = _final(model, ids)
    parent_rows = None if parent is None else _final(parent, ids)
    labels = ids.to(rows.device).roll(-1, dims=1)
    labels[:, -1] = -100  # cross_entropy's mark for "no label": nothing follows the last token
    labels = labels.flatten()
    loss, kl = torch.zeros(2, device=rows.device).unbind()
    for part in chunks(len(rows), model.config.vocab_size, rows.device):
        logits = model.lm_head(rows[part]).float()
        loss += cross_entropy(logits, labels[part], reduction="sum")
        if parent is not None and parent_rows is not None:
            kl += divergence(parent.lm_head(parent_rows[part]).to(rows.device), logits).sum()
    return loss.item(), kl.item()


def _final(model: BefitForCausalLM, ids: Tensor) -> Tensor:
    """What the head reads: the last hidden states, as rows (B * T, D)."""
    return deque(outputs(model, ids.to(model.device)), maxlen=1).pop().flatten(0, 1)
