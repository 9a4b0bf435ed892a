"""What a nested model may be cut to: for every axis the widths to choose from, and the order in which layers go.

Choices are indices, 0 for the parent's own width, larger for narrower, so that the budgets, the router and the baselines need
not know what an axis is. Every combination of choices is a legal member. Nothing here imports torch.

Source: Nemotron Elastic (arXiv 2511.16664, section 3.4) chooses among a few widths of each axis; the widths themselves are not
published, ours are evenly spaced from the whole to about half.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from befit.arch.decoder import DecoderShape, Ffn
from befit.arch.member import WIDTHS, Member, check, whole
from befit.errors import IllegalArch

FFN_OF_LAYER = "ffn."
"""How the names of the axes of single layers' FFNs begin; the layer's number follows."""


@dataclass(frozen=True, kw_only=True)
class NestedSpace:
    """The members of a nested model. Widths descend and begin with the parent's own; (0,) where it has no such axis."""

    shape: DecoderShape
    """The parent."""
    hidden: tuple[int, ...]
    """Embedding channels."""
    ffn: tuple[int, ...]
    """Neurons of an FFN."""
    kv_heads: tuple[int, ...]
    """KV heads of every attention."""
    heads_per_kv: tuple[int, ...]
    """Query heads of each KV head."""
    mamba_heads: tuple[int, ...]
    """Heads of every Mamba-2 mixer, multiples of its groups."""
    mamba_head_dim: tuple[int, ...]
    """Channels of each Mamba head."""
    state: tuple[int, ...]
    """SSM state of each channel."""
    removal: tuple[int, ...]
    """Layers in the order in which they go, least important first; a layer not listed never goes."""
    depth: tuple[int, ...]
    """How many layers are kept, descending, all first. All but the first `layers - depth` of `removal` are."""
    ffn_per_layer: bool = False
    """Whether every layer's FFN has a choice of its own."""

    def __post_init__(self) -> None:
        largest = whole(self.shape)
        for axis in (*WIDTHS, "depth"):
            options, most = getattr(self, axis), getattr(largest, axis)
            if not options or options[0] != most or any(a <= b for a, b in pairwise(options)):
                raise IllegalArch(f"{axis} = {list(options)}: expected descending widths, first the parent's {most}")
        if len(set(self.removal)) != len(self.removal) or not set(self.removal) <= set(range(self.shape.layers)):
            raise IllegalArch(
                f"removal must name layers of 0 to {self.shape.layers - 1} once, got {list(self.removal)}"
            )
        if self.depth[-1] < max(1, self.shape.layers - len(self.removal)):
            raise IllegalArch(
                f"a depth of {self.depth[-1]} was asked for; {len(self.removal)} of {self.shape.layers} layers may go, "
                "and one must stay"
            )
        for axis in WIDTHS:  # legality is a matter of each axis alone
            for width in getattr(self, axis):
                check(self.shape, replace(largest, **{axis: width}))

    @cached_property
    def axes(self) -> dict[str, tuple[int, ...]]:
        """The axes with more than one choice, and what there is to choose."""
        found = dict[str, tuple[int, ...]]()
        for axis in (*WIDTHS, "depth"):
            options = getattr(self, axis)
            if axis == "ffn" and self.ffn_per_layer:
                found |= {f"{FFN_OF_LAYER}{layer}": options for layer in self.ffn_layers}
            else:
                found[axis] = options
        return {axis: options for axis, options in found.items() if len(options) > 1}

    @cached_property
    def ffn_layers(self) -> tuple[int, ...]:
        """The parent's layers that have an FFN."""
        return tuple(i for i, block in enumerate(self.shape.arch.blocks) if isinstance(block.ffn, Ffn))

    @cached_property
    def whole(self) -> Member:
        """The parent itself."""
        return self.member({})

    @cached_property
    def smallest(self) -> Member:
        """The narrowest choice of every axis."""
        return self.member({axis: len(options) - 1 for axis, options in self.axes.items()})

    def kept(self, depth: int) -> tuple[int, ...]:
        """The layers that a member of this depth keeps, ascending."""
        gone = set(self.removal[: self.shape.layers - depth])
        return tuple(layer for layer in range(self.shape.layers) if layer not in gone)

    def member(self, choice: Mapping[str, int]) -> Member:
        """The member that takes `axes[axis][choice[axis]]`, and the whole of every axis not named.

        Raises `IllegalArch` for an axis or an index that is not there.
        """
        for axis, index in choice.items():
            if axis not in self.axes or not 0 <= index < len(self.axes[axis]):
                known = ", ".join(f"{name} (0 to {len(options) - 1})" for name, options in self.axes.items())
                raise IllegalArch(f"choice {index} of the axis {axis!r}: there is only {known or 'the parent itself'}")
        widths = {axis: getattr(self, axis)[choice.get(axis, 0)] for axis in WIDTHS if axis != "ffn"}
        layers = self.kept(self.depth[choice.get("depth", 0)])
        if not self.ffn_per_layer:
            return Member(**widths, ffn=self.ffn[choice.get("ffn", 0)], layers=layers)
        own = {layer: self.ffn[choice.get(f"{FFN_OF_LAYER}{layer}", 0)] for layer in self.ffn_layers}
        return Member(**widths, ffn=ffn_widths(own, layers, self.ffn[-1]), layers=layers)

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields, without the shape: the parent's configuration tells it."""
        told = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "shape"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}

    @staticmethod
    def from_json(data: Mapping[str, Any], shape: DecoderShape) -> "NestedSpace":
        """Read what `to_json` wrote of a parent of `shape`. Raises `IllegalArch` for any other key or kind of value."""
        names = [field.name for field in fields(NestedSpace) if field.name != "shape"]
        if set(data) != set(names):
            raise IllegalArch(f"nested space: got the keys {sorted(data)}; expected exactly {names}")
        for name, value in data.items():
            flat = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
            if not (isinstance(value, bool) if name == "ffn_per_layer" else flat):
                raise IllegalArch(f"nested space: {name} must be {_kind(name)}, got {value!r}")
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return NestedSpace(shape=shape, **given)


