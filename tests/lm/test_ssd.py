"""The scan against the recurrence written token by token in float64, and against transformers' own."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_chunk_scan

from befit.lm import ssd
from befit.lm.ssd import scan, step


@dataclass(frozen=True, kw_only=True)
class Shape:
    batch: int = 2
    time: int = 37
    groups: int = 2
    share: int = 3
    """Heads of a group."""
    channels: int = 5
    size: int = 4
    """N, numbers of the state for each channel."""


def terms(shape: Shape, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, dt, a, b, c, d and a state, with decays from almost 1 to e^-10."""
    generator = torch.Generator().manual_seed(seed)
    heads = shape.groups * shape.share

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    row = (shape.batch, shape.time)
    x, dt, a = normal(*row, heads, shape.channels), F.softplus(normal(*row, heads)), -normal(heads).exp()
    b, c = normal(*row, shape.groups, shape.size), normal(*row, shape.groups, shape.size)
    state = normal(shape.batch, heads, shape.channels, shape.size)
    return [term.to(dtype) for term in (x, dt, a, b, c, normal(heads), state)]


def recurrence(  # the definition, one token after the other
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    x, dt, a, b, c, d = (term.double() for term in (x, dt, a, b, c, d))
    batch, time, heads, channels = x.shape
    groups, size = b.shape[2:]
    group = torch.tensor([head // (heads // groups) for head in range(heads)])
    s = torch.zeros(batch, heads, channels, size, dtype=torch.float64) if state is None else state.double()
    rows = []
    for t in range(time):
        s = torch.exp(dt[:, t] * a)[:, :, None, None] * s
        s = s + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], b[:, t, group])
        rows.append(torch.einsum("bhpn,bhn->bhp", s, c[:, t, group]) + d[:, None] * x[:, t])
    return torch.stack(rows, 1), s


def close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], *, error: float = 2e-6) -> None:
    """Equal but for `error` times the largest number."""
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(
            left.double(), right.double(), rtol=0, atol=error * max(1.0, right.abs().max().item())
        )


SHAPES = st.builds(
    Shape,
    batch=st.integers(1, 2),
    time=st.integers(1, 70),
    groups=st.sampled_from([1, 2, 4, 8]),
    share=st.integers(1, 3),
    channels=st.integers(1, 5),
    size=st.integers(1, 6),
)


@settings(max_examples=60)
@given(shape=SHAPES, chunk=st.integers(4, 64), with_state=st.booleans())
def test_scan_is_the_recurrence(shape: Shape, chunk: int, with_state: bool) -> None:
    *inputs, state = terms(shape)
    start = state if with_state else None
    y, last = scan(*inputs, chunk=chunk, state=start)
    assert y.dtype == last.dtype == torch.float32 and y.shape == inputs[0].shape and last.shape == state.shape
    close((y, last), recurrence(*inputs, state=start), error=5e-6)


@settings(max_examples=15)
@given(shape=SHAPES, chunk=st.integers(4, 64), with_state=st.booleans())
def test_scan_is_transformers_scan(shape: Shape, chunk: int, with_state: bool) -> None:
    x, dt, a, b, c, d, state = terms(shape)
    start = state if with_state else None
    theirs = mamba2_chunk_scan(x, dt, a, b, c, chunk, D=d, initial_states=start, return_final_states=True)
    close(scan(x, dt, a, b, c, d, chunk=chunk, state=start), theirs, error=5e-6)


@pytest.mark.parametrize(("groups", "time", "chunk"), [(1, 1, 8), (2, 21, 4), (4, 16, 16), (8, 33, 64)])
def test_gradients_are_those_of_the_recurrence(groups: int, time: int, chunk: int) -> None:
    """In float64, with respect to every term and the first state, through the outputs and the last state."""
    inputs = [term.requires_grad_() for term in terms(Shape(time=time, groups=groups), dtype=torch.float64)]
    y, last = scan(*inputs[:6], chunk=chunk, state=inputs[6])
    weights = torch.randn_like(y), torch.randn_like(last)
    found = torch.autograd.grad((y, last), inputs, weights)
    expected = torch.autograd.grad(recurrence(*inputs[:6], state=inputs[6]), inputs, weights)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(shape=SHAPES)
def test_a_step_is_a_scan_of_one_token(shape: Shape) -> None:
    x, dt, a, b, c, d, state = terms(replace(shape, time=1))
    before = state.clone()
    y, new = step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], d, state)
    torch.testing.assert_close(state, before, rtol=0, atol=0)
    close((y[:, None], new), scan(x, dt, a, b, c, d, state=state))


