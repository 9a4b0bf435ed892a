"""How good a language model is on given text: the loss of the next token, and the divergence from its parent.

Shapes: N sequences, B batch, T tokens, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

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


Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A language model as far as its quality goes: token ids (B, T) -> the last hidden states (B, T, D), the head (V, D)."""


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
    other = None if parent is None else _predictor(parent)
    return judge(_predictor(model), tokens, other, same=parent is model, batch=batch, progress=progress)


@torch.inference_mode()
def judge(
    model: Predictor,
    tokens: Tensor,
    parent: Predictor | None = None,
    *,
    same: bool = False,
    batch: int = 8,
    progress: Progress = silent,
) -> Quality:
    """`evaluate` for any language model. `same`: the model is its own parent, whose KL is 0 without being computed."""
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise BadData(
            f"evaluation needs token ids (N, T) with N at least 1 and T at least 2, got {tuple(tokens.shape)}"
        )
    loss, kl = 0.0, 0.0
    pieces = tokens.split(batch)
    for ids in progress(pieces, "evaluate", len(pieces)):
        batch_loss, batch_kl = _sums(model, None if same else parent, ids)
        loss, kl = loss + batch_loss, kl + batch_kl
    count, length = tokens.shape
    kl = math.nan if parent is None else kl / (count * length)
    return Quality(loss=loss / (count * (length - 1)), kl=kl, tokens=count * length)


def _sums(model: Predictor, parent: Predictor | None, ids: Tensor) -> tuple[float, float]:
    """Loss and KL summed over the positions of a batch (B, T)."""
    hidden, head = model(ids)
    rows = hidden.flatten(0, 1)
    parent_rows, parent_head = (None, None) if parent is None else parent(ids)
    labels = ids.to(rows.device).roll(-1, dims=1)
    labels[:, -1] = -100  # cross_entropy's mark for "no label": nothing follows the last token
    labels = labels.flatten()
    loss, kl = torch.zeros(2, device=rows.device).unbind()
    for part in chunks(len(rows), len(head), rows.device):
        logits = linear(rows[part], head).float()
        loss += cross_entropy(logits, labels[part], reduction="sum")
        if parent_rows is not None and parent_head is not None:
            other = linear(parent_rows.flatten(0, 1)[part], parent_head)
            kl += divergence(other.to(rows.device), logits).sum()
    return loss.item(), kl.item()


def _predictor(model: BefitForCausalLM) -> Predictor:
    head: Any = model.lm_head.weight
    return lambda ids: (deque(outputs(model, ids.to(model.device)), maxlen=1).pop(), head)
