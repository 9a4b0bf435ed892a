"""What a training step of one member costs, in time and memory: slices of the nested weights against masks over full width.

    python benchmarks/elastic_steps.py [--device cuda] [--shapes small,large] [--rounds 12] [--compile] [--out FILE.json]

Members have 100, 75, 50 and 25 % of the parameters, by one ratio on every axis. A step is what training does for one member on
one micro-batch: forward to the hidden states, divergence from the parent's, backward into the one set of weights, clipping
and Adam. The parent's own forward is the same for all and told apart.

slice   the member runs on views of the weights (`befit.lm.prefix`), without the layers that it does not keep
widths  as slice, but the ratio is that of widths alone and all layers stay
layers  as slice, but all widths stay and whole layers go, as many as the ratio asks for
mask    the member of `slice` as factors of 0 and 1 over the whole network (`befit.lm.network.Gates`), as public code does it

The optimizer always goes over all weights, as they share their moments; only forward and backward can shrink. Ways and sizes
take turns in every round, and the median counts. Memory is the most that a step holds beyond weights, gradient and moments:
`torch.cuda.max_memory_allocated` on a GPU; on a CPU the peak over torch's own record of every allocation (torch.profiler), in
a step that is not timed. With mamba_ssm installed, its scan is used on a GPU where `befit.lm.ssd.fused` says so.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # also where befit is not installed
from befit.arch.decoder import Attention, DecoderShape
from befit.arch.member import Member, cut_shape, whole
from befit.cost.count import count
from befit.cost.workload import Workload
from befit.lm import ssd
from befit.lm.distill import head_kl
from befit.lm.families import family_of
from befit.lm.leaves import Leaves
from befit.lm.network import OPEN, Gates, Network, head, hidden_states, network_of
from befit.lm.precision import mixed
from befit.lm.shapes import HybridShape, build
from befit.lm.training import Learner, adam

SHARES = (1.0, 0.75, 0.5, 0.25)
WAYS = ("slice", "widths", "layers", "mask")
SHAPES = {
    # The embedded hybrid parent, one ten times its size, and two large enough for a GPU: 207 million and 1.1 billion parameters.
    "small": (HybridShape(), 3072, 4, 256),
    "medium": (
        HybridShape(
            pattern="M-M-M*-M-M-M*-M-M-",
            hidden=512,
            heads=8,
            kv_heads=4,
            head_dim=64,
            ffn=2048,
            mamba_heads=16,
            mamba_head_dim=64,
            groups=4,
            state=64,
        ),
        3072,
        4,
        256,
    ),
    "large": (
        HybridShape(
            pattern="M-M-M-*-M-M-M-*-M-M-M-",
            hidden=1024,
            heads=16,
            kv_heads=4,
            head_dim=64,
            ffn=4096,
            mamba_heads=32,
            mamba_head_dim=64,
            groups=8,
            state=128,
        ),
        16384,
        8,
        1024,
    ),
    "huge": (
        HybridShape(
            pattern="M-M-M-*-M-M-M-*-M-M-M-",
            hidden=2560,
            heads=20,
            kv_heads=4,
            head_dim=128,
            ffn=10240,
            mamba_heads=80,
            mamba_head_dim=64,
            groups=8,
            state=128,
        ),
        16384,
        8,
        1024,
    ),
}
"""Sizes, vocabulary, sequences and tokens of a micro-batch."""


def member_at(shape: DecoderShape, share: float, *, depth: bool) -> Member:
    """Every axis by the same ratio, rounded, FFNs up to a fifth more or less; the one whose parameters come nearest.

    With `depth` layers go, too, spread evenly over the network.
    """
    most, groups = whole(shape), shape.mamba.groups if shape.mamba else 1
    # A GPU's matrix products want multiples of 64 and more; a small network has too few channels for that.
    tile = 128 if shape.hidden >= 2048 else 8
    attention = {i for i, block in enumerate(shape.arch.blocks) if isinstance(block.attention, Attention)}

    def at(ratio: float, ffn: float) -> Member:
        def some(width: int, step: int = 1, of: float = ratio) -> int:
            return min(width, max(step, step * round(of * width / step))) if width else 0

        kept = some(most.depth) if depth else most.depth
        return replace(
            most,
            hidden=some(most.hidden, tile),
            ffn=some(most.widest_ffn, tile, ratio * ffn),
            kv_heads=some(most.kv_heads),
            mamba_heads=some(most.mamba_heads, groups),
            mamba_head_dim=some(most.mamba_head_dim, min(tile, 16)),
            state=some(most.state, min(tile, 16)),
            layers=tuple(i * most.depth // kept for i in range(kept)),
        )

    total = params(shape, most)
    found = [at(step / 100, ffn / 20) for step in range(20, 101) for ffn in range(16, 25)]
    legal = [member for member in found if attention & set(member.layers)]
    return min(legal, key=lambda member: abs(params(shape, member) / total - share))


def without_layers(shape: DecoderShape, share: float) -> Member:
    """Full widths, and as many layers as come nearest to the share: pairs of a mixer and its FFN, spread over the network."""
    most = whole(shape)
    pairs = most.depth // 2
    stride = next(k for k in range(pairs // 2 + 1, 0, -1) if math.gcd(k, pairs) == 1)
    order = [2 * (i * stride % pairs) + half for i in range(pairs) for half in (0, 1)]
    attention = {i for i, block in enumerate(shape.arch.blocks) if isinstance(block.attention, Attention)}
    found = [replace(most, layers=tuple(sorted(order[:kept]))) for kept in range(1, len(order) + 1)]
    legal = [member for member in found if attention & set(member.layers)]
    total = params(shape, most)
    return min(legal, key=lambda member: abs(params(shape, member) / total - share))


def params(shape: DecoderShape, member: Member) -> int:
    own = cut_shape(shape, member)
    return count(own, own.arch, Workload()).params


def gates_of(shape: DecoderShape, member: Member, device: torch.device) -> Gates:
    """Zeros and ones over the parent's width that say what a member keeps."""
    most, groups = whole(shape), shape.mamba.groups if shape.mamba else 1

    def ones(kept: int, width: int) -> Tensor:
        return (torch.arange(width, device=device) < kept).float()

    return Gates(
        hidden=ones(member.hidden, most.hidden),
        ffn=ones(member.widest_ffn, most.widest_ffn),
        kv=ones(member.kv_heads, most.kv_heads),
        query=ones(member.heads_per_kv, most.heads_per_kv),
        mamba_heads=ones(member.mamba_heads // groups, most.mamba_heads // groups),
        channels=ones(member.mamba_head_dim, most.mamba_head_dim),
        state=ones(member.state, most.state),
        layers=torch.tensor([float(layer in member.layers) for layer in range(most.depth)], device=device),
    )


class Clock:
    """Milliseconds between marks, on the GPU's own clock where there is one."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.marks = device.type == "cuda", list[Any]()

    def mark(self) -> None:
        if not self.cuda:
            self.marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def told(self) -> list[float]:
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return [1000 * (b - a) for a, b in zip(self.marks, self.marks[1:], strict=False)]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One parent, its weights in training, and a micro-batch."""

    net: Network
    weights: dict[str, Tensor]
    teacher: dict[str, Tensor]
    learner: Learner
    leaves: Leaves
    tokens: Tensor

    def step(self, run: Callable[..., Tensor], member: Member | None, gates: Gates) -> list[float]:
        """Milliseconds of the parent's forward, of forward, backward and optimizer. A member is sliced, None is whole."""
        device, clock = self.tokens.device, Clock(self.tokens.device)
        clock.mark()
        with torch.no_grad(), mixed(device):
            target = hidden_states(self.net, self.teacher, self.tokens), head(self.net, self.teacher)
        clock.mark()
        with mixed(device):
            net, weights = self.net, self.weights
            if member is not None:
                weights = self.leaves(weights, member)
                net = replace(net, shape=cut_shape(net.shape, member))
            loss = head_kl(target, (run(net, weights, self.tokens, gates=gates), head(net, weights)))
        clock.mark()
        torch.autograd.backward(loss)
        clock.mark()
        self.learner.step(lr=1e-5, clip=1.0)
        clock.mark()
        return clock.told()

    def peak(self, step: Callable[[], object]) -> int:
        """Bytes that one step holds at most beyond what is there before it."""
        if self.tokens.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            step()
        assert profiled.profiler is not None
        results: Any = profiled.profiler.kineto_results
        events = [event for event in results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak


def bench_of(name: str, device: torch.device) -> Bench:
    sizes, vocab, batch, time_ = SHAPES[name]
    torch.manual_seed(0)
    model = build(sizes, vocab)
    net = network_of(model.config, family_of(model.config))
    own: Mapping[str, Tensor] = model.state_dict()
    teacher = {name: weight.to(device) for name, weight in own.items()}
    weights = {name: weight.to(device, copy=True).requires_grad_() for name, weight in own.items()}
    learner = Learner(weights, adam(weights, lr=1e-5))
    tokens = torch.randint(vocab, (batch, time_), device=device)
    leaves = Leaves(weights, net.shape, net.family)
    return Bench(net=net, weights=weights, teacher=teacher, learner=learner, leaves=leaves, tokens=tokens)


def measure(name: str, device: torch.device, rounds: int, *, compiled: bool) -> list[dict[str, Any]]:
    """Every size and way of one shape."""
    bench = bench_of(name, device)
    shape = bench.net.shape
    run = torch.compile(hidden_states, dynamic=False) if compiled else hidden_states
    total, rows = params(shape, whole(shape)), list[dict[str, Any]]()
    steps = dict[int, Callable[[], list[float]]]()
    if compiled:
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = 32  # one graph for each size; at the default of 8 the last would run eagerly
    sizes = itertools.product((1.0, 0.5), ("slice",)) if compiled else itertools.product(SHARES, WAYS)
    for share, way in sizes:
        if share < 1 or way not in ("widths", "layers"):
            of_layers = way == "layers"
            member = without_layers(shape, share) if of_layers else member_at(shape, share, depth=way != "widths")
            rows.append(
                {
                    "shape": name,
                    "compiled": compiled,
                    "way": way,
                    "wanted_share": share,
                    "params_share": params(shape, member) / total,
                    "params": params(shape, member),
                    "member": member.to_json(),
                }
            )
            gates = gates_of(shape, member, device) if way == "mask" else OPEN
            sliced = member if way != "mask" else None
            steps[len(rows) - 1] = lambda sliced=sliced, gates=gates: bench.step(run, sliced, gates)
    times = {place: list[list[float]]() for place in steps}
    for place, step in steps.items():
        step()  # the first compiles, makes the moments and fills the allocator
        rows[place]["peak_bytes"] = bench.peak(step)
    for _ in range(rounds):
        for place, step in steps.items():
            times[place].append(step())
    for place, row in enumerate(rows):
        names = ("parent_forward_ms", "forward_ms", "backward_ms", "optimizer_ms")
        row |= dict(zip(names, map(statistics.median, zip(*times[place], strict=True)), strict=True))
        row["step_ms"] = statistics.median(sum(own[1:]) for own in times[place])
        row["rounds"] = rounds
    held = sum(weight.numel() * weight.element_size() for weight in bench.weights.values())
    for row in rows:
        row |= {"step_share": row["step_ms"] / rows[0]["step_ms"], "tokens": bench.tokens.numel()}
        row |= {"weight_bytes": held, "scan_kernel": device.type == "cuda" and not compiled and ssd.kernels()}
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'shape':6} {'mode':8} {'way':6} {'params':>7} {'step ms':>9} {'of full':>8} {'forward':>8} {'backward':>9} "
        f"{'Adam':>7} {'parent':>7} {'peak MB':>9}"
    ]
    for row in rows:
        mode = "compiled" if row["compiled"] else "eager"
        lines.append(
            f"{row['shape']:6} {mode:8} {row['way']:6} {row['params_share']:7.0%} {row['step_ms']:9.1f} "
            f"{row['step_share']:8.2f} {row['forward_ms']:8.1f} {row['backward_ms']:9.1f} {row['optimizer_ms']:7.1f} "
            f"{row['parent_forward_ms']:7.1f} {row['peak_bytes'] / 1e6:9.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--shapes", default="", help="of small, medium, large, huge; by default the first two on a CPU, all on a GPU"
    )
    parser.add_argument("--rounds", type=int, default=0, help="by default 8 on a CPU, 20 on a GPU")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; by default torch's own choice")
    parser.add_argument(
        "--compile", action="store_true", help="100 and 50 %% compiled, too (a minute or more for each graph)"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rounds = arguments.rounds or (20 if device.type == "cuda" else 8)
    names = (arguments.shapes or ("small,medium,large,huge" if device.type == "cuda" else "small,medium")).split(",")
    start, rows = time.perf_counter(), list[dict[str, Any]]()
    for compiled in (False, True) if arguments.compile else (False,):
        for name in names:
            rows += measure(name, device, rounds, compiled=compiled)
            print(f"{name} {'compiled' if compiled else 'eager'}: {time.perf_counter() - start:.0f} s", flush=True)
            write(arguments.out, device, rows)
    print(table(rows))


def write(out: Path, device: torch.device, rows: list[dict[str, Any]]) -> None:
    cuda = device.type == "cuda"
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    result = {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__},
        "commit": told.stdout.strip(),
        "precision": "bf16 products, fp32 weights" if cuda else type(mixed(device)).__name__,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
