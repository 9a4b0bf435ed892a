"""A nested model: one set of weights, in which every smaller member is a prefix, and a router that says which member to take.

Training, evaluation and cutting all take their members from `Nested.member`, so that what is deployed is what was trained.

On disk it is an ordinary checkpoint of the parent's own class (the whole member), which transformers loads as it is, with two
more files: `router.safetensors` (the router, and the gains of the norms if there are any) and `nested.json`, the manifest.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from befit.arch.decoder import DecoderShape
from befit.arch.member import Member, cut_shape
from befit.cost.count import Cost, count
from befit.cost.workload import Workload
from befit.elastic.budgets import Price, Target, fit, price_of
from befit.elastic.gains import Gains
from befit.elastic.manifest import Entry, Manifest, note_files, read_manifest, write_manifest
from befit.elastic.router import Router
from befit.elastic.space import NestedSpace
from befit.errors import BadBudget, RunConflict, UnsupportedModel
from befit.lm.extract import member_model
from befit.lm.families import family_of
from befit.lm.network import Network, network_of
from befit.lm.parent import read_config
from befit.lm.prefix import prefix
from befit.rundir import befit_version, read_tensors, replacing_folder, write_tensors

FOLDER = "nested"
"""Of the nested checkpoint, in a run directory."""
ROUTER = "router.safetensors"
"""Router and gains, under names that begin with `router.` and `gains.`."""


@dataclass(frozen=True, kw_only=True)
class Nested:
    """One network for all budgets."""

    net: Network
    """The whole."""
    config: Any
    """The parent's transformers configuration."""
    space: NestedSpace
    """What it may be cut to."""
    targets: tuple[Target, ...]
    """The budgets it is trained for, all of one cost."""
    workload: Workload
    """At which memory is counted."""
    router: Router
    gains: Gains | None = None
    """Of the norms, by budget; folded into the weights of a member."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """By transformers' names in memory; empty when opened without them."""
    price: Price | None = None
    """What a member costs, for a cost that cannot be counted (latency)."""
    chosen: Mapping[float, Member] = field(default_factory=dict)
    """The members of trained shares, where they are written down already."""
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def member(self, share: float) -> Member:
        """The member of a share (0 .. 1) of the parent's cost: the router's choice, landed within 1 % of the budget.

        A pure function of the share and the router. The whole from 1 on; raises `Infeasible` below the smallest member.
        """
        if share >= 1:
            return self.space.whole
        if share in self.chosen:
            return self.chosen[share]
        with torch.no_grad():
            preference = self.router.preference(share)
            key = (share, *((axis, *row.tolist()) for axis, row in preference.items()))
            if key not in self._known:
                choice = self.router.choose(share)
                self._known[key] = fit(self.space, choice, self.cost, self.limit(share), preference=preference)
        return self._known[key]

    def limit(self, share: float) -> float:
        """The budget of a share, in the unit of the targets' cost."""
        for target in self.targets:
            if target.share == share:
                return target.limit
        return share * self.cost(self.space.whole)

    @property
    def cost(self) -> Price:
        """What members cost, in the targets' cost. Raises `BadBudget` for latency that nobody measured."""
        if "cost" not in self._known:
            name = self.targets[0].cost
            if self.price is None and name == "latency_ms":
                raise BadBudget(
                    "this nested model was trained for latency, which is measured on the device of the run; "
                    "cut one of its trained budgets, or give a bound on memory or params"
                )
            made: Any = self.price or price_of(self.net.shape, name, self.workload)
            self._known["cost"] = made
        found: Any = self._known["cost"]
        return found

    def counted(self, member: Member) -> Cost:
        """Everything that can be counted of a member, at the workload."""
        shape = cut_shape(self.net.shape, member)
        return count(shape, shape.arch, self.workload)

    def member_weights(self, share: float) -> dict[str, Tensor]:
        """The weights of the member of a share, by their names in the member, gains folded in; else views."""
        return prefix(self.folded(self.weights, share), self.net.shape, self.net.family, self.member(share))

    def folded(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """The parent's weights (all norms at least) with the gains of a share multiplied in, in the weights' own format."""
        if self.gains is None:
            return dict(weights)
        with torch.no_grad():
            found = self.gains.apply(weights, share)
            return {name: tensor.to(weights[name].dtype) for name, tensor in found.items()}


class Pieces:
    """The tensors of a member, gone through one after the other in any order, as a name that tells whether two are the same."""

    def __init__(self, shape: DecoderShape) -> None:
        """`shape` is the member's own."""
        self._shape = shape
        self._digests = dict[str, bytes]()

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor into account: its name, format, shape and bytes."""
        total = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        self._digests[name] = total.digest()

    def hash(self) -> str:
        """sha256 over the sizes, then over the tensors sorted by name."""
        total = hashlib.sha256(json.dumps(asdict(self._shape), sort_keys=True).encode())
        for name in sorted(self._digests):
            total.update(self._digests[name])
        return total.hexdigest()


def hash_of(tensors: Mapping[str, Tensor], shape: DecoderShape) -> str:
    """The name of a member of `shape` with these tensors."""
    pieces = Pieces(shape)
    for name, tensor in tensors.items():
        pieces.add(name, tensor)
    return pieces.hash()


def write_nested(folder: Path, nested: Nested, tokenizer: PreTrainedTokenizerBase | None = None) -> Manifest:
    """Write a nested model whole or not at all; an earlier one in `folder` is replaced. Returns its manifest.

    Qualities are still unknown: enter them with `evaluated` and `write_manifest`. Raises `Infeasible` if a target is below
    the smallest member, `DiskFull` without room.
    """
    entries = tuple(_entry(nested, target) for target in nested.targets)
    with replacing_folder(folder) as temporary:
        member_model(nested.config, nested.net, nested.weights, nested.space.whole).save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        state = {f"router.{name}": tensor for name, tensor in nested.router.state_dict().items()}
        if nested.gains is not None:
            state |= {f"gains.{name}": tensor for name, tensor in nested.gains.state_dict().items()}
        write_tensors(temporary / ROUTER, state)
        manifest = Manifest(
            written_by=befit_version(),
            family=nested.net.family.model_type,
            space=nested.space,
            workload=nested.workload,
            entries=entries,
            router={"width": nested.router.width, "shares": list(nested.router.shares)},
            gains=None if nested.gains is None else {"shares": list(nested.gains.shares)},
            files=note_files(temporary),
        )
        write_manifest(temporary, manifest)
    return manifest


def open_nested(folder: Path, *, weights: bool = False) -> Nested:
    """Open what `write_nested` wrote: without its weights in a moment, or with them, on the CPU in their own format.

    Raises `RunConflict` if it is no nested model, if it is damaged or changed, or written by another version.
    """
    config, manifest = read_folder(folder)
    net = network_of(config, family_of(config))
    state = read_tensors(folder / ROUTER)
    router = Router(manifest.space, **manifest.router)
    gains = None if manifest.gains is None else Gains(net.shape, net.family, **manifest.gains)
    _load(router, state, "router.")
    if gains is not None:
        _load(gains, state, "gains.")
    return Nested(
        net=net,
        config=config,
        space=manifest.space,
        targets=tuple(entry.target for entry in manifest.entries),
        workload=manifest.workload,
        router=router,
        gains=gains,
        weights=_read_weights(folder, manifest) if weights else {},
        chosen={entry.target.share: entry.member for entry in manifest.entries},
    )


def read_folder(folder: Path) -> tuple[Any, Manifest]:
    """Configuration and manifest of a nested checkpoint. Raises `RunConflict` as `read_manifest` does."""
    try:
        config = read_config(folder)
    except UnsupportedModel as error:
        raise RunConflict(f"{folder} holds no nested model: {error}") from error
    manifest = read_manifest(folder, family_of(config).describe(config))
    if manifest.family != config.model_type:
        raise RunConflict(
            f"{folder}: the manifest is of a {manifest.family}, config.json of a {config.model_type}; copy the whole folder again"
        )
    return config, manifest


def memory_name(name: str) -> str:
    """What a tensor of a file is called in transformers' module: Nemotron-H is saved with another prefix than it has."""
    return f"model.{name.removeprefix('backbone.')}" if name.startswith("backbone.") else name


def _entry(nested: Nested, target: Target) -> Entry:
    member = nested.member(target.share)
    return Entry(
        target=target,
        member=member,
        cost=nested.counted(member),
        quality=None,
        latency_ms=None,
        hash=hash_of(nested.member_weights(target.share), cut_shape(nested.net.shape, member)),
    )


def _read_weights(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    files = [name for name in manifest.files if name != ROUTER]
    return {memory_name(name): tensor for file in files for name, tensor in read_tensors(folder / file).items()}


def _load(module: torch.nn.Module, state: Mapping[str, Tensor], start: str) -> None:
    own = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise RunConflict(f"{ROUTER} does not fit its manifest ({error}); copy the whole folder again") from error
