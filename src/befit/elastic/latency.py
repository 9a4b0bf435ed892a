"""What members of a nested model take in time: a price for budgets of latency, measured once on whole members.

Time depends on the widths, not on the weights. A layer's work and the bytes it moves are sums of products of its widths (a matrix
is one product of two), so its time is taken to be one too: a constant for each kind of layer, and for each kind of sub-block a
few products of widths, with coefficients that are fitted to measured members and never negative. Such a price never falls when
an axis grows or a layer is added, and given the embedding channels it adds up over sub-blocks.

The members that are measured differ in all axes at once, most widths at one end or the other: every measurement then tells
of every coefficient, and noise averages out. (Tables of differences, one axis at a time, hand all noise of two measurements on
to every part.) They are the plain modules of transformers that a cut writes, timed in turns; a few more are held out to test
the prices.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from statistics import median
from typing import Any

import numpy as np
from scipy import optimize
from torch import Tensor

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Mamba
from befit.arch.member import WIDTHS, Member
from befit.cost.device import Device
from befit.cost.latency import exact
from befit.cost.workload import Workload
from befit.elastic.space import NestedSpace
from befit.errors import BadTable
from befit.lm.member_timing import MemberTimer
from befit.lm.network import Network
from befit.lm.timing import EFFORT, Effort
from befit.progress import Progress, silent

FITTED = 24
"""Members that coefficients are fitted to, if the space has so many: about twice as many as there are coefficients."""

HELD_OUT = 3
"""Members measured only to test the prices."""

Timer = Callable[[Sequence[Member]], Sequence[float]]
"""Milliseconds of the workload that members take, measured together."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A member that was measured but not fitted to: the honest test of the prices."""

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

    FFNs of different widths are priced one by one, as befit's own class runs them; filled up with zeros (the padded layout)
    they take the time of the widest.
    """

    device: Device
    """Where it was measured."""
    workload: Workload
    """Batch, lengths and number formats it was measured at."""
    arch: DecoderArch
    """The layers of the whole."""
    rates: Mapping[str, float]
    """Milliseconds for one unit of each of the `terms`, at least 0."""
    held_out: tuple[Checked, ...] = ()
    """Members that the prices were tested on; none in a space so small that all its members were fitted to."""
    _known: dict[Member, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        wrong = {
            name: rate for name, rate in self.rates.items() if not isinstance(rate, float) or not 0 <= rate < np.inf
        }
        if wrong:
            raise BadTable(f"latency of members: rates must be numbers of at least 0, got {wrong}; measure again")

    def __call__(self, member: Member) -> float:
        """Raises `KeyError` for a member of another parent."""
        if member not in self._known:
            told = terms(self.arch, member)
            self._known[member] = sum(self.rates[name] * number for name, number in told.items())
        return self._known[member]

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
            "rates": dict(self.rates),
            "held_out": [asdict(one) | {"member": one.member.to_json()} for one in self.held_out],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "MemberLatency":
        """Read what `to_json` wrote. Raises `BadTable` for an unknown or missing key, `IllegalArch` inside archs and members."""
        given = exact(MemberLatency, data)
        given["device"] = Device(**exact(Device, given["device"]))
        given["workload"] = Workload(**exact(Workload, given["workload"]))
        given["arch"] = DecoderArch.from_json(given["arch"])
        given["held_out"] = tuple(_checked(one) for one in given["held_out"])
        return MemberLatency(**given)


def terms(arch: DecoderArch, member: Member) -> dict[str, float]:
    """The products of widths that a member's time is made of, summed over its layers; `arch` is that of the whole."""
    found: dict[str, float] = {"always": 1, "always x hidden": member.hidden}
    kept = Counter((arch.blocks[layer], member.ffn_of(layer)) for layer in member.layers)
    for (block, ffn), number in kept.items():
        for name, size in (_of_block(block, member, ffn) | {f"layer {block.name}": 1}).items():
            found[name] = found.get(name, 0) + number * size
    return found


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
    """Measure members of `space` on a device, in the workload's number formats; fewer than thirty of them are timed.

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
    """The prices that follow from what a few members take; `timer` is asked once, for all of them together."""
    draw = random.Random(seed)
    fitted = spread(space, FITTED, draw)
    tested = [member for member in drawn(space, HELD_OUT, draw) if member not in fitted]
    times = dict(zip([*fitted, *tested], timer([*fitted, *tested]), strict=True))
    rates = fit_rates(space.shape.arch, {member: times[member] for member in fitted})
    price = MemberLatency(device=device, workload=workload, arch=space.shape.arch, rates=rates)
    checked = [Checked(member=one, predicted_ms=price(one), measured_ms=times[one]) for one in tested]
    return replace(price, held_out=tuple(checked))


def fit_rates(arch: DecoderArch, times: Mapping[Member, float]) -> dict[str, float]:
    """Milliseconds for one unit of each term, from milliseconds of members: non-negative least squares on relative errors."""
    told = [terms(arch, member) for member in times]
    units = {
        name: max(own.get(name, 0) for own in told) for name in dict.fromkeys(name for own in told for name in own)
    }
    rows = np.array([[own.get(name, 0) / unit for name, unit in units.items()] for own in told])
    solution: Any = optimize.nnls(rows / np.array(list(times.values()))[:, None], np.ones(len(rows)))
    return {name: float(rate) / unit for (name, unit), rate in zip(units.items(), solution[0], strict=True)}


def spread(space: NestedSpace, number: int, draw: random.Random) -> list[Member]:
    """Different members to fit to, fewer than `number` if there are no more: the whole, the smallest widths, and mixtures.

    Mixtures take either end of every axis, now and then its middle, and all layers of a kind, or one, or none if there is but
    one: members that need not be of the space, as its depths remove layers of all kinds in one order.
    """
    every = space.whole.layers
    found = {space.whole, Member(**{axis: getattr(space, axis)[-1] for axis in WIDTHS}, layers=every)}
    for _ in range(50 * number):
        if len(found) >= number:
            break
        widths = {axis: _one_of(getattr(space, axis), draw) for axis in WIDTHS}
        layers = _some_layers(space.shape.arch, draw)
        if can_generate(space.shape, layers):
            found.add(Member(**widths, layers=layers))
    return sorted(found, key=repr)


def drawn(space: NestedSpace, number: int, draw: random.Random) -> list[Member]:
    """Different random members of the space, fewer than `number` if there are no more; FFNs are of one width."""
    depths = [depth for depth in space.depth if can_generate(space.shape, space.kept(depth))]
    found = dict[Member, None]()
    for _ in range(50 * number):
        if len(found) >= number:
            break
        widths = {axis: draw.choice(getattr(space, axis)) for axis in WIDTHS}
        found[Member(**widths, layers=space.kept(draw.choice(depths)))] = None
    return list(found)


def can_generate(shape: DecoderShape, layers: Sequence[int]) -> bool:
    """Whether transformers' class can generate with these layers alone: a hybrid needs an attention layer, if it had any."""

    def attends(kept: Sequence[int]) -> bool:
        return any(isinstance(shape.arch.blocks[layer].attention, Attention) for layer in kept)

    return bool(layers) and (shape.mamba is None or attends(layers) or not attends(range(shape.layers)))


