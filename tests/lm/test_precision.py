"""Mixed precision on a CPU: linear maps from bf16 copies, everything else untouched."""

import pytest
import torch
import torch.nn.functional as F
from tests import tiny

from befit.lm import precision
from befit.lm.distill import kl
from befit.lm.precision import Bf16Linear, mixed


@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients_are_those_of_bf16_copies(bias: bool) -> None:
    x, w, b = torch.randn(2, 3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True), torch.randn(5)
    added = b.requires_grad_() if bias else None
    with Bf16Linear():
        y = F.linear(x, w, added)
    short = [t.detach().bfloat16().float().requires_grad_() for t in (x, w)]
    expected = F.linear(short[0], short[1], added)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    assert not torch.equal(y, F.linear(x, w, added))
    grad = torch.randn(2, 3, 5)
    inputs, leaves = ([x, w, b], [*short, b]) if bias else ([x, w], short)
    found = torch.autograd.grad(y, inputs, grad)
    for one, true in zip(found, torch.autograd.grad(expected, leaves, grad), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, true, rtol=3e-2, atol=3e-2)


def test_other_number_formats_and_operations_pass_through() -> None:
    x, w = torch.randn(3, 8).double(), torch.randn(5, 8).double()
    with Bf16Linear():
        assert torch.equal(F.linear(x, w), x @ w.t()) and (x.float() @ w.float().t()).dtype == torch.float32
        assert F.linear(x.bfloat16(), w.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(F.linear(input=x.float(), weight=w.float()), F.linear(x.float(), weight=w.float()))


@pytest.mark.parametrize("family", tiny.ALL)
def test_a_model_stays_close_to_itself(family: str) -> None:
    model, tokens = tiny.parent(family), tiny.tokens()
    with torch.inference_mode():
        exact = model(tokens).logits
        with Bf16Linear():
            rounded = model(tokens).logits
    assert not torch.equal(exact, rounded) and kl(exact, rounded) < 1e-3


@pytest.mark.parametrize("able", [True, False])
def test_a_cpu_uses_bf16_only_if_it_multiplies_it_in_hardware(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: able)
    assert isinstance(mixed(torch.device("cpu")), Bf16Linear) == able
    x, w = torch.randn(64, 64), torch.randn(64, 64)
    with mixed(torch.device("cpu")):
        assert torch.equal(F.linear(x, w), x @ w.t()) != able


@pytest.mark.parametrize("known", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_f": True}], ids=str)
def test_what_a_processor_says_decides(known: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert precision._cpu_multiplies_bf16() == ("avx512_f" not in known)


def test_a_torch_that_cannot_ask_the_processor_stays_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not precision._cpu_multiplies_bf16()


@pytest.mark.gpu
def test_cuda_uses_autocast() -> None:
    x, w = torch.randn(8, 8, device="cuda"), torch.randn(8, 8, device="cuda")
    with mixed(torch.device("cuda")):
        assert F.linear(x, w).dtype == torch.bfloat16
