"""What one elastic run works on: parent, text, device, workload, and the names of what it keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from befit.arch.member import whole
from befit.cost.count import count
from befit.cost.device import Device, this_device
from befit.cost.workload import Workload
from befit.elastic.budgets import Target, check_targets, parse_targets, price_of
from befit.elastic.config import ElasticConfig
from befit.elastic.space import NestedSpace, default_space
from befit.lm.data import digest as tensor_digest
from befit.lm.data import load_texts, pack, stamp
from befit.lm.families import family_of
from befit.lm.network import Network, network_of
from befit.lm.parent import Parent, find, load_parent, read_config
from befit.lm.precision import DTYPES
from befit.lm.prefix import layout
from befit.lm.team import Team
from befit.progress import Progress
from befit.rundir import Run, digest, read_tensors, write_tensors

REDONE = ("baselines", "between", "held_out", "out")
"""Settings that may change in an existing run directory, because no finished stage depends on them alone."""
LATENCY = "latency_ms"
UNMEASURED = {LATENCY: 1e18}
"""Stands for the parent's latency until it is measured: above any bound in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Token ids of every stage of training, and of the judgement."""

    train: tuple[Tensor, ...]
    """(N, T) for each stage."""
    held_out: Tensor
    """(M, T) of the longest stage."""


@dataclass(kw_only=True)
class Job:
    """What all stages of one run share."""

    config: ElasticConfig
    team: Team
    run: Run
    progress: Progress
    parent: Parent
    plain: Any
    """The parent's own transformers configuration."""
    net: Network
    weights: dict[str, Tensor]
    """The parent's, by their names in memory, in fp32."""
    device: Device
    dtype: str
    """Of what is written."""
    workload: Workload
    blocks: Blocks

    @staticmethod
    def open(config: ElasticConfig, team: Team, progress: Progress) -> "Job":
        """Check everything that can be checked before any work, then load parent and text.

        Raises `BadBudget`, `BadData`, `UnsupportedModel`, `IllegalArch`, `Infeasible` or `RunConflict`.
        """
        with team.first():
            plain = read_config(find(config.parent))
            device = this_device(config.device)
            dtype = _dtype(config, plain)
            workload = Workload.parse(config.workload, base=Workload(weights=dtype, cache=dtype))
            config.training.check(team.size)
            check(config, plain, workload)
            run = Run(folder=config.out)
            if team.main:
                run = Run.open(config.out, config.to_json(), may_change=REDONE)
        parent = load_parent(config.parent, device=device.kind, dtype=torch.float32)
        net = network_of(plain, parent.family)
        if net.rotary is not None:
            net = replace(net, rotary=net.rotary.to(device.kind))
        named = dict(parent.model.named_parameters())
        return Job(
            config=config,
            team=team,
            run=run,
            progress=progress,
            parent=parent,
            plain=plain,
            net=net,
            weights={name: named[name].detach() for name in layout(net.shape, parent.family)},
            device=device,
            dtype=dtype,
            workload=workload,
            blocks=_text_stage(run, team, config, parent),
        )

    def stage(self, name: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of a stage that the main process makes alone."""
        return self.team.stage(self.run, name, key, make)

    @cached_property
    def costs(self) -> dict[str, float]:
        """What can be counted of the parent."""
        return counted_costs(self.net, self.workload)

    def space(self, removal: tuple[int, ...]) -> NestedSpace:
        """All members, given the order in which layers go."""
        return default_space(self.net.shape, removal, least=self.config.least, ffn_per_layer=self.config.ffn_per_layer)

    @property
    def rank_rows(self) -> Tensor:
        """Rows of the first stage to rank channels on."""
        rows = self.blocks.train[0]
        return rows[: max(1, self.config.rank_tokens // rows.shape[1])]

    @property
    def depth_rows(self) -> Tensor:
        """Rows of the first stage to rank layers on."""
        rows = self.blocks.train[0]
        return rows[: max(1, self.config.depth_tokens // rows.shape[1])]

    @cached_property
    def ranked_key(self) -> str:
        """Names the rankings."""
        rows = tensor_digest(self.rank_rows, self.depth_rows)
        return digest("rank axes", self.parent.digest, rows, self.config.least, self.device.kind)


def check(config: ElasticConfig, plain: Any, workload: Workload) -> None:
    """What can be refused from the parent's configuration alone, before anything is loaded or written.

    The order in which layers go is still unknown; the smallest member is checked with the layers that cost most gone.
    """
    net = network_of(plain, family_of(plain))
    whole(net.shape)
    costs = counted_costs(net, workload)
    targets = parse_targets(config.budgets, costs | UNMEASURED)
    if targets[0].cost != LATENCY:
        price = price_of(net.shape, targets[0].cost, workload)
        free = default_space(net.shape, tuple(range(net.shape.layers))[1:], least=config.least)
        check_targets(free, price, targets)


def counted_costs(net: Network, workload: Workload) -> dict[str, float]:
    """Parameters, bytes and FLOPs of a whole network."""
    cost = count(net.shape, net.shape.arch, workload)
    names = ("params", "weight_bytes", "cache_bytes", "memory_bytes", "flops")
    return {name: float(getattr(cost, name)) for name in names}


def targets_of(config: ElasticConfig, costs: Mapping[str, float]) -> tuple[Target, ...]:
    """The budgets, resolved with the parent's costs."""
    return parse_targets(config.budgets, costs)


def _dtype(config: ElasticConfig, plain: Any) -> str:
    """The format of what is written: the one asked for, or the parent's."""
    if config.dtype != "auto":
        return config.dtype
    own = getattr(plain, "dtype", None)
    return next((name for name, dtype in DTYPES.items() if dtype == own), "bf16")


def _text_stage(run: Run, team: Team, config: ElasticConfig, parent: Parent) -> Blocks:
    """Text of every stage as token ids, and held-out text to judge on; tokenised once.

    Raises `BadData` for text that cannot be read or holds less than one sequence of a stage.
    """
    stages = config.training.stages
    rows = [-(-max(s.tokens, config.rank_tokens, config.depth_tokens) // s.sequence) for s in stages]
    longest = max(stage.sequence for stage in stages)

    def make(folder: Path) -> None:
        train, held_out = load_texts(config.data).split()
        # Text is tokenised once for each length, and lengths that divide the longest are cut from its rows.
        lengths = {s.sequence if longest % s.sequence else longest for s in stages}
        most = max(number * stage.sequence for number, stage in zip(rows, stages, strict=True))
        packed = {n: pack(train, parent.tokenizer, n, -(-most // n) * n, config.seed) for n in lengths}
        named = dict[str, Tensor]()
        for i, (stage, number) in enumerate(zip(stages, rows, strict=True)):
            own = packed.get(stage.sequence, packed.get(longest))
            assert own is not None
            named[str(i)] = own.view(-1, stage.sequence)[:number].clone()  # files hold no views of each other
        named["held_out"] = pack(
            held_out, parent.tokenizer, longest, config.held_out * longest, config.seed, at_least=config.held_out
        )
        write_tensors(folder / "text.safetensors", named)

    wanted = {"rows": rows, "lengths": [s.sequence for s in stages], "held_out": config.held_out, "seed": config.seed}
    key = digest("text", config.data and str(Path(config.data).resolve()), stamp(config.data), parent.digest, wanted)
    named = read_tensors(team.stage(run, "text", key, make) / "text.safetensors")
    return Blocks(train=tuple(named[str(i)] for i in range(len(stages))), held_out=named["held_out"])
