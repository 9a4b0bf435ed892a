"""Members' weights while the whole is trained: slices without autograd's cost of slicing.

The slicing recipe is that of `befit.lm.prefix`; what differs is the way of the gradient back into the whole.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from befit.arch.decoder import DecoderShape
from befit.arch.member import Member
from befit.lm.family import Family
from befit.lm.prefix import Dimension, plan, take

MEMBERS_KEPT = 32
"""Members whose leaves are kept: the trained budgets and some that a router tries."""


class Leaves:
    """`prefix` for weights in training: the same numbers, and gradients gathered in the kept part alone.

    Through a view, autograd fills zeros as large as the whole weight, for each dimension that is cut, and adds all of it to the
    gradient: work over full width in every step of a small member. Here the view is a leaf itself, whose gradient is added to
    the same view of the weight's gradient as soon as it is there. Views are made once for each of the last members.
    """

    def __init__(self, weights: Mapping[str, Tensor], shape: DecoderShape, family: Family) -> None:
        """`weights` are leaves that change in place only; their gradients are there and stay (`training.Learner`)."""
        self.weights, self.shape, self.family = weights, shape, family
        self._of = lru_cache(maxsize=MEMBERS_KEPT)(self._made)

    def __call__(self, weights: Mapping[str, Tensor], member: Member) -> dict[str, Tensor]:
        """The weights of a member. Tensors of `weights` other than those in training are cut as by `prefix`."""
        return {
            short: part.joined()
            if weights[part.name] is self.weights[part.name]
            else take(weights[part.name], part.cut)
            for short, part in self._of(member).items()
        }

    def _made(self, member: Member) -> dict[str, "_Part"]:
        found = dict[str, _Part]()
        for short, (name, cut) in plan(self.shape, self.family, member).items():
            weight = self.weights[name]
            if all(segment.all for segments in cut for segment in segments):
                found[short] = _Part(name=name, cut=cut, place=0, pieces=((weight, tuple(weight.shape)),))
                continue
            if weight.grad is None:
                raise ValueError(f"{name} has no gradient yet; give the weights to a Learner first")
            place, views = _pieces(weight.detach(), cut)
            for (view, _), (gradient, _) in zip(views, _pieces(weight.grad, cut)[1], strict=True):
                view.requires_grad_().register_post_accumulate_grad_hook(_adding(gradient))
            found[short] = _Part(name=name, cut=cut, place=place, pieces=tuple(views))
        return found


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What a member keeps of one tensor: leaves with the shapes that they have side by side along dimension `place`."""

    name: str
    cut: tuple[Dimension, ...]
    place: int
    pieces: tuple[tuple[Tensor, tuple[int, ...]], ...]

    def joined(self) -> Tensor:
        flat = [piece if piece.shape == shape else piece.reshape(shape) for piece, shape in self.pieces]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=self.place)


def _adding(total: Tensor) -> Callable[[Tensor], None]:
    """A hook that hands a leaf's gradient over to `total`."""

    def add(leaf: Tensor) -> None:
        assert leaf.grad is not None
        total.add_(leaf.grad)
        leaf.grad = None

    return add


def _pieces(tensor: Tensor, cut: tuple[Dimension, ...]) -> tuple[int, list[tuple[Tensor, tuple[int, ...]]]]:
    """The one dimension that may have several segments; for each of those the kept part, as a view, and its shape."""
    place = next((at for at, segments in enumerate(cut) if len(segments) > 1), 0)
    found = list[tuple[Tensor, tuple[int, ...]]]()
    for piece, segment in zip(tensor.split([s.size for s in cut[place]], dim=place), cut[place], strict=True):
        own = [segment if at == place else segments[0] for at, segments in enumerate(cut)]
        view = piece.view([count for one in own for count in one.shape])
        for axis, count in enumerate(count for one in own for count in one.keep):
            view = view.narrow(axis, 0, count)
        found.append((view, tuple(math.prod(one.keep) for one in own)))
    return place, found