def _of_block(block: Block, member: Member, ffn: int) -> dict[str, float]:
    """The terms of one layer: its matrices, what attention or the scan does besides, and norms."""
    hidden, found = member.hidden, dict[str, float]()
    parts = 0
    if isinstance(block.attention, Attention):
        query, parts = member.kv_heads * member.heads_per_kv, parts + 1
        window = f" in a window of {block.attention.window}" if block.attention.window else ""
        found |= {"hidden x query": hidden * query, "hidden x kv": hidden * member.kv_heads, f"query{window}": query}
    if isinstance(block.attention, Mamba):
        inner, state, parts = member.mamba_heads * member.mamba_head_dim, member.state, parts + 1
        found |= {"hidden x inner": hidden * inner, "hidden x state": hidden * state}
        found |= {"inner x state": inner * state, "inner": inner}
    if isinstance(block.ffn, Ffn):
        parts += 1
        found |= {"hidden x ffn": hidden * ffn, "ffn": ffn}
    return found | {"hidden": parts * hidden}


def _one_of(options: Sequence[int], draw: random.Random) -> int:
    """The first or the last, or now and then the one in the middle."""
    return draw.choice([options[0], options[-1], options[0], options[-1], options[len(options) // 2]])


def _some_layers(arch: DecoderArch, draw: random.Random) -> tuple[int, ...]:
    kept = list[int]()
    for kind in dict.fromkeys(arch.blocks):
        own = [layer for layer, block in enumerate(arch.blocks) if block == kind]
        least = min(1, len(own) - 1)
        kept += own[: draw.choice([len(own), len(own), least])]
    return tuple(sorted(kept))


def _checked(data: Any) -> Checked:
    given = exact(Checked, data)
    given["member"] = Member.from_json(given["member"])
    return Checked(**given)
