"""Once-for-all: the sub-nets of a space are parts of its largest network, and one set of weights serves them all.

A sub-net's weight is a view of the shared one of the same name: the first channels, the first blocks, the centre of the
kernel. Its forward is that of the network which the blueprint builds for it, run on those views (`functional_call`), so
that what is extracted later computes the same by construction, and any blueprint can be shared whose parts keep their names
from arch to arch: mobile networks, and a user's own.

Source of the scheme: Cai et al., Once-for-All (arXiv 1908.09791, section 3); without its kernel transforms, which turn the
centre of a large kernel into a small one by a matrix of their own.

Shapes: B images, K classes.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from befit.arch.space import Arch, Space, Value
from befit.arch.task import ImageTask
from befit.errors import IllegalArch, UnsupportedModel
from befit.oneshot.supernet import Norm, Supernet, leave_statistics
from befit.vision.blueprint import Blueprint

TEMPLATES = 64
"""Networks without weights that are kept, those used last."""


@dataclass(frozen=True)
class Template:
    """The network of one arch, to run with weights that are not its own."""

    network: nn.Module
    """Its own parameters are empty."""
    shapes: Mapping[str, torch.Size]
    """Of each parameter and buffer in its state dict."""
    norms: tuple[Norm, ...]


class NestedSupernet(Supernet):
    """The sub-nets of any blueprint, as parts of one set of weights.

    Raises `UnsupportedModel` if the blueprint's networks are no parts of each other, `IllegalArch` if the space's rule
    refuses the arch of all largest options and no `largest` is given.
    """

    def __init__(
        self, blueprint: Blueprint, task: ImageTask, *, largest: Arch | None = None, smallest: Arch | None = None
    ) -> None:
        """`largest` and `smallest`: by default every choice's largest and smallest number, last and first text."""
        super().__init__()
        self.blueprint, self.task = blueprint, task
        ends = largest or extreme(blueprint.space, most=True), smallest or extreme(blueprint.space, most=False)
        self.largest, self.smallest = ends
        self._templates: OrderedDict[Arch, Template] = OrderedDict()
        self.weights, self.statistics = nn.ParameterDict(), nn.Module()
        learnt, kept = dict[str, Tensor](), dict[str, Tensor]()
        for arch in covering(blueprint.space, *ends):
            network = blueprint.build(arch, task)
            parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
            for name, tensor in network.state_dict().items():
                into = learnt if name in parameters else kept
                into[name] = _union(into.get(name), tensor, name)
        for name, tensor in learnt.items():
            self.weights[_flat(name)] = nn.Parameter(tensor)
        for name, tensor in kept.items():
            self.statistics.register_buffer(_flat(name), tensor)

    def forward(self, images: Tensor, arch: Arch) -> Tensor:
        network = self._template(arch).network
        network.train(self.training)
        return torch.func.functional_call(network, dict(self.part(arch)), (images,))

    def part(self, arch: Arch) -> Mapping[str, Tensor]:
        return {name: view(self._shared(name), shape, name) for name, shape in self._template(arch).shapes.items()}

    def norms(self, arch: Arch) -> Iterable[Norm]:
        return self._template(arch).norms

    def _shared(self, name: str) -> Tensor:
        flat = _flat(name)
        if flat in self.weights:
            return self.weights[flat]
        if flat not in self.statistics._buffers:
            raise UnsupportedModel(
                f"supernet: a sub-net has a part {name} that neither the largest has nor the smallest, nor the largest with "
                "another text or truth value; parts must keep their names from arch to arch"
            )
        return self.statistics.get_buffer(flat)

    def _template(self, arch: Arch) -> Template:
        """The arch's network without weights; building one takes about as long as a small network's forward."""
        if arch not in self._templates:
            device = next(self.parameters()).device
            with torch.random.fork_rng(devices=[]):
                network = self.blueprint.build(self.blueprint.space.arch(arch), self.task)
            shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
            for weight in network.parameters():
                weight.data = weight.data.new_empty(0)
            network.to(device)  # tensors outside the state dict
            self._templates[arch] = Template(network, shapes, tuple(leave_statistics(network)))
            if len(self._templates) > TEMPLATES:
                self._templates.popitem(last=False)
        self._templates.move_to_end(arch)
        return self._templates[arch]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NestedSupernet":
        """Also when moved: templates are made for one device."""
        self._templates.clear()
        return super()._apply(fn, recurse)


def view(shared: Tensor, shape: torch.Size, name: str = "") -> Tensor:
    """The part of a shared tensor that has this shape: the first channels, the centre of what follows (a kernel's sides).

    Raises `UnsupportedModel` if it is no part of it.
    """
    if shared.ndim != len(shape) or any(size > whole for size, whole in zip(shape, shared.shape, strict=False)):
        raise UnsupportedModel(
            f"supernet: {name} has the shape {tuple(shape)} in a sub-net, which is no part of the largest's "
            f"{tuple(shared.shape)}; name the largest arch, or search this space another way"
        )
    for dim, size in enumerate(shape):
        spare = shared.shape[dim] - size
        if spare:
            shared = shared.narrow(dim, spare // 2 if dim >= 2 else 0, size)
    return shared


def extreme(space: Space, *, most: bool) -> Arch:
    """Every choice's largest number or last text (`most`), or smallest number and first text. `IllegalArch` if refused."""
    taken = dict[str, Value]()
    for name, choice in space.choices.items():
        if choice.open(taken):
            taken[name] = _end(choice.options, most)
    if not space.contains(taken):
        end = "largest" if most else "smallest"
        raise IllegalArch(f"supernet: the space's rule refuses the arch of all {end} options {taken}; name the {end}")
    return space.arch(taken)


def covering(space: Space, largest: Arch, smallest: Arch) -> Iterator[Arch]:
    """Archs that have all parts between them: both ends, and the largest with each other text or truth value in it.

    A number's smaller options are taken to need parts of what its largest needs.
    """
    yield from dict.fromkeys((largest, smallest))
    for name in largest:
        for option in space.choices[name].options:
            if isinstance(option, str | bool) and option != largest[name]:
                taken = dict[str, Value]()
                for other, choice in space.choices.items():
                    if choice.open(taken):
                        held = largest[other] if other in largest else _end(choice.options, most=True)
                        taken[other] = option if other == name else held
                if space.contains(taken):
                    yield space.arch(taken)


def _end(options: tuple[Value, ...], most: bool) -> Value:
    numbers = [option for option in options if not isinstance(option, str)]
    if len(numbers) < len(options):
        return options[-1 if most else 0]
    return max(numbers) if most else min(numbers)


def _union(held: Tensor | None, tensor: Tensor, name: str) -> Tensor:
    """A tensor of which both of a name are parts; what neither fills, where their shapes cross, is drawn like them."""
    if held is None or held.shape == tensor.shape:
        return tensor.detach().clone() if held is None else held
    if held.ndim != tensor.ndim:
        raise UnsupportedModel(
            f"supernet: {name} is {tuple(held.shape)} in one sub-net, {tuple(tensor.shape)} in another"
        )
    shape = torch.Size(map(max, held.shape, tensor.shape))
    whole = tensor.detach().clone() if shape == tensor.shape else held
    if shape not in (tensor.shape, held.shape):
        whole = torch.randn(shape, dtype=held.dtype) * tensor.detach().std()
        view(whole, tensor.shape, name).copy_(tensor.detach())
        view(whole, held.shape, name).copy_(held)
    return whole


def _flat(name: str) -> str:
    """A name without the dots that torch keeps for modules."""
    return name.replace(".", "/")
