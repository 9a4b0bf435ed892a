"""The machine: its named facts, and how long a step takes on it.

Each time is told by many calls (median, fastest and slowest tenth), run as in production: on a GPU the step is captured
in a CUDA graph and its replays are timed with events, so that Python and kernel launches cost nothing; on a CPU the clock
is read around each call.
Several steps are timed in turns, a few calls each round after round, so that another process on the machine slows all of
them alike and their ratios hold.
"""

import itertools
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from befit.errors import BefitError
from befit.progress import Progress, silent

Step = Callable[[], object]

TURN_MS = 50.0
"""A step keeps its turn for this long, or for `BURST` calls: long enough to be warm, short enough to share the noise."""
BURST = 4
"""Calls in one turn; the first warms the processor's caches and is not counted if there is a second."""
EVENT_MS = 1.0
"""GPU time between two events: short graphs are replayed until it is reached, as events resolve about 0.5 us."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Named facts of the machine that steps run on."""

    name: str
    """The processor's or the GPU's product name."""
    kind: Literal["cpu", "cuda"]
    """What torch calls it."""
    engine: str
    """The software that runs the network, with versions."""
    cores: int
    """CPU cores this process may use."""
    threads: int
    """CPU threads torch uses inside one operation."""
    memory_bytes: int
    """Memory of the GPU, or of the machine on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one call of a step takes."""

    median_ms: float
    """Half of the calls were faster."""
    low_ms: float
    """A tenth of the calls were faster."""
    high_ms: float
    """A tenth of the calls were slower."""
    repeats: int
    """Timed calls (on a GPU: bursts of replays) behind these numbers."""
    graph: bool
    """Whether the step ran as a CUDA graph."""
    note: str = ""
    """Why a GPU step did not run as a graph; empty otherwise."""
    interval_ms: tuple[float, float] = (0.0, math.inf)
    """Where the true median lies, as `median_interval` tells it."""


