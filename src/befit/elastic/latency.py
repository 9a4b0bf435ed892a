"""What members of a nested model take in time: a price for latency budgets, measured once on whole members.

Time depends on the widths, not on the weights, and nearly adds up over sub-blocks. So a few members are measured, as the plain
modules of transformers that a cut writes: at two or three widths of the embedding, all layers with every sub-block narrowest;
then one kind of sub-block wider (the corners of its own widths, all its layers alike, so that differences are large against
noise), then fewer layers of a kind. Differences give what each kind of layer takes, multilinear between what was measured,
as the products of widths are that make up most of a layer's work. A few more members, drawn at random, test the table.

Timing is that of `befit.lm.timing`: static shapes on preallocated caches, in CUDA graphs on a GPU, all members in turns.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Mamba
from befit.arch.member import WIDTHS, Member
from befit.cost.device import Device
from befit.cost.grid import Grid, monotone
from befit.cost.latency import exact
from befit.cost.workload import Workload
from befit.elastic.baselines import GROUPS
from befit.elastic.space import NestedSpace
from befit.lm.member_timing import MemberTimer
from befit.lm.network import Network
from befit.lm.timing import EFFORT, Effort
from befit.progress import Progress, silent

HELD_OUT = 3
"""Members measured only to test the table."""

MOST = 36
"""Members measured for the table at most, as far as two widths of the embedding need no more."""

Timer = Callable[[Sequence[Member]], Sequence[float]]
"""Milliseconds of the workload that members take, measured together."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A member that was measured but is not part of the table: the honest test of it."""

    member: Member
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Relative: |predicted - measured| / measured."""
        return abs(self.predicted_ms - self.measured_ms) / self.measured_ms


@dataclass(frozen=True, kw_only=True)
class MemberLatency:
    """Milliseconds of the workload for any member: prefill of the batch and every decode step after it. A `Price`.

    Never less for a wider axis or one more layer. Given the embedding channels it adds up over sub-blocks. FFNs of different
    widths are priced one by one, as befit's own class runs them; filled up with zeros they take the time of the widest.
    """

    device: Device
    """Where it was measured."""
    workload: Workload
    """Batch, lengths and number formats it was measured at."""
    arch: DecoderArch
    """The layers of the whole."""
    fixed: Grid
    """Embedding, last norm and output projection, by `hidden`."""
    layers: Mapping[str, Grid]
    """What a layer takes with its sub-blocks at their narrowest, by `hidden`; one entry for each kind of layer."""
    parts: Mapping[str, Grid]
    """What the widths of a sub-block (attention, mamba, ffn) add to that, by `hidden` and its own widths."""
    held_out: tuple[Checked, ...] = ()
    """Members that the table was tested on."""
    _known: dict[Any, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, member: Member) -> float:
        """Raises `IllegalArch` for a member outside of the space that was measured."""
        if member not in self._known:
            kept = Counter((self.arch.blocks[layer], member.ffn_of(layer)) for layer in member.layers)
            fixed = self.fixed.at({"hidden": member.hidden})
            self._known[member] = fixed + sum(number * self._layer(member, *kind) for kind, number in kept.items())
        return self._known[member]

    def _layer(self, member: Member, block: Block, ffn: int) -> float:
        """What a layer takes that is `block` in the whole."""
        widths = {axis: getattr(member, axis) for axis in WIDTHS} | {"ffn": ffn}
        grids = [self.layers[block.name], *(self.parts[part] for part in parts_of(block))]
        total = 0.0
        for number, grid in enumerate(grids):
            key = (block, number, *(widths[axis] for axis in grid.axes))
            if key not in self._known:
                self._known[key] = grid.at(widths)
            total += self._known[key]
        return total

    def median_error(self) -> float:
        """Of the members held out, of which there must be some."""
        return median(one.error for one in self.held_out)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        return told | {
            "device": asdict(self.device),
            "workload": asdict(self.workload),
            "arch": self.arch.to_json(),
            "fixed": self.fixed.to_json(),
            "layers": {name: grid.to_json() for name, grid in self.layers.items()},
            "parts": {name: grid.to_json() for name, grid in self.parts.items()},
            "held_out": [asdict(one) | {"member": one.member.to_json()} for one in self.held_out],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "MemberLatency":
        """Read what `to_json` wrote. Raises `BadTable` for an unknown or missing key, `IllegalArch` inside archs and members."""
        given = exact(MemberLatency, data)
        given["device"] = Device(**exact(Device, given["device"]))
        given["workload"] = Workload(**exact(Workload, given["workload"]))
        given["arch"] = DecoderArch.from_json(given["arch"])
        given["fixed"] = Grid.from_json(given["fixed"])
        for name in ("layers", "parts"):
            given[name] = {key: Grid.from_json(grid) for key, grid in given[name].items()}
        given["held_out"] = tuple(_checked(one) for one in given["held_out"])
        return MemberLatency(**given)


def parts_of(block: Block) -> tuple[str, ...]:
    """The sub-blocks of a layer that have widths, by the names of `befit.elastic.baselines.GROUPS`."""
    kinds = {
        "attention": isinstance(block.attention, Attention),
        "mamba": isinstance(block.attention, Mamba),
        "ffn": isinstance(block.ffn, Ffn),
    }
    return tuple(name for name in GROUPS if kinds[name])


def measure_prices(  # noqa: PLR0913 - a model is three things
    net: Network,
    config: Any,
    weights: Mapping[str, Tensor],
    space: NestedSpace,
    workload: Workload,
    device: Device,
    *,
    effort: Effort = EFFORT,
    progress: Progress = silent,
) -> MemberLatency:
    """Measure the members of `space` on a device, in the workload's number formats; fewer than forty of them are timed.

    `net`, `config` and `weights` are those of the whole nested model. Of `effort` only repeats and seconds count. Raises
    `IllegalArch` if no plain class of transformers can hold a member.
    """
    timer = MemberTimer(
        net=net, config=config, weights=weights, workload=workload, device=device, effort=effort, progress=progress
    )
    return prices_from(space, workload, device, timer)


def measure_member(
    net: Network,
    config: Any,
    weights: Mapping[str, Tensor],
    member: Member,
    workload: Workload,
    device: Device,
    effort: Effort = EFFORT,
) -> float:
    """Milliseconds of the workload that one member takes, measured as a whole; see `MemberTimer` for several in turns."""
    timer = MemberTimer(net=net, config=config, weights=weights, workload=workload, device=device, effort=effort)
    return timer([member])[0]


def prices_from(
    space: NestedSpace, workload: Workload, device: Device, timer: Timer, *, seed: int = 0
) -> MemberLatency:
    """The table that follows from what a few members take; `timer` is asked once, for all of them together."""
    plan, checks = Plan.of(space), drawn(space, HELD_OUT, seed)
    members = list(dict.fromkeys([*plan.members(), *checks]))
    times = dict(zip(members, timer(members), strict=True))
    table = plan.table(times, workload, device)
    checked = (Checked(member=one, predicted_ms=table(one), measured_ms=times[one]) for one in dict.fromkeys(checks))
    return replace(table, held_out=tuple(checked))


def drawn(space: NestedSpace, number: int, seed: int) -> list[Member]:
    """Random members that plain modules can be, with FFNs of one width."""
    draw, depths = random.Random(seed), [depth for depth in space.depth if _runs(space.shape, space.kept(depth))]
    return [
        Member(**{axis: draw.choice(getattr(space, axis)) for axis in WIDTHS}, layers=space.kept(draw.choice(depths)))
        for _ in range(number)
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which members tell the times of all others, and how."""

    shape: DecoderShape
    """The whole."""
    points: Mapping[str, tuple[int, ...]]
    """Widths of every axis that are measured, ascending."""

    @staticmethod
    def of(space: NestedSpace) -> "Plan":
        """Both ends of every axis, of the FFN and the embedding also the middle; the latter's only if few members tell all."""
        points = {axis: _ends(getattr(space, axis), middle=axis in ("hidden", "ffn")) for axis in WIDTHS}
        plan = Plan(shape=space.shape, points=points)
        if len(plan.members()) > MOST:
            plan = replace(plan, points=points | {"hidden": _ends(space.hidden, middle=False)})
        return plan

    def members(self) -> list[Member]:
        """All that must be measured, none twice."""
        found = [self._base(hidden) for hidden in self.points["hidden"]]
        found += [member for part in self._parts() for member in self._wider(part)]
        found += [member for block in self._kinds() for member in self._fewer(block)[0]]
        return list(dict.fromkeys(found))

    def table(self, times: Mapping[Member, float], workload: Workload, device: Device) -> MemberLatency:
        """From the times of `members`."""
        base = np.array([times[self._base(hidden)] for hidden in self.points["hidden"]])
        parts, layers, rest = dict[str, Grid](), dict[str, Grid](), base.copy()
        for part, layers_with in self._parts().items():
            axes = ("hidden", *GROUPS[part])
            wider = np.array([times[member] for member in self._wider(part)]).reshape(len(base), -1)
            parts[part] = self._grid(axes, (wider - base[:, None]) / layers_with)
        for block, layers_like in self._kinds().items():
            fewer, gone = self._fewer(block)
            saved = base - np.array([times[member] for member in fewer]) if gone else np.zeros(len(base))
            layers[block.name] = self._grid(("hidden",), saved / max(gone, 1))
            rest -= layers_like * np.array(layers[block.name].ms)
        return MemberLatency(
            device=device,
            workload=workload,
            arch=self.shape.arch,
            fixed=self._grid(("hidden",), rest),
            layers=layers,
            parts=parts,
        )

    def _parts(self) -> Counter[str]:
        """How many layers have each kind of sub-block."""
        return Counter(part for block in self.shape.arch.blocks for part in parts_of(block))

    def _kinds(self) -> Counter[Block]:
        """How many layers are alike."""
        return Counter(self.shape.arch.blocks)

    def _base(self, hidden: int) -> Member:
        """All layers with the narrowest sub-blocks."""
        widths = {axis: points[0] for axis, points in self.points.items()} | {"hidden": hidden}
        return Member(**widths, layers=tuple(range(self.shape.layers)))

    def _wider(self, part: str) -> list[Member]:
        """For every width of the embedding, all combinations of one sub-block's widths, the narrowest first."""
        axes = ("hidden", *GROUPS[part])
        combinations = product(*(self.points[axis] for axis in axes))
        return [replace(self._base(own[0]), **dict(zip(axes, own, strict=True))) for own in combinations]

    def _fewer(self, block: Block) -> tuple[list[Member], int]:
        """For every width of the embedding one with fewer layers of a kind: one, or none if there is just one; how many go.

        Nothing where the only one cannot go: it then counts as part of what all members have.
        """
        alike = [layer for layer, own in enumerate(self.shape.arch.blocks) if own == block]
        gone = alike[1:] or alike
        kept = tuple(layer for layer in range(self.shape.layers) if layer not in gone)
        if not _runs(self.shape, kept):
            return [], 0
        return [replace(self._base(hidden), layers=kept) for hidden in self.points["hidden"]], len(gone)

    def _grid(self, axes: tuple[str, ...], values: NDArray[np.float64]) -> Grid:
        points = tuple(self.points[axis] for axis in axes)
        ms = monotone(values.reshape([len(own) for own in points]))
        return Grid(axes=axes, points=points, ms=tuple(float(value) for value in ms.ravel()))


def _runs(shape: DecoderShape, layers: Sequence[int]) -> bool:
    """Whether transformers can generate with these layers alone: a hybrid needs an attention layer, if its parent has one."""

    def attends(kept: Sequence[int]) -> bool:
        return any(isinstance(shape.arch.blocks[layer].attention, Attention) for layer in kept)

    return bool(layers) and (shape.mamba is None or attends(layers) or not attends(range(shape.layers)))


def _ends(options: Sequence[int], *, middle: bool) -> tuple[int, ...]:
    """The least and the largest of some widths, and the one in the middle if asked for; ascending."""
    low, high = min(options), max(options)
    between = {min(options, key=lambda width: abs(2 * width - low - high))} if middle else set[int]()
    return tuple(sorted({low, high} | between))


def _checked(data: Any) -> Checked:
    given = exact(Checked, data)
    given["member"] = Member.from_json(given["member"])
    return Checked(**given)