@settings(max_examples=15)
@given(shape=SHAPES, chunk=st.integers(4, 64), data=st.data())
def test_a_prefix_and_the_rest_are_the_whole(shape: Shape, chunk: int, data: st.DataObject) -> None:
    x, dt, a, b, c, d, state = terms(replace(shape, time=shape.time + 1))
    cut = data.draw(st.integers(1, shape.time))
    first, middle = scan(x[:, :cut], dt[:, :cut], a, b[:, :cut], c[:, :cut], d, chunk=chunk, state=state)
    second, last = scan(x[:, cut:], dt[:, cut:], a, b[:, cut:], c[:, cut:], d, chunk=chunk, state=middle)
    close((torch.cat([first, second], 1), last), scan(x, dt, a, b, c, d, chunk=chunk, state=state), error=5e-6)


@pytest.mark.parametrize("exponent", [-200.0, -1e-6])
def test_extreme_decays(exponent: float) -> None:
    """A head that forgets everything at once, or nothing: right numbers and finite gradients."""
    x, dt, _, b, c, d, state = terms(Shape(time=70))
    inputs = [term.requires_grad_() for term in (x, torch.ones_like(dt), torch.full_like(d, exponent), b, c, d, state)]
    found = scan(*inputs[:6], chunk=32, state=inputs[6])
    close(found, recurrence(*inputs[:6], state=inputs[6]))
    exact = [term.detach().double().requires_grad_() for term in inputs]
    expected = torch.autograd.grad([part.sum() for part in recurrence(*exact[:6], state=exact[6])], exact)
    for ours, theirs in zip(torch.autograd.grad([part.sum() for part in found], inputs), expected, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item() + 1e-12)


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 inputs", "autocast"])
def test_half_precision_keeps_its_state_in_fp32(autocast: bool) -> None:
    x, dt, a, b, c, d, state = terms(Shape(time=50))
    expected = recurrence(x, dt, a, b, c, d, state)
    if not autocast:
        x, b, c = x.bfloat16(), b.bfloat16(), c.bfloat16()
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, last = scan(x, dt, a, b, c, d, chunk=16, state=state)
    assert y.dtype == x.dtype and last.dtype == torch.float32
    close((y, last), expected, error=2e-2)
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    assert gradient.isfinite().all()
    y, last = step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], d, state)
    assert y.dtype == x.dtype and last.dtype == torch.float32


def test_scan_compiles_to_one_graph() -> None:
    """Traced in one piece, forward and backward, to the same numbers."""
    *inputs, state = terms(Shape())
    inputs = [term.requires_grad_() for term in inputs]
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager", dynamic=False)
    found, expected = compiled(*inputs, chunk=16, state=state), scan(*inputs, chunk=16, state=state)
    close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(y.sum(), inputs) for y, _ in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_kernel_without_a_gpu() -> None:
    assert not ssd.fused(torch.zeros(1, 1, 1, 1))
    if not torch.cuda.is_available():
        assert not ssd.kernels()


def test_the_kernel_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with mamba_ssm's signature (2.3.2) and rules, which computes with transformers' scan."""
    sizes: list[int] = []

    def stand_in(
        x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None,
        dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False, return_varlen_states=False,
    ):  # fmt: skip
        assert z is None and dt_bias is None and seq_idx is None and cu_seqlens is None and not return_varlen_states
        assert chunk_size.bit_count() == 1 and x.dtype == B.dtype == C.dtype and dt.dtype == A.dtype == torch.float32
        assert all(term.is_contiguous() for term in (x, dt, A, B, C, D) if term is not None)
        sizes.append(chunk_size)
        options = {"dt_softplus": dt_softplus, "dt_limit": dt_limit, "return_final_states": return_final_states}
        return mamba2_chunk_scan(x, dt, A, B, C, chunk_size, D=D, initial_states=initial_states, **options)

    monkeypatch.setattr(ssd, "_kernel", lambda: stand_in)
    x, dt, a, b, c, d, state = terms(Shape(time=70))
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    plain = scan(x, dt, a, b, c, d, state=state)
    monkeypatch.setattr(ssd, "fused", lambda x: True)
    for chunk in (5, 33, 64, 300):
        close(scan(strided, dt, a, b, c, d, chunk=chunk, state=state), plain, error=5e-6)
    assert sizes == [16, 64, 64, 128]


@pytest.mark.gpu
@pytest.mark.parametrize("time", [5, 64, 200])
def test_the_kernel_gives_the_same_numbers(time: int) -> None:
    """Outputs, last state and all gradients in bf16, within what bf16 can hold."""
    if not ssd.kernels():
        pytest.skip("needs mamba_ssm")
    *inputs, state = (term.cuda() for term in terms(Shape(time=time, channels=32, size=16)))
    inputs = [term.bfloat16() if place in (0, 3, 4) else term for place, term in enumerate(inputs)]
    inputs = [term.requires_grad_() for term in (*inputs, state)]
    assert ssd.fused(inputs[0])
    found = scan(*inputs[:6], state=inputs[6])
    exact = [term.detach().double().requires_grad_() for term in inputs]
    expected = scan(*exact[:6], state=exact[6])
    close(found, expected, error=2e-2)
    gradients = torch.autograd.grad([part.float().sum() for part in found], inputs)
    close(gradients, torch.autograd.grad([part.sum() for part in expected], exact), error=3e-2)
