"""The router: from a budget, as a number, to a width of every axis.

Per axis a network of two layers maps the budget's share to logits over the axis' options. The share enters in a basis of hat
functions on the trained shares, so that budgets never trained on lie between their neighbours. A prior is added: a bump
around the options that some baseline takes to meet the budget, so an untrained router is that baseline and training only has
to say where to depart from it; if none is named, it is one and the same ratio of all axes.

Training samples choices by Gumbel-Softmax; what the forward sees are hard choices, and gradients are those of the soft ones
(straight-through), so that training and deployment run the same networks.

Source: Nemotron Elastic (arXiv 2511.16664, section 3.4), whose routers know only the trained budgets; interpolation follows
LLaMaFlex (ICLR 2025). The prior is ours. Gumbel-Softmax: Jang et al., arXiv 1611.01144.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from befit.arch.member import Member
from befit.cost.workload import Workload
from befit.elastic.budgets import Price, nearness, price_of, uniform_ratio
from befit.elastic.space import FFN_OF_LAYER, NestedSpace
from befit.errors import BadBudget
from befit.lm.network import Gates


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One choice of the router."""

    choice: dict[str, int]
    """Axis -> index of the option."""
    soft: dict[str, Tensor]
    """Axis -> (options,): exactly 1 at the choice and 0 elsewhere, with the gradient of the Gumbel-Softmax."""


class Router(nn.Module):
    """Chooses every axis' width for a budget. Its parameters are a few thousand numbers."""

    ratios: Tensor

    def __init__(
        self,
        space: NestedSpace,
        shares: Sequence[float],
        *,
        width: int = 32,
        seed: int = 0,
        price: Price | None = None,
        start: Mapping[float, Member] | None = None,
    ) -> None:
        """`shares` are the budgets trained for, as shares of the parent's cost.

        `start` has the member around which the prior of a share lies. A share that it does not name starts from uniform
        ratios of the cost `price`; without that, of parameters. The prior is part of the state, so that a router that is read
        from a file needs neither. Raises `BadBudget` for shares outside 0 to 1 or equal.
        """
        super().__init__()
        if not shares or len(set(shares)) != len(shares) or not all(0 < share <= 1 for share in shares):
            raise BadBudget(f"router: expected different shares above 0 and at most 1, got {list(shares)}")
        self.space, self.shares = space, tuple(sorted(float(share) for share in shares))
        self.width = width
        price = price or price_of(space.shape, "params", Workload())
        rows = [_ratios(space, (start or {}).get(share), price, share) for share in self.shares]
        self.register_buffer("ratios", torch.tensor(rows, dtype=torch.float64).view(len(rows), len(space.axes)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.routers = nn.ModuleList(
                nn.Sequential(nn.Linear(len(shares), width), nn.LeakyReLU(0.1), nn.Linear(width, len(options)))
                for options in space.axes.values()
            )
        for router in self.routers:
            last = router.get_submodule("2")
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def hats(self, share: float) -> list[float]:
        """How much each trained share counts at `share`, ascending: linear between neighbours, constant beyond the ends."""
        inside = min(max(share, self.shares[0]), self.shares[-1])
        weights = [0.0] * len(self.shares)
        for i, (low, high) in enumerate(pairwise(self.shares)):
            if low <= inside <= high:
                weights[i], weights[i + 1] = (high - inside) / (high - low), (inside - low) / (high - low)
                return weights
        return [1.0]

    def prior(self, share: float) -> dict[str, list[float]]:
        """Logits of every axis before any training: a bump around what the prior's member has of the parent's width."""
        weights = torch.tensor(self.hats(share), dtype=torch.float64)
        ratios = (weights @ self.ratios.cpu()).tolist()
        return {a: nearness(own, ratio) for (a, own), ratio in zip(self.space.axes.items(), ratios, strict=True)}

    def scores(self, share: float) -> dict[str, Tensor]:
        """Axis -> logits (options,) for a budget of `share` of the parent's cost."""
        found, prior = dict[str, Tensor](), self.prior(share)
        for axis, router in zip(self.space.axes, self.routers, strict=True):
            first = next(router.parameters())
            hats = torch.tensor(self.hats(share), dtype=first.dtype, device=first.device)
            found[axis] = router(hats) + hats.new_tensor(prior[axis])
        return found

    def sample(self, share: float, *, temperature: float, generator: torch.Generator | None = None) -> Sample:
        """A choice by Gumbel-Softmax; without a generator there is no noise. A share of 1 is always the parent.

        The noise is drawn on the generator's device and depends on nothing else, so that processes that hold equal
        generators agree.
        """
        choice, soft = dict[str, int](), dict[str, Tensor]()
        for axis, logits in self.scores(share).items():
            if share >= 1:
                choice[axis], soft[axis] = 0, F.one_hot(torch.zeros((), dtype=torch.long), len(logits)).to(logits)
                continue
            noisy = logits
            if generator is not None:
                uniform = torch.rand(len(logits), generator=generator, device=generator.device, dtype=torch.float64)
                # The temperature is that of the choice, too: a cold router no longer explores.
                noisy = logits - temperature * torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12))).to(logits)
            probabilities = F.softmax(noisy / temperature, dim=0)
            choice[axis] = int(noisy.argmax())
            hard = F.one_hot(noisy.argmax(), len(logits)).to(logits)
            soft[axis] = hard + (probabilities - probabilities.detach())  # the bracket is exactly 0
        return Sample(choice=choice, soft=soft)

    @torch.no_grad()
    def choose(self, share: float) -> dict[str, int]:
        """The most probable option of every axis; a share of 1 is always the parent."""
        return {axis: 0 if share >= 1 else int(logits.argmax()) for axis, logits in self.scores(share).items()}

    @torch.no_grad()
    def preference(self, share: float) -> dict[str, Tensor]:
        """Axis -> log-probabilities (options,) in float64 on the CPU, for `befit.elastic.budgets.fit`."""
        return {axis: F.log_softmax(logits.double().cpu(), dim=0) for axis, logits in self.scores(share).items()}