def ffn_widths(own: Mapping[int, int], layers: tuple[int, ...], least: int) -> int | tuple[int, ...]:
    """`Member.ffn` for the widths of some layers' FFNs: one number where all kept layers agree, `least` if none has one."""
    kept = [own[layer] for layer in layers if layer in own]
    widest = max(kept, default=least)
    if all(width == widest for width in kept):
        return widest
    # A layer without an FFN ignores its number; the widest keeps `nested` true of members that are.
    return tuple(own.get(layer, widest) for layer in layers)


def default_space(
    shape: DecoderShape,
    removal: tuple[int, ...],
    *,
    least: float = 0.5,
    options: int = 9,
    ffn_per_layer: bool = False,
) -> NestedSpace:
    """A space with widths from the whole down to about the share `least` of every axis, at most `options` of each.

    Embedding channels and neurons are multiples of 64 and 128 in networks at least 1024 wide, else of 8; Mamba channels and
    state are multiples of 8, of 4 or fewer where the parent has 16 or fewer; heads may have any number that their groups can
    share; layers go one by one. Raises `IllegalArch` if the parent's layers differ in width, or for an impossible `least`.
    """
    if not 0 < least <= 1 or options < 1:
        raise IllegalArch(f"the least share must be in 0 to 1 and the options at least 1, got {least} and {options}")
    most, wide, layers = whole(shape), shape.hidden >= 1024, shape.layers
    groups = shape.mamba.groups if shape.mamba else 1
    deepest = max(1, layers - len(removal), round(layers * least))
    return NestedSpace(
        shape=shape,
        hidden=_options(most.hidden, 64 if wide else 8, least, options),
        ffn=_options(most.widest_ffn, 128 if wide else 8, least, options),
        kv_heads=_options(most.kv_heads, 1, least, options),
        heads_per_kv=_options(most.heads_per_kv, 1, least, options),
        mamba_heads=_options(most.mamba_heads, groups, least, options, exact=True),
        mamba_head_dim=_options(most.mamba_head_dim, 8 if most.mamba_head_dim > 16 else 4, least, options),
        state=_options(most.state, 8, least, min(options, 3)),
        removal=removal,
        depth=tuple(range(layers, deepest - 1, -1)),
        ffn_per_layer=ffn_per_layer,
    )


def _options(most: int, step: int, least: float, count: int, *, exact: bool = False) -> tuple[int, ...]:
    """At most `count` evenly spaced widths from `most` to `least` of it, all but the first multiples of `step`.

    Unless the step is `exact`, axes of fewer than four steps are divided more finely.
    """
    while not exact and step > 1 and step * 4 > most:
        step //= 2
    shares = [1 - (1 - least) * i / max(1, count - 1) for i in range(count)]
    # The end is rounded up, so that no member is narrower than asked for.
    end = -int(-most * least // step) * step
    widths = {min(most, max(step, end, int(most * share / step + 0.5) * step)) for share in shares[1:]}
    return tuple(sorted({most} | widths, reverse=True)) if most else (0,)


def _kind(name: str) -> str:
    return "true or false" if name == "ffn_per_layer" else "a list of whole numbers"