def found_device(kind: str = "auto") -> Literal["cpu", "cuda"]:
    """What `kind` names here: "cpu", "cuda" (the current GPU), or "auto" (a GPU if there is one).

    Raises `BefitError` for another word, or for "cuda" where torch finds no GPU.
    """
    if kind not in ("auto", "cpu", "cuda"):
        raise BefitError(f"device {kind!r} is unknown; expected auto, cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BefitError(f"torch {torch.__version__} finds no CUDA device here; use device cpu or auto")
    return "cuda" if kind != "cpu" and torch.cuda.is_available() else "cpu"


def this_device(kind: str = "auto") -> Device:
    """The device that `kind` names, with its name, memory and software. Raises as `found_device`."""
    gpu = found_device(kind) == "cuda"
    engine = f"torch {torch.__version__}, transformers {version('transformers')}"
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    if not gpu:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device(name=_cpu_name(), kind="cpu", engine=engine, cores=cores, threads=threads, memory_bytes=memory)
    index = torch.cuda.current_device()
    _, memory = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return Device(
        name=name, kind="cuda", engine=f"{engine}, CUDA graphs", cores=cores, threads=threads, memory_bytes=memory
    )


def time_ms(step: Step, device: Device, *, warmup: int = 3, repeats: int = 30, seconds: float = 10.0) -> Timing:
    """How long `step` takes: `warmup` calls, then up to `repeats` timed ones within about `seconds`."""
    return time_together({"": step}, device, warmup=warmup, repeats=repeats, seconds=seconds)[""]


def time_together(
    steps: Mapping[str, Step],
    device: Device,
    *,
    warmup: int = 3,
    repeats: int = 30,
    seconds: float = 30.0,
    tolerance: float = 0.0,
    progress: Progress = silent,
) -> dict[str, Timing]:
    """Time several steps in turns, so that the drift of a shared machine hits all alike.

    Each step is called `warmup` times, then gets its turn in every round until each has `repeats` timed calls or
    `seconds` are over (at least one round is finished), or every median is known to `tolerance`: the width of its
    interval over itself. `progress` sees the rounds go by. A step must do the same work in every call; on a GPU it is
    captured once, so its tensors must stay where they are.
    """
    on_gpu = device.kind == "cuda"
    prepared = _all_on_gpu(steps, warmup) if on_gpu else {name: _on_cpu(step, warmup) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in progress(_rounds(samples, repeats, seconds, tolerance), "time in turns", math.ceil(repeats / (BURST - 1))):
        for name, (call_ms, _) in prepared.items():
            samples[name] += _turn(call_ms)
    return {name: _timing(samples[name], graph=on_gpu and not note, note=note) for name, (_, note) in prepared.items()}


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """Two of the samples between which the true median lies in 95 of 100 cases; 0 and infinity of fewer than eight.

    From the ranks that a binomial variable takes (normal approximation), whatever the distribution, for independent samples.
    """
    ordered, half = sorted(samples), 0.98 * math.sqrt(len(samples))
    rank = math.floor(len(ordered) / 2 - half)
    return (ordered[rank - 1], ordered[-rank]) if rank >= 1 else (0.0, math.inf)


def _rounds(samples: Mapping[str, list[float]], repeats: int, seconds: float, tolerance: float) -> Iterator[int]:
    """Round numbers, at least one, until every step has its repeats, the time is over, or all medians are known."""
    start = time.monotonic()
    for number in itertools.count():
        yield number
        if min(map(len, samples.values()), default=repeats) >= repeats or time.monotonic() - start >= seconds:
            return
        if tolerance > 0 and all(_width(own) <= tolerance for own in samples.values()):
            return


def _width(samples: Sequence[float]) -> float:
    """Of the median's interval, over the median."""
    low, high = median_interval(samples)
    return (high - low) / statistics.median(samples)


def _turn(call_ms: Callable[[], float]) -> list[float]:
    times: list[float] = []
    while len(times) < BURST and sum(times) < TURN_MS:
        times.append(call_ms())
    return times[1:] or times


def _timing(samples: list[float], *, graph: bool, note: str) -> Timing:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(
        median_ms=statistics.median(ordered),
        low_ms=ordered[round(0.1 * last)],
        high_ms=ordered[round(0.9 * last)],
        repeats=len(ordered),
        graph=graph,
        note=note,
        interval_ms=median_interval(ordered),
    )


def _on_cpu(step: Step, warmup: int) -> tuple[Callable[[], float], str]:
    """A function that calls the step and returns its milliseconds; and no note."""
    for _ in range(warmup):
        step()

    def call_ms() -> float:
        start = time.perf_counter()
        step()
        return 1000 * (time.perf_counter() - start)

    return call_ms, ""


def _all_on_gpu(steps: Mapping[str, Step], warmup: int) -> dict[str, tuple[Callable[[], float], str]]:
    """Every step captured. All graphs share one memory pool, but one that a capture failed in takes no other."""
    prepared = dict[str, tuple[Callable[[], float], str]]()
    pool = torch.cuda.graph_pool_handle()
    for name, step in steps.items():
        prepared[name] = _on_gpu(name, step, warmup, pool)
        if prepared[name][1]:
            pool = torch.cuda.graph_pool_handle()
    return prepared


def _on_gpu(name: str, step: Step, warmup: int, pool: Any) -> tuple[Callable[[], float], str]:
    """A function that replays the captured step and returns milliseconds per replay; and why it is not captured, if so.

    All graphs share one memory pool: they never run at the same time and nobody reads what they return.
    """
    replay, note = _capture(step, warmup, pool)
    if note:
        warnings.warn(f"step {name!r} is timed without a CUDA graph, so launches are included: {note}", stacklevel=3)
    replay()
    once = _events_ms(replay, 1)
    inner = max(1, min(50, math.ceil(EVENT_MS / max(once, 1e-3))))
    return lambda: _events_ms(replay, inner), note


def _events_ms(replay: Step, count: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / count


def _capture(step: Step, warmup: int, pool: Any) -> tuple[Step, str]:
    """The step as a CUDA graph's replay; or the step itself and the reason why it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(max(1, warmup)):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            step()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return step, str(error).splitlines()[0]
    return graph.replay, ""


def _cpu_name() -> str:
    """The processor's name as Linux tells it, else as Python does."""
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
