"""Cut a member out of a nested checkpoint: choose it, read only its slices, write an ordinary checkpoint.

A budget that the model was trained for gives the member in the manifest, and the hash there is checked. Any other budget on the
trained cost gives the router's choice between the trained ones. Other bounds, several of them too, are met in two steps: the
largest share whose choice keeps them all, then `fit` with the tightest of the bounds as the price.

Neither the parent nor the member is ever built as a module, and of the weights no more than one file's worth is in memory.
"""

import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from befit.arch.decoder import DecoderArch
from befit.arch.member import Member, cut_shape
from befit.budget import Bound, Budget, human, word_of
from befit.cost.count import Cost, count
from befit.cost.workload import BYTES, Workload
from befit.elastic.budgets import Price, fit, price_of
from befit.elastic.fit import USABLE, free_memory
from befit.elastic.manifest import NAME, Entry, Manifest
from befit.elastic.nested import ROUTER, Nested, Pieces, memory_name, open_nested, read_folder
from befit.errors import BadBudget, Infeasible, RunConflict
from befit.lm.checkpoint import SHARD_BYTES, Checkpoint, write_shards
from befit.lm.extract import LAYOUTS, member_config, own_code, pad, padded, sizes
from befit.lm.prefix import plan, take
from befit.rundir import replacing_folder, write_json

RECORD = "cut.json"
"""What a cut says of itself; a folder that has it may be replaced by another cut."""

COUNTED = ("params", "memory_bytes", "weight_bytes", "cache_bytes", "flops")
"""Costs that follow from the sizes alone."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

CARRIED = ("generation_config.json", "token*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""Files that a cut takes over as they are: the tokenizer's, and how to generate; chat templates lie beside them."""

SEARCHED = 16
"""Halvings of the range of shares: finer than the steps of any axis."""


@dataclass(frozen=True, kw_only=True)
class CutResult:
    """A member, written."""

    member: Member
    share: float
    """Of the parent's trained cost."""
    cost: Cost
    """Counted, of what was written, at the workload."""
    network: Cost
    """The same without zeros that fill up FFNs; equal to `cost` but in the padded layout of FFNs of different widths."""
    workload: Workload
    bounds: tuple[Bound, ...]
    """What was asked for, absolute."""
    layout: str
    """plain, padded or own-code."""
    folder: Path
    hash: str
    """Of the member as trained (`befit.elastic.nested.hash_of`)."""
    trained: bool
    """Whether this is a member of a budget trained for, and its hash that of the manifest."""
    latency_ms: float | None
    """Measured on the device of the training run, where that was done; never predicted."""
    free: str | None
    """The memory that the member was fitted to, in words; None if a budget alone was given."""
    seconds: float
    bytes_read: int
    """Of weights."""

    def lines(self) -> tuple[str, ...]:
        """For the user: what was cut, its counted costs against the budget, and which layout it has."""
        told = {name: float(getattr(self.cost, name)) for name in COUNTED}
        if self.latency_ms is not None:
            told["latency_ms"] = self.latency_ms
        origin = "trained for" if self.trained else "between the budgets trained for"
        layouts = {
            "plain": "plain checkpoint: transformers' own class loads it, no code comes with it",
            "padded": "FFNs padded with zeros to the widest: exact, a plain checkpoint, but it takes the room of the widest: "
            f"{human('params', self.cost.params)} parameters, {human('params', self.network.params)} without the zeros "
            "(--layout own-code)",
            "own-code": "FFNs as wide as they are: load it with trust_remote_code=True, its modelling file is beside the weights",
        }
        return (
            f"a member at {self.share * 100:.4g} % of the nested model, {origin}",
            *((self.free,) if self.free else ()),
            *(f"counted: {line}" for line in Budget(bounds=self.bounds).explain(told)),
            f"counted: {human('params', self.cost.params)} parameters, {human('memory_bytes', self.cost.memory_bytes)} "
            f"of memory at batch {self.workload.batch}, context {self.workload.context}",
            layouts[self.layout],
            f"{human('weight_bytes', self.bytes_read)} read in {self.seconds:.1f} s; written to {self.folder}",
        )


