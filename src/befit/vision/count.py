"""What any image network costs: parameters, multiply-adds and memory, found by running it once without numbers.

On the meta device a tensor has a shape and nothing else, so a network of any size is built and run in milliseconds. What is
counted is eager inference on one image:

- multiply-adds: half of what `torch.utils.flop_counter` counts, thus convolutions (grouped ones too), linear layers, matrix
  products and attention; nothing else.
- memory: parameters and buffers, and the largest sum of the tensors alive at one moment after any operator, the image among
  them. A view is its base, a tensor updated in place counts once, a parameter is not counted twice. Scratch space inside
  one operator is not seen, and attention is taken without a fused kernel: its scores count as a tensor.

A network that needs numbers to be built or run (`.item()`, a branch on values) is run on the CPU instead, on zeros.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from befit.arch.task import ImageTask
from befit.cost.images import Counts
from befit.errors import TrialFailed


def count_module(build: Callable[[], nn.Module], task: ImageTask) -> Counts:
    """Costs of the network that `build()` makes, for one image of the task.

    `TrialFailed` (reason "invalid") if it does not give logits (1, classes). What `build` or the network itself raises on
    the CPU is passed on.
    """
    try:
        return _count(build, task, "meta")
    except (
        RuntimeError
    ):  # also NotImplementedError: something asks for numbers; or it fails for a reason that the CPU tells better
        return _count(build, task, "cpu")


def _count(build: Callable[[], nn.Module], task: ImageTask, device: str) -> Counts:
    with torch.device(device), torch.random.fork_rng(devices=[]):
        network = build().eval()
        image = torch.zeros(1, task.channels, task.height, task.width)
        own = [*network.parameters(), *network.buffers()]
        with torch.no_grad(), Watch(image, besides=own) as watch:
            logits = network(image)
    if not isinstance(logits, Tensor) or logits.shape != (1, task.classes):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TrialFailed(
            f"{type(network).__name__}: for an image (1, {task.channels}, {task.height}, {task.width}) it gave {given}, "
            f"expected logits (1, {task.classes}); a parameter named `task` receives the sizes",
            reason="invalid",
        )
    return Counts(
        params=sum(weight.numel() for weight in network.parameters()),
        macs=watch.flops // 2,
        memory_bytes=sum(tensor.numel() * tensor.element_size() for tensor in own) + watch.peak,
    )


class Watch(TorchDispatchMode):
    """Sees every operator while it is entered: `flops` adds up what they do, `peak` is the most bytes of tensors alive."""

    def __init__(self, *tensors: Tensor, besides: Sequence[Tensor] = ()) -> None:
        """`tensors` are alive already; those of `besides` never count."""
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._held = dict[int, object]()
        self._besides = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in besides}
        self._follow(tensors)

    def _follow(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = id(storage), storage.nbytes()
                if key not in self._held and key not in self._besides:
                    # A storage's Python object lives as long as the memory itself, not as long as a name for it.
                    self._held[key] = weakref.ref(storage, lambda _, key=key, size=size: self._let_go(key, size))
                    self.now += size
        self.peak = max(self.peak, self.now)

    def _let_go(self, key: int, size: int) -> None:
        del self._held[key]
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.native_batch_norm.default and args[0].is_meta and not args[5]:
            # By running statistics: meta's own way takes most of the time, and hands back statistics that no device makes.
            result = torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        else:
            result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        self._follow(result)
        return result