def _ratios(space: NestedSpace, member: Member | None, price: Price, share: float) -> list[float]:
    """What a member, or else one ratio of all axes, has of the whole on every axis."""
    if member is None:
        return [uniform_ratio(space, price, share * price(space.whole))] * len(space.axes)
    found = []
    for axis, options in space.axes.items():
        if axis.startswith(FFN_OF_LAYER):
            layer = int(axis.removeprefix(FFN_OF_LAYER))
            width = member.ffn_of(layer) if layer in member.layers else options[-1]
        else:
            width = member.widest_ffn if axis == "ffn" else getattr(member, axis)
        found.append(width / options[0])
    return found


def noise(seed: int, step: int) -> torch.Generator:
    """The generator of one training step's choices, on the CPU: the same in every process and after a resume."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def gates(space: NestedSpace, sample: Sample) -> Gates:
    """The gates of a sampled choice at the parent's width: prefixes of ones, with gradients to the router.

    Channel i is open with the sum of the choices of all options wider than i. Query heads count inside their KV group, Mamba
    heads inside their SSM group. Axes without a choice have no gate.
    """
    groups = space.shape.mamba.groups if space.shape.mamba else 1
    per_group = {"mamba_heads": groups}
    names = {"kv_heads": "kv", "heads_per_kv": "query", "mamba_head_dim": "channels"}
    found, rows = dict[str, Tensor](), dict[int, Tensor]()
    for axis, options in space.axes.items():
        soft = sample.soft[axis]
        if axis == "depth":
            gone = [{*space.removal[: space.shape.layers - depth]} for depth in options]
            kept = [[float(layer not in without) for layer in range(space.shape.layers)] for without in gone]
            found["layers"] = soft @ soft.new_tensor(kept)
            continue
        share = per_group.get(axis, 1)
        widths = torch.tensor(options, device=soft.device)[:, None] // share
        gate = soft @ (torch.arange(options[0] // share, device=soft.device) < widths).to(soft)
        if axis.startswith(FFN_OF_LAYER):
            rows[int(axis.removeprefix(FFN_OF_LAYER))] = gate
        else:
            found[names.get(axis, axis)] = gate
    if rows:
        full = torch.ones_like(next(iter(rows.values())))
        found["ffn"] = torch.stack([rows.get(layer, full) for layer in range(space.shape.layers)])
    return Gates(**found)


def cost_of(space: NestedSpace, sample: Sample, price: Price) -> Tensor:
    """The exact price of the sampled choice, in float64, differentiable in the choice of every axis.

    The gradient with respect to an option is the price of the same choice with that option in its axis' place, so that of
    an axis' logits is that of the expected price over the axis, all others as sampled.
    """
    total: Tensor | None = None
    for axis, options in space.axes.items():
        prices = [float(price(space.member({**sample.choice, axis: k}))) for k in range(len(options))]
        soft = sample.soft[axis].double()
        part = ((soft - soft.detach()) * soft.new_tensor(prices)).sum()
        total = part if total is None else total + part
    value = torch.tensor(float(price(space.member(sample.choice))), dtype=torch.float64)
    return value if total is None else value.to(total.device) + total