def cut(
    source: Path,
    out: Path,
    *,
    budget: str | None = None,
    fit: bool = False,
    workload: Workload | None = None,
    layout: str = "padded",
    dtype: str | None = None,
) -> CutResult:
    """Write the largest member of the nested model in `source` (a run, or its nested folder) that keeps `budget` to `out`.

    `budget` is in the words of `befit.budget` ("memory=8GiB, params=50%"; a bare "75%" is of the trained cost); `fit` adds
    that weights and cache fit in 90 % of the memory free here. Memory is counted at `workload`, by default that of the
    training. `layout`, padded or own-code, matters only where FFN widths differ. `dtype` (fp32, bf16, fp16) is the format
    of the file, by default the workload's. Raises `BadBudget` for a budget that cannot be read or checked, `Infeasible`
    below the smallest member, `RunConflict` for a folder that is no nested model, or an `out` that holds anything but a cut.
    """
    begin = time.perf_counter()
    folder = _nested_folder(source)
    _check_out(out)
    for what, given, known in (("layout", layout, LAYOUTS), ("dtype", dtype, (None, *DTYPES))):
        if given not in known:
            raise BadBudget(f"{what} must be one of {', '.join(filter(None, known))}, got {given!r}")
    nested, manifest = open_nested(folder), read_folder(folder)[1]
    workload = workload or manifest.workload
    chooser = _Chooser(nested=nested, manifest=manifest, workload=workload, layout=layout)
    here = free_memory() if fit else None
    bounds = chooser.bounds(budget, None if here is None else USABLE * here[0])
    member, share, entry = chooser.choose(bounds)
    writer = _Writer(
        nested=nested, folder=folder, member=member, share=share, layout=layout, dtype=dtype or workload.weights
    )
    with replacing_folder(out) as temporary:
        digest, bytes_read = writer.write(temporary, manifest)
        if entry is not None and digest != entry.hash:
            raise RunConflict(
                f"the weights of {entry.target} in {folder} are not those that were trained (their hash differs from the "
                "manifest's); copy the nested folder again, or train again"
            )
        result = CutResult(
            member=member,
            share=share,
            cost=chooser.cost(member),
            network=chooser.network(member),
            workload=workload,
            bounds=bounds,
            layout=writer.written_layout,
            folder=out,
            hash=digest,
            trained=entry is not None,
            latency_ms=entry.latency_ms if entry else None,
            free=None
            if here is None
            else f"{human('memory_bytes', here[0])} free of {here[1]}, {USABLE:.0%} of it used",
            seconds=time.perf_counter() - begin,
            bytes_read=bytes_read,
        )
        write_json(temporary / RECORD, _record(result))
    return result


