"""Cut a member out of a nested checkpoint: choose it, read only its slices, write an ordinary checkpoint.

`befit.elastic.choose` says which member; one that the model was trained for is checked against the hash in the manifest.

Neither the parent nor the member is ever built as a module, and of the weights no more than one file's worth is in memory.
"""

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from befit.arch.decoder import DecoderArch
from befit.arch.member import Member, cut_shape
from befit.budget import Bound, Budget, human
from befit.cost.count import Cost
from befit.cost.formats import BYTES
from befit.cost.workload import Workload
from befit.elastic.choose import COUNTED, Chooser
from befit.elastic.manifest import NAME, Manifest
from befit.elastic.memory import USABLE, free_memory
from befit.elastic.nested import FOLDER, ROUTER, Nested, Pieces, memory_name, open_nested, read_folder
from befit.errors import BadBudget, RunConflict
from befit.lm.checkpoint import SHARD_BYTES, Checkpoint, write_shards
from befit.lm.extract import LAYOUTS, member_config, own_code, pad, padded, sizes
from befit.lm.precision import DTYPES
from befit.lm.prefix import plan, take
from befit.rundir import replacing_folder, write_json

RECORD = "cut.json"
"""What a cut says of itself; a folder that has it may be replaced by another cut."""


CARRIED = ("generation_config.json", "token*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""Files that a cut takes over as they are: the tokenizer's, and how to generate; chat templates lie beside them."""


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
            f"of memory at batch {self.workload.batch}, context {self.workload.context}, {self.workload.formats}",
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
    of the file, by default the workload's, bf16 if that is quantised. Raises `BadBudget` for a budget that cannot be read or
    checked, `Infeasible` below the smallest member, `RunConflict` for a folder that is no nested model, or an `out` that
    holds anything but a cut.
    """
    begin = time.perf_counter()
    folder = _nested_folder(source)
    _check_out(out)
    for what, given, known in (("layout", layout, LAYOUTS), ("dtype", dtype, (None, *DTYPES))):
        if given not in known:
            raise BadBudget(f"{what} must be one of {', '.join(filter(None, known))}, got {given!r}")
    nested, manifest = open_nested(folder), read_folder(folder)[1]
    workload = workload or manifest.workload
    chooser = Chooser(nested=nested, manifest=manifest, workload=workload, layout=layout)
    here = free_memory() if fit else None
    bounds = chooser.bounds(budget, None if here is None else USABLE * here[0])
    member, share, entry = chooser.choose(bounds)
    writer = _Writer(
        nested=nested,
        folder=folder,
        member=member,
        share=share,
        layout=layout,
        dtype=dtype or workload.computed.weights,
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

            size = BYTES[self.dtype]
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


def workload_of(source: Path) -> Workload:
    """The workload that a nested model was trained for. Raises `RunConflict` as `cut` does."""
    return read_folder(_nested_folder(source))[1].workload


def _nested_folder(source: Path) -> Path:
    for folder in (source, source / FOLDER):
        if (folder / NAME).is_file():
            return folder
    raise RunConflict(f"{source} holds no nested model (no {NAME}); give the --out of a finished `befit elastic` run")


def _check_out(out: Path) -> None:
    if out.is_file():
        raise RunConflict(f"{out} is a file, a cut needs a directory; give another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise RunConflict(f"{out} exists, is not empty and holds no earlier cut; give another --out")


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
