"""The third rung of the fingerprint: what a network computes, whatever its code looks like.

The network is built and run on the meta device, where a tensor has a shape and no numbers, once as in training and once as
in evaluation. Every operator that PyTorch is asked for becomes a node: its name, its static arguments, the shape and type of
its result, and the nodes that it takes. Then only the nodes that the output depends on are written, from the output down,
each once. So a loop and its copies are one, layers that are never used vanish, a weight that is used twice is not two
weights, and both orders of a sum are one (the two sides are sorted by a hash of what lies below them).

A parameter is a shape, a type and whether it is trained; how it is initialised belongs to the recipe. A buffer is what its
making says: the operators that gave its value. In place or not, an operation is the same; that other views of the
same memory see the change is kept.

A network that looks at numbers while it runs (`if x.mean() > 0`) has no graph. One that does so while it is built is built
on the CPU instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from befit.errors import BadProposal
from befit.propose.layout import hash_of
from befit.propose.shapes import Shapes

_COMMUTATIVE = {"add.Tensor", "mul.Tensor", "maximum.default", "minimum.default"}
_SHAPED_BY_RESULT = {
    "view.default",
    "_unsafe_view.default",
    "reshape.default",
    "expand.default",
    "_reshape_alias.default",
}
"""Operators whose integers say no more than the shape of their result."""
_RANDOM = ("rand", "bernoulli", "normal", "dropout", "uniform", "multinomial", "poisson", "exponential", "empty")
_LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "equal", "is_nonzero")


class Tracing:
    """The making of one network and its forward passes, written down."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tracer = _Tracer()
        self._texts = list[list[str]]()

    def build(self, build: Callable[[torch.device], nn.Module]) -> nn.Module:
        """The network that `build` makes. `BadProposal` (reason "contract") if that is none."""
        with self._device, torch.random.fork_rng(devices=[]), _Literals(self._tracer), self._tracer:
            module = build(self._device)
        if not isinstance(module, nn.Module):
            raise BadProposal(f"Net made {type(module).__name__}, expected a torch.nn.Module", reason="contract")
        return module

    def forward(self, module: nn.Module, in_shape: tuple[int, ...], *, training: bool) -> Any:
        """What the network gives for images; in training with what its backward needs.

        Raises:
            BadProposal: That holds no tensor (reason "build").
        """
        module.train(training)
        with self._device, torch.set_grad_enabled(training), torch.random.fork_rng(devices=[]):
            images = torch.zeros(in_shape) if self._device.type == "meta" else torch.randn(in_shape)
            if any(isinstance(one, nn.parameter.UninitializedParameter) for one in module.parameters()):
                module(images)  # lazy layers learn their shapes
            self._tracer.begin(module, images)
            with _Literals(self._tracer), self._tracer:
                output = module(images)
        found = [one for one in tree_leaves(output) if isinstance(one, Tensor)]
        if not found:
            raise BadProposal(f"forward gave {type(output).__name__}, expected logits (N, classes)", reason="build")
        self._texts.append(_written([self._tracer.node(one) for one in found]))
        return output

    def backward(self, loss: Tensor) -> None:
        """Gradients of what `forward` gave in training."""
        with self._tracer.shapes:
            loss.backward()

    @property
    def looked(self) -> str:
        """The operator by which a forward pass looked at numbers, which leaves the network without a graph; or empty."""
        return self._tracer.looked

    @property
    def flops(self) -> int:
        """Of the last forward pass, 2 for a multiply-add, as PyTorch's own counter has them."""
        return self._tracer.flops

    @property
    def key(self) -> str:
        """32 hex digits for what was done in training and, if that was run too, in evaluation."""
        return hash_of(
            "\n".join(["graph", *self._texts[0], *(line for text in self._texts[1:] for line in ("eval", *text))])
        )


@dataclass(eq=False)
class _Node:
    """One operator with the nodes it takes, or a leaf."""

    label: str
    takes: tuple["_Node", ...] = ()
    commutes: bool = False
    below: str = field(init=False)
    """Hash of everything it depends on; parameters count by shape."""

    def __post_init__(self) -> None:
        parts = [one.below for one in self.takes]
        self.below = hash_of("\n".join([self.label, *(sorted(parts) if self.commutes else parts)]))