@dataclass(frozen=True, kw_only=True)
class _Chooser:
    """From bounds to a member."""

    nested: Nested
    manifest: Manifest
    workload: Workload
    layout: str

    def network(self, member: Member) -> Cost:
        """What can be counted of a member as it is."""
        shape = cut_shape(self.nested.net.shape, member)
        return count(shape, shape.arch, self.workload)

    def cost(self, member: Member) -> Cost:
        """What can be counted of a member as it will be written."""
        return self.network(padded(member, self.nested.net.shape) if self.layout == "padded" else member)

    def bounds(self, budget: str | None, memory: float | None) -> tuple[Bound, ...]:
        """The absolute bounds of a budget text, and that of the memory here, if given. Raises `BadBudget`."""
        found = dict[str, Bound]()
        if memory is not None:
            found["memory_bytes"] = Bound(cost="memory_bytes", op="<=", value=memory)
        if budget is not None:
            for bound in Budget.parse(_in_full(budget, self.trained_cost)).resolve(self._parent_costs()).bounds:
                known = found.get(bound.cost)
                found[bound.cost] = bound if known is None or bound.value < known.value else known
        if not found:
            raise BadBudget('say what to cut: a budget such as "memory=8GiB" or "75%", or --fit for what is free here')
        unknown = [word_of(cost) for cost in found if cost not in (*COUNTED, "latency_ms")]
        if unknown:
            raise BadBudget(
                f"a member's {unknown[0]} is neither counted nor measured; give bounds on "
                f"{', '.join(word_of(cost) for cost in COUNTED)}, or run `befit measure` on cuts"
            )
        return tuple(found.values())

    @property
    def trained_cost(self) -> str:
        return self.nested.targets[0].cost

    def choose(self, bounds: tuple[Bound, ...]) -> tuple[Member, float, Entry | None]:
        """The largest member within the bounds, the share that the router was asked for, its entry if it is a trained one."""
        alone = bounds[0] if len(bounds) == 1 and self._as_trained(bounds[0].cost) else None
        for entry in self.manifest.entries:
            # What was trained for a budget is what a user of that budget gets, even if padding takes more: he is told.
            if alone is not None and math.isclose(entry.target.limit, alone.value, rel_tol=1e-9):
                return entry.member, entry.target.share, entry
        if any(bound.cost == "latency_ms" for bound in bounds):
            return self._measured(bounds)
        space, price = self.nested.space, self._tightness(bounds)
        if price(space.whole) <= 1:
            return space.whole, 1.0, self._entry_of(space.whole)
        self._refuse_too_small(bounds)
        if alone is not None and (self.layout == "own-code" or not space.ffn_per_layer):
            share = alone.value / self.nested.cost(space.whole)
            return self.nested.member(share), share, None
        share = self._largest_share(price)
        with torch.no_grad():
            router = self.nested.router
            member = fit(space, router.choose(share), price, 1.0, preference=router.preference(share))
        if self.trained_cost != "latency_ms":  # the share that it turned out to have, by which gains are taken
            share = self.nested.cost(member) / self.nested.cost(space.whole)
        return member, share, None

    def _as_trained(self, cost: str) -> bool:
        """Whether a bound on `cost` means what the targets mean; parameters do not depend on the workload."""
        return cost == self.trained_cost and (cost == "params" or self.workload == self.manifest.workload)

    def _entry_of(self, member: Member) -> Entry | None:
        return next((entry for entry in self.manifest.entries if entry.member == member), None)

    def _largest_share(self, price: Price) -> float:
        """The largest share whose choice, as the router makes it, is within the price of 1."""
        low, high = 0.0, 1.0
        for _ in range(SEARCHED):
            middle = (low + high) / 2
            with torch.no_grad():
                member = self.nested.space.member(self.nested.router.choose(middle))
            low, high = (middle, high) if price(member) <= 1 else (low, middle)
        return high

    def _tightness(self, bounds: tuple[Bound, ...]) -> Price:
        """The largest of cost / bound: at most 1 where all bounds hold, and no less for a larger member."""
        shape, padding = self.nested.net.shape, self.layout == "padded"
        prices = [(_price(shape, bound.cost, self.workload), bound.value) for bound in bounds]

        def price(member: Member) -> float:
            written = padded(member, shape) if padding else member
            return max(cost(written) / limit for cost, limit in prices)

        return price

    def _refuse_too_small(self, bounds: tuple[Bound, ...]) -> None:
        least = self.cost(self.nested.space.smallest)
        nearest = {bound.cost: float(getattr(least, bound.cost)) for bound in bounds}
        worst = max(bounds, key=lambda bound: bound.excess(nearest[bound.cost]))
        if not worst.met(nearest[worst.cost]):
            raise Infeasible(
                f"no member has {word_of(worst.cost)} of at most {human(worst.cost, worst.value)}: the smallest has "
                f"{human(worst.cost, nearest[worst.cost])}; allow that much, or train a nested model with smaller members",
                binding=str(worst),
                nearest=nearest,
            )

    def _parent_costs(self) -> dict[str, float]:
        whole = self.nested.space.whole
        told = {name: float(getattr(self.cost(whole), name)) for name in COUNTED}
        latency = [entry.latency_ms for entry in self.manifest.entries if entry.member == whole]
        target = self.nested.targets[0]
        if target.cost == "latency_ms":
            told["latency_ms"] = target.limit / target.share
        elif latency and latency[0] is not None:
            told["latency_ms"] = latency[0]
        return told

    def _measured(self, bounds: tuple[Bound, ...]) -> tuple[Member, float, Entry]:
        """The largest trained member that keeps the bounds, its time taken from the manifest."""
        timed = [entry for entry in self.manifest.entries if entry.latency_ms is not None]
        if not timed or self.workload != self.manifest.workload:
            raise BadBudget(
                "latency is not counted but measured, and the manifest has no measured time of members at this workload; "
                "give a bound on memory or params, or one of the budgets trained for"
            )
        costs = [(entry, self._told(entry)) for entry in timed]
        budget = Budget(bounds=bounds)
        kept = [entry for entry, told in costs if budget.met(told)]
        if not kept:
            _, told = min(costs, key=lambda one: max(bound.excess(one[1][bound.cost]) for bound in bounds))
            worst = max(bounds, key=lambda bound: bound.excess(told[bound.cost]))
            raise Infeasible(
                f"no member that was measured keeps {worst}; the nearest has {human(worst.cost, told[worst.cost])}",
                binding=str(worst),
                nearest={bound.cost: told[bound.cost] for bound in bounds},
            )
        best = max(kept, key=lambda entry: entry.target.share)
        return best.member, best.target.share, best

    def _told(self, entry: Entry) -> dict[str, float]:
        counted = {name: float(getattr(self.cost(entry.member), name)) for name in COUNTED}
        return counted | {"latency_ms": entry.latency_ms or math.inf}


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """From a member to files."""

    nested: Nested
    folder: Path
    """Of the nested checkpoint."""
    member: Member
    share: float
    layout: str
    dtype: str

    @property
    def written_layout(self) -> str:
        return "plain" if isinstance(self.member.ffn, int) else self.layout

    def write(self, out: Path, manifest: Manifest) -> tuple[str, int]:
        """Configuration, weights, tokenizer; the hash of the member as trained, and the bytes read."""
        shape, family = self.nested.net.shape, self.nested.net.family
        cutting = plan(shape, family, self.member)
        filled = cutting if self.written_layout == "own-code" else plan(shape, family, padded(self.member, shape))
        wanted = {name: sizes(dimensions) for name, (_, dimensions) in filled.items()}
        config = member_config(self.nested.config, shape, self.member)
        config.dtype = DTYPES[self.dtype]
        files = [name for name in manifest.files if name != ROUTER]
        pieces = Pieces(cut_shape(shape, self.member))
        with Checkpoint(self.folder, files, memory_name) as weights:
            folded = self._folded(weights)
            stored = {name: self._stored(weights, name, source) for name, (source, _) in cutting.items()}

            def tensors() -> Iterator[tuple[str, Tensor]]:
                for name, (source, dimensions) in cutting.items():
                    part = take(folded[source], dimensions) if source in folded else weights.read(source, dimensions)
                    pieces.add(name, part)
                    yield stored[name], pad(part, wanted[name]).to(DTYPES[self.dtype])

            size = round(BYTES[self.dtype])
            planned = {stored[name]: math.prod(shape) * size for name, shape in wanted.items()}
            write_shards(out, tensors(), planned, SHARD_BYTES)
            if self.written_layout == "own-code":
                config = own_code(config, self._arch(), out)
            config.save_pretrained(out)
            for pattern in CARRIED:
                for file in self.folder.glob(pattern):
                    shutil.copy(file, out / file.name)
            for file in self.folder.glob("chat_template*"):
                shutil.copy(file, out / file.name)
            return pieces.hash(), weights.bytes_read

    def _arch(self) -> DecoderArch:
        return cut_shape(self.nested.net.shape, self.member).arch

    def _folded(self, weights: Checkpoint) -> Mapping[str, Tensor]:
        """The parent's norms with this share's gains; nothing if there are no gains."""
        if self.nested.gains is None:
            return {}
        return self.nested.folded({name: weights.whole(name) for name in self.nested.gains.names}, self.share)

    def _stored(self, weights: Checkpoint, name: str, source: str) -> str:
        """A tensor's name in the file, with the prefix that the nested checkpoint's own file has."""
        old = weights.stored_name(source)
        if old == source or self.written_layout == "own-code":
            return name
        return old.removesuffix(source.removeprefix("model.")) + name.removeprefix("model.")


