"""What the graph of a network is, on modules written here."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from befit.errors import BadProposal
from befit.propose.graph import Tracing

IN = (2, 3, 8, 8)


class Of(nn.Module):
    """A network from layers and a function of them and the images."""

    def __init__(self, run: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, *self.layers)


def key(run: Callable[..., Tensor], *layers: Callable[[], nn.Module]) -> str:
    return key_of(lambda device: Of(run, *(make() for make in layers)))


def key_of(build: Callable[[torch.device], nn.Module], device: str = "meta") -> str:
    tracing = Tracing(torch.device(device))
    network = tracing.build(build)
    for training in (True, False):
        tracing.forward(network, IN, training=training)
    assert not tracing.looked
    return tracing.key


def conv(*arguments: int, **more: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*(arguments or (3, 3, 3)), padding=1, **more)


def test_weights_that_are_shared_are_not_two() -> None:
    shared = key(lambda x, a: a(a(x)), conv())
    assert shared != key(lambda x, a, b: b(a(x)), conv(), conv())
    assert shared == key(lambda x, a, b: a(a(x)), conv(), conv())
    assert key(lambda x, a, b: a(x) + b(x), conv(), conv()) != key(lambda x, a, b: a(x) + a(x), conv(), conv())
    crossed = key(lambda x, a, b: a(b(x)) + b(a(x)), conv(), conv())
    assert crossed != key(lambda x, a, b: a(b(x)) + a(b(x)), conv(), conv())
    assert crossed == key(lambda x, a, b: b(a(x)) + a(b(x)), conv(), conv())


def test_tied_weights() -> None:
    def tied(device: torch.device, tie: bool) -> nn.Module:
        made = Of(lambda x, a, b: b(a(x)), conv()(), conv()())
        if tie:
            made.layers[1].weight = made.layers[0].weight  # type: ignore[assignment]
        return made

    assert key_of(lambda device: tied(device, True)) != key_of(lambda device: tied(device, False))


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (lambda x: x + x * 2, lambda x: x * 2 + x, True),
        (lambda x: x - x * 2, lambda x: x * 2 - x, False),
        (lambda x: torch.maximum(x, x * 2), lambda x: torch.maximum(x * 2, x), True),
        (lambda x: torch.add(x, x * 2, alpha=3), lambda x: torch.add(x * 2, x, alpha=3), False),
        (lambda x: x * 2, lambda x: x * 2.0, True),
        (lambda x: x * 2, lambda x: x * 2.5, False),
        (lambda x: x.flatten(1), lambda x: x.view(2, -1), True),
        (lambda x: x.relu(), lambda x: x.clone().relu_(), False),
        (lambda x: (x * 2).relu(), lambda x: (x * 2).relu_(), True),
        (lambda x: x.permute(0, 2, 3, 1), lambda x: x.permute(0, 3, 2, 1), False),
        (lambda x: x[:, :1], lambda x: x[:, 1:2], False),
        (lambda x: torch.cat([x, -x]), lambda x: torch.cat([-x, x]), False),
        (lambda x: x.mean((2, 3)), lambda x: x.mean(-1).mean(-1), False),
        (lambda x: x.chunk(3, 1)[0], lambda x: x.chunk(3, 1)[1], False),
        (lambda x: x * torch.arange(8), lambda x: x * torch.arange(8), True),
        (lambda x: x * torch.arange(8), lambda x: x * torch.arange(8, 16), False),
        (lambda x: x * torch.tensor([1.0]), lambda x: x * torch.tensor([2.0]), False),
        (lambda x: x + torch.rand(8), lambda x: x + torch.rand(8), True),
        (lambda x: torch.rand_like(x) - torch.rand_like(x), lambda x: (r := torch.rand_like(x)) - r, False),
    ],
)
def test_operations(a: Callable[..., Tensor], b: Callable[..., Tensor], equal: bool) -> None:
    assert (key(a) == key(b)) == equal


def test_memory_that_two_names_share() -> None:
    def through_a_view(x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0].relu_()
        return y

    assert key(through_a_view) != key(lambda x: x * 2)

    def later(x: Tensor) -> Tensor:
        y = x * 2
        z = y + 1
        y.relu_()
        return z

    assert key(later) == key(lambda x: x * 2 + 1)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, momentum=0.2)),
        (lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, eps=1e-3)),
        (lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, affine=False)),
        (lambda: nn.Dropout(0.2), lambda: nn.Dropout(0.3)),
        (lambda: nn.Dropout(0.2), nn.Identity),
        (conv(), conv(dilation=1, groups=3)),
        (conv(), conv(3, 4, 3)),
        (nn.ReLU, nn.GELU),
        (nn.GELU, lambda: nn.GELU("tanh")),
    ],
)
def test_layers_that_differ(a: Callable[[], nn.Module], b: Callable[[], nn.Module]) -> None:
    assert key(lambda x, layer: layer(x), a) != key(lambda x, layer: layer(x), b)


def test_initial_values_of_weights_do_not_count_and_those_of_buffers_do() -> None:
    class Scaled(nn.Module):
        def __init__(self, value: float, buffer: bool) -> None:
            super().__init__()
            made = torch.full((1,), value)
            if buffer:
                self.register_buffer("scale", made)
            else:
                self.scale = nn.Parameter(made)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    for buffer in (False, True):
        keys = {key_of(lambda device, v=value, b=buffer: Scaled(v, b)) for value in (1.0, 2.0)}
        assert len(keys) == 1 + buffer
        made = [Scaled(value, buffer) for value in (1.0, 2.0)]  # before anybody looked
        assert len({key_of(lambda device, one=one: one, "cpu") for one in made}) == 1 + buffer


def test_a_network_that_needs_numbers_to_be_built() -> None:
    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = [one.item() for one in torch.ones(3).cumsum(0)]

        def forward(self, x: Tensor) -> Tensor:
            return x * self.rates[1]

    assert key_of(lambda device: Stepped(), "cpu") == key_of(lambda device: Stepped(), "cpu")
    with pytest.raises(RuntimeError, match="meta"):
        key_of(lambda device: Stepped())


def test_a_network_that_looks_at_numbers_has_no_graph() -> None:
    for run in (lambda x: x if x.mean() > 0 else -x, lambda x: x[x > 0]):
        with pytest.raises(BadProposal, match="looks at numbers"):
            key(run)
        tracing = Tracing(torch.device("cpu"))
        tracing.forward(tracing.build(lambda device, run=run: Of(run)), IN, training=True)
        assert tracing.looked


def test_lazy_layers_are_those_that_they_become() -> None:
    made = key_of(lambda device: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)))
    assert made == key_of(lambda device: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)))


def test_no_logits() -> None:
    with pytest.raises(BadProposal, match="forward gave"):
        key(lambda x: 3)  # type: ignore[arg-type, return-value]
