"""Measured passes stand for all passes: their sum is that of every pass, where time is a line in the context."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.cost.passes import PASS, WHOLE, passes, prefill_note
from befit.cost.workload import Workload


@pytest.mark.parametrize(("batch", "prompt"), [(1, WHOLE), (8, 2048), (256, 128), (1, 1)])
def test_what_goes_through_at_once_is_measured_at_once(batch: int, prompt: int) -> None:
    work = Workload(batch=batch, prompt=prompt)
    (only,) = passes(work)
    assert (only.requests, only.tokens, only.past, only.times) == (batch, prompt, 0, 1)
    assert prefill_note(work) == ""


@given(st.integers(1, 300), st.integers(1, 200_000))
def test_a_pass_is_small_and_all_of_them_are_the_prompts(batch: int, prompt: int) -> None:
    parts = passes(Workload(batch=batch, prompt=prompt))
    assert all(part.requests * part.tokens <= (WHOLE if len(parts) == 1 else PASS) for part in parts)
    assert all(part.requests <= batch and part.past + part.tokens < prompt + PASS for part in parts)
    tokens = sum(part.times * part.requests * part.tokens for part in parts)
    assert batch * prompt == pytest.approx(tokens, rel=0.004) and tokens >= batch * prompt * (1 - 1e-9)


@given(st.integers(1, 40), st.integers(PASS + 1, 200_000), st.floats(0, 5), st.floats(0, 1e-3))
def test_on_a_line_the_sum_is_that_of_every_pass(batch: int, prompt: int, start: float, slope: float) -> None:
    if batch * prompt <= WHOLE:
        return
    parts = passes(Workload(batch=batch, prompt=prompt))
    size = parts[0].tokens
    every = sum(start + slope * past for past in range(0, prompt, size)) * batch
    assert sum(part.times * (start + slope * part.past) for part in parts) == pytest.approx(every, abs=1e-9)


def test_the_issue_s_long_context_by_hand() -> None:
    """131,072 tokens are 16 passes of 8,192; the first, and 15 between 8,192 and 122,880 earlier tokens."""
    work = Workload(batch=8, prompt=131_072)
    assert [(p.requests, p.tokens, p.past, p.times) for p in passes(work)] == [
        (1, 8192, 0, 8),
        (1, 8192, 8192, 60),
        (1, 8192, 122_880, 60),
    ]
    assert "passes of 8,192 tokens of one request, measured after 0, 8,192 and 122,880 earlier" in prefill_note(work)
    assert "0 and 8,192 earlier" in prefill_note(Workload(batch=3, prompt=2 * PASS))
    short = Workload(batch=100, prompt=1000)
    assert [(p.requests, p.tokens, p.times) for p in passes(short)] == [(32, 1000, 3.125)]
    assert prefill_note(short).startswith("Prefill is that of 32 requests of 1,000 tokens")