def _nested_folder(source: Path) -> Path:
    for folder in (source, source / "nested"):
        if (folder / NAME).is_file():
            return folder
    raise RunConflict(f"{source} holds no nested model (no {NAME}); give the --out of a finished `befit elastic` run")


def _check_out(out: Path) -> None:
    if out.is_file():
        raise RunConflict(f"{out} is a file, a cut needs a directory; give another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise RunConflict(f"{out} exists, is not empty and holds no earlier cut; give another --out")


def _in_full(budget: str, cost: str) -> str:
    """A budget in which a bare share, such as 75%, names the cost that the model was trained for."""
    parts = [part.strip() for part in budget.split(",")]
    return ", ".join(f"{word_of(cost)}={part}" if re.fullmatch(r"[\d.]+\s*[%x]", part) else part for part in parts)


def _price(shape: Any, cost: str, workload: Workload) -> Callable[[Member], float]:
    """Any counted cost of a member."""
    if cost in ("params", "memory_bytes"):
        return price_of(shape, cost, workload)

    @cache
    def price(member: Member) -> float:
        own = cut_shape(shape, member)
        return getattr(count(own, own.arch, workload), cost)

    return price


def _record(result: CutResult) -> dict[str, Any]:
    """Plain values of a cut, for cut.json."""
    return {
        "member": result.member.to_json(),
        "share": result.share,
        "cost": asdict(result.cost) | {"memory_bytes": result.cost.memory_bytes},
        "workload": asdict(result.workload),
        "budget": str(Budget(bounds=result.bounds)),
        "layout": result.layout,
        "hash": result.hash,
        "trained": result.trained,
    }
