"""In how many passes the prompts of a workload go through a model, and which of them are measured.

Up to `WHOLE` tokens of all requests together are one pass. Beyond that, prompts go through one after the other, and engines
split the long ones (chunked prefill; Agrawal et al., Sarathi-Serve, arXiv 2403.02310). All passes over short prompts are alike,
so one is measured. Those over parts of a long prompt differ in the context before them alone, and a pass's time is a line in
that: attention reads every earlier key once, all else reads none. So the first, the second and the last are measured; between
the last two lies a line, whose mean stands for all of them. A sliding window ends the line early: up to `PASS` tokens wide it
is full at the second pass, and a wider one is told too cheap.
"""

from dataclasses import dataclass

from befit.cost.workload import Workload

WHOLE = 32_768
"""Tokens of whole prompts in one pass, at most."""
PASS = 8_192
"""Tokens in a pass over a part of one prompt, at most; what vLLM takes on a large GPU."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A part of the prompts that goes through the model together."""

    requests: int
    """Requests in it."""
    tokens: int
    """Of each of them."""
    past: int = 0
    """Tokens of each request that earlier passes have put into the cache."""
    times: float = 1.0
    """How often it counts in the prefill of all requests."""


def passes(workload: Workload) -> tuple[Pass, ...]:
    """The passes to measure; the prefill takes the sum of their times, each `times` over."""
    batch, prompt = workload.batch, workload.prompt
    if batch * prompt <= WHOLE:
        return (Pass(requests=batch, tokens=prompt),)
    if prompt <= PASS:
        together = WHOLE // prompt
        return (Pass(requests=together, tokens=prompt, times=batch / together),)
    parts = -(-prompt // PASS)
    tokens = -(-prompt // parts)
    later = [tokens] if parts == 2 else [tokens, (parts - 1) * tokens]
    share = batch * (parts - 1) / len(later)
    return (
        Pass(requests=1, tokens=tokens, times=batch),
        *(Pass(requests=1, tokens=tokens, past=past, times=share) for past in later),
    )


def prefill_note(workload: Workload) -> str:
    """For people: how the prefill's time is put together; empty where all of it is measured at once."""
    first, *later = passes(workload)
    if not later and first.requests == workload.batch:
        return ""
    if not later:
        return (
            f"Prefill is that of {first.requests} requests of {first.tokens:,} tokens at once, as often as they go into "
            f"{workload.batch}."
        )
    places = f"0, {later[0].past:,} and {later[1].past:,}" if len(later) > 1 else f"0 and {later[0].past:,}"
    between = " The others lie on a line between the last two." if len(later) > 1 else ""
    return (
        f"Prefill is the sum of passes of {first.tokens:,} tokens of one request, measured after {places} earlier tokens."
        f"{between} {workload.batch} requests take {workload.batch} times as long as one."
    )
