"""The losses against torch's own functions, closed forms and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests import tiny
from torch import Tensor

from befit.lm import distill
from befit.lm.distill import chunks, cosine, divergence, head_kl, kl, kl_given, normalised_mse, outputs, parent_terms


def logits(*shape: int, seed: int = 0, size: float = 3.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(parent: Tensor, child: Tensor) -> Tensor:
    """KL(parent || child) of every token by torch, in double precision."""
    logs = (child.double().log_softmax(-1), parent.double().log_softmax(-1))
    return F.kl_div(*logs, log_target=True, reduction="none").sum(-1)


@pytest.fixture(params=[1, 1000], ids=["in many chunks", "in one chunk"])
def _chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CPU_ELEMENTS", 1)
    monkeypatch.setattr(distill, "LEAST_ROWS", request.param)


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_and_its_gradient_are_torchs(dtype: torch.dtype) -> None:
    parent, child = logits(2, 5, 31).to(dtype), logits(2, 5, 31, seed=1).to(dtype).requires_grad_()
    loss = kl(parent, child)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference(parent, child).mean(), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(3 * loss, child)
    exact = child.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(3 * reference(parent, exact).mean(), exact)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-7 if dtype == torch.float32 else 2e-3)


def test_kl_sends_no_gradient_to_the_parent() -> None:
    parent, child = logits(1, 2, 7).requires_grad_(), logits(1, 2, 7, seed=1).requires_grad_()
    kl(parent, child).backward()
    assert parent.grad is None and child.grad is not None


def test_kl_in_closed_form() -> None:
    """From a coin of 1/4 to a fair coin: log 2 - H(1/4)."""
    biased = torch.tensor([[[math.log(0.25), math.log(0.75)]]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert kl(biased, torch.zeros(1, 1, 2)).item() == pytest.approx(expected, abs=1e-7)
    assert kl(biased, biased + 5).item() == pytest.approx(0, abs=1e-7)


def test_divergence_is_kl_row_by_row() -> None:
    parent, child = logits(6, 31), logits(6, 31, seed=1)
    torch.testing.assert_close(divergence(parent, child).double(), reference(parent, child), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("stack", [(), (3,), (2, 2)], ids=str)
def test_the_parents_terms_serve_any_number_of_children(stack: tuple[int, ...]) -> None:
    parent, child = logits(2, 5, 31), logits(*stack, 2, 5, 31, seed=1)
    terms = parent_terms(parent)
    torch.testing.assert_close(terms.probs, parent.softmax(-1))
    torch.testing.assert_close(terms.neg_entropy, -torch.distributions.Categorical(logits=parent).entropy())
    expected = reference(parent.expand(child.shape), child).mean(-1)
    torch.testing.assert_close(kl_given(terms, child).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_through_the_heads_is_kl_of_the_logits(temperature: float) -> None:
    x, w, y, v = (t.requires_grad_() for t in (logits(2, 5, 8), logits(31, 8), logits(2, 5, 8, seed=2), logits(31, 8)))
    loss = head_kl((x, w), (y, v), temperature=temperature)
    plain = temperature**2 * reference(x @ w.t() / temperature, y @ v.t() / temperature).mean()
    torch.testing.assert_close(loss.double(), plain, rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(2 * plain, (y, v))
    for found, true in zip(torch.autograd.grad(2 * loss, (y, v)), expected, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)
    assert x.grad is None and w.grad is None


def test_a_temperature_keeps_the_size_of_the_gradient() -> None:
    """For logits that are small beside it the loss tends to half the mean squared difference of the centred logits."""
    x, w, y, v = logits(1, 4, 8), logits(5, 8), logits(1, 4, 8, seed=2), logits(5, 8, seed=3)
    difference = x @ w.t() - y @ v.t()
    expected = difference.var(-1, correction=0).mean() / 2
    assert head_kl((x, w), (y, v), temperature=2000.0).item() == pytest.approx(expected.item(), rel=0.02)


def test_cosine_is_torchs_mean_over_layers() -> None:
    ours, theirs = [logits(2, 5, 8, seed=i) for i in range(3)], [logits(2, 5, 8, seed=i + 9) for i in range(3)]
    expected = torch.stack([1 - F.cosine_similarity(a, b, dim=-1) for a, b in zip(ours, theirs, strict=True)]).mean()
    torch.testing.assert_close(cosine(ours, theirs), expected)
    assert cosine(ours, [3 * s for s in ours]).item() == pytest.approx(0, abs=1e-6)
    assert cosine(ours, [-s for s in ours]).item() == pytest.approx(2, abs=1e-6)
    with pytest.raises(ValueError, match="shorter"):
        cosine(ours, theirs[:2])


def test_normalised_mse_in_closed_form() -> None:
    target = logits(2, 5, 8)
    assert normalised_mse(target, torch.zeros_like(target)).item() == 1
    assert normalised_mse(target, 1.5 * target).item() == pytest.approx(0.25)
    assert normalised_mse(target, target).item() == 0
    assert normalised_mse(0 * target, 0 * target).item() == 0


def test_chunks_cover_every_row_once_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CPU_ELEMENTS", 1000)
    monkeypatch.setattr(distill, "LEAST_ROWS", 4)
    parts = list(chunks(107, 10, torch.device("cpu")))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(107))
    assert max(part.stop - part.start for part in parts) == 100
    assert [part.stop - part.start for part in chunks(9, 999, torch.device("cpu"))] == [4, 4, 1]
    assert list(chunks(0, 10, torch.device("cpu"))) == []


@pytest.mark.parametrize("family", tiny.ALL)
def test_outputs_are_the_hidden_states_of_the_familys_own_model(family: str) -> None:
    tokens = tiny.tokens(2, 16)
    with torch.no_grad():
        own = tiny.original(family)(tokens, output_hidden_states=True, use_cache=False).hidden_states
        found = list(outputs(tiny.parent(family), tokens))
    # transformers lists the embeddings first and leaves out the last layer's output before the norm.
    assert len(found) == len(own) == 5
    for ours, theirs in zip([*found[:3], found[-1]], own[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