class _Tracer(TorchDispatchMode):
    """Keeps, for every tensor it has seen, the node that made it."""

    def __init__(self) -> None:
        super().__init__()
        self._made = dict[int, tuple[_Node, int]]()
        """Tensor to its node and the time it was made."""
        self._changed = dict[int, tuple[_Node, int]]()
        """Memory to the last node that wrote into it and when."""
        self._alive = list[Tensor]()  # so that no two tensors share an id
        self._same = dict[tuple[Any, ...], _Node]()
        self._time = 0
        self._forward = False
        self.looked = ""
        self.flops = 0
        self.shapes = Shapes()

    def begin(self, module: nn.Module, images: Tensor) -> None:
        """A forward pass begins: parameters and the images are leaves, whatever made them."""
        self._forward, self._same, self.flops = True, {}, 0
        for one in module.parameters():
            self._leaf(one, f"parameter {_form(one)} {'trained' if one.requires_grad else 'fixed'}")
        self._leaf(images, f"images {_form(images)}")

    def node(self, tensor: Tensor) -> _Node:
        """The node that a tensor's present value comes from."""
        if id(tensor) not in self._made:
            known = "" if tensor.is_meta else " " + hash_of(str(tensor.detach().cpu().tolist()))
            self._leaf(tensor, f"constant {_form(tensor)}{known}")
        node, made = self._made[id(tensor)]
        writer, changed = self._changed.get(_memory(tensor), (node, -1))
        if changed > made:  # through another view of the same memory
            node = self._joined(("seen through", _form(tensor)), (node, writer))
            self._made[id(tensor)] = node, self._time
        return node

    def literal(self, tensor: Tensor, value: Any) -> None:
        """A tensor that was written out; on the meta device it has lost its value."""
        self._leaf(tensor, f"constant {_form(tensor)} {hash_of(repr(value))}")

    def _leaf(self, tensor: Tensor, label: str) -> None:
        self._alive.append(tensor)
        self._time += 1
        self._made[id(tensor)] = _Node(label), self._time

    def _joined(self, label: tuple[Any, ...], takes: tuple[_Node, ...]) -> _Node:
        """The node of an operation; the same operation on the same nodes is the same node."""
        key = (label, *(id(one) for one in takes))
        if key not in self._same:
            self._same[key] = _Node(" ".join(map(str, label)), takes)
        return self._same[key]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if self._forward and (name.startswith(_LOOKS) or (name == "index.Tensor" and _by_mask(args[1]))):
            self.looked = name
            if any(one.is_meta for one in tree_leaves(args) if isinstance(one, Tensor)):
                raise BadProposal(f"the network looks at numbers ({name}) on the meta device", reason="values")
        takes = tuple(self.node(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor))
        with torch._C.DisableTorchFunction():  # how PyTorch finds shapes is not the network's, and slow to look at
            result = self.shapes.run(func, args, kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        self._time += 1
        outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        node = self._operation(name, (args, kwargs), takes, outputs)
        for place, one in enumerate(outputs):
            self._alive.append(one)
            made = node if len(outputs) == 1 else _Node(f"result {place} {_form(one)}", (node,))
            self._made[id(one)] = made, self._time
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[place] if place < len(args) else kwargs.get(argument.name)
                for one in tree_leaves(written):
                    if isinstance(one, Tensor):
                        self._alive.append(one)
                        self._made[id(one)] = node, self._time
                        self._changed[_memory(one)] = node, self._time
        return result

    def _operation(self, name: str, given: Any, takes: tuple[_Node, ...], outputs: list[Tensor]) -> _Node:
        packet, _, overload = name.partition(".")
        plain = f"{packet.rstrip('_') if not packet.startswith('__') else packet}.{overload}"
        floating = bool(outputs) and outputs[0].is_floating_point()
        said = "" if plain in _SHAPED_BY_RESULT else _said(given, floating)
        label = (plain, said, *(_form(one) for one in outputs[:1]))  # others that are used say theirs
        if any(word in plain for word in _RANDOM):
            return _Node(" ".join(map(str, label)), takes)
        if plain in _COMMUTATIVE and len(takes) == 2 and not given[1]:
            made = _Node(" ".join(map(str, label)), takes, commutes=True)
            return self._same.setdefault((label, *sorted(id(one) for one in takes)), made)
        return self._joined(label, takes)


class _Literals(TorchFunctionMode):
    """Tells the tracer the values of tensors that are made from Python's numbers."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _FROM_NUMBERS:
            given = args[func is Tensor.new_tensor :] or list((kwargs or {}).values())
            value = given[0].tolist() if isinstance(given[0], np.ndarray) else given[0]
            if not any(isinstance(one, Tensor) for one in tree_leaves(value)):
                self._tracer.literal(result, value)
        return result


_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


def _by_mask(places: Any) -> bool:
    return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in tree_leaves(places))


def _said(value: Any, floating: bool) -> str:
    """Arguments without what their tensors are; 2 and 2.0 are one where the result is a float."""
    if isinstance(value, Tensor):
        return "t"
    if isinstance(value, list | tuple):
        return f"[{','.join(_said(one, floating) for one in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}={_said(one, floating)}' for key, one in value.items() if key != 'device')}}}"
    if isinstance(value, torch.device):
        return "device"
    if floating and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return repr(int(value))
    return repr(value)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _written(outputs: list[_Node]) -> list[str]:
    """One line a node, from the outputs down, each node once: its number, its label, and the numbers of what it takes.

    Two graphs with the same lines are the same graph: the lines say everything. Where the two sides of a sum look alike from
    below, the first stays first.
    """
    lines, numbers = list[str](), dict[_Node, int]()
    queue = list(reversed(outputs))
    order = list[_Node]()
    while queue:
        node = queue.pop()
        if node in numbers:
            continue
        numbers[node] = len(numbers)
        order.append(node)
        queue.extend(reversed(_sides(node)))
    lines.append("out " + " ".join(str(numbers[one]) for one in outputs))
    lines += [f"{one.label} < {' '.join(str(numbers[side]) for side in _sides(one))}" for one in order]
    return lines


def _sides(node: _Node) -> list[_Node]:
    return sorted(node.takes, key=lambda one: one.below) if node.commutes else list(node.takes)
