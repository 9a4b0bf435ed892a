"""Loss and KL of whole models against transformers' own loss and torch's own KL."""

import math
from collections.abc import Iterable, Iterator

import pytest
import torch
import torch.nn.functional as F
from tests import tiny

from befit.errors import BadData
from befit.lm import distill
from befit.lm.quality import evaluate
from befit.progress import Item


@pytest.mark.parametrize("family", tiny.ALL)
@pytest.mark.parametrize("batch", [2, 8])
def test_loss_and_kl_are_those_of_transformers_and_torch(
    family: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "CPU_ELEMENTS", 1)
    monkeypatch.setattr(distill, "LEAST_ROWS", 7)
    tokens = tiny.tokens(5, 12)
    ours, theirs = tiny.original(family, seed=1), tiny.original(family)
    with torch.no_grad():
        child, parent = ours(tokens, labels=tokens), theirs(tokens)
    logs = child.logits.double().log_softmax(-1), parent.logits.double().log_softmax(-1)
    expected = F.kl_div(*logs, log_target=True, reduction="none").sum(-1).mean()
    quality = evaluate(tiny.parent(family, seed=1), tokens, tiny.parent(family), batch=batch)
    assert quality.loss == pytest.approx(child.loss.item(), abs=2e-6)
    assert quality.kl == pytest.approx(expected.item(), abs=2e-6)
    assert quality.tokens == 60


def test_without_a_parent_and_with_itself_as_parent() -> None:
    model, tokens = tiny.parent(layers=1), tiny.tokens(2, 6)
    alone, same = evaluate(model, tokens), evaluate(model, tokens, model)
    assert math.isnan(alone.kl) and same.kl == 0 and alone.loss == same.loss


def test_half_precision_logits_are_compared_in_fp32() -> None:
    """In bf16 the sum of many small terms would be off by percents."""
    tokens = tiny.tokens(4, 32)
    child, parent = tiny.parent(seed=1).bfloat16(), tiny.parent().bfloat16()
    with torch.no_grad():
        logs = [model(tokens).logits.double().log_softmax(-1) for model in (child, parent)]
    expected = F.kl_div(*logs, log_target=True, reduction="none").sum(-1).mean()
    assert evaluate(child, tokens, parent).kl == pytest.approx(expected.item(), rel=1e-3)


def test_every_batch_is_shown() -> None:
    seen = []

    def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        for item in items:
            seen.append((label, total))
            yield item

    evaluate(tiny.parent(layers=1), tiny.tokens(5, 6), batch=2, progress=progress)
    assert seen == [("evaluate", 3)] * 3


@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (8,)], ids=str)
def test_text_without_a_next_token_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadData, match="N at least 1 and T at least 2"):
        evaluate(tiny.parent(layers=1), torch.zeros(shape, dtype=torch.long))
