"""How good a network may become, told without training it: scores of one batch of images and fresh weights.

    proxies(network, images, labels)       # {'nwot': 406.5, 'synflow': 41.9, 'jacov': -32.3, 'snip': 46.0, 'grad_norm': 21.7}

Higher is better. They rank networks of one space at the price of a few forward passes: good as a filter and as features of a
predictor, poor at telling the best from the good, and seldom much better than the number of parameters. The numbers depend
on the batch's size and on the random weights, so compare only what was scored with the same images and initialisation.

Sources: nwot and jacov, Mellor et al., Neural Architecture Search without Training (arXiv 2006.04647, second and first
version); synflow, Tanaka et al. (arXiv 2006.05467); snip, Lee et al. (arXiv 1810.02340); all as scores of whole networks as in
Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS (arXiv 2101.08134), and Krishnakumar et al., NAS-Bench-Suite-Zero
(arXiv 2210.03230), with whose published scores befit's are compared in `benchmarks/zero_cost.py`.

Shapes: B images, F activations of one layer and image; K (B, B).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from befit.errors import BadData, BefitError

NAMES = ("nwot", "synflow", "jacov", "snip", "grad_norm")
"""What is scored unless less is asked for."""
KNOWN = (*NAMES, "params", "macs")
"""All that can be asked for: the two counts are what a proxy has to beat."""
JACOV_K = 1e-5
"""Added to eigenvalues, so that none is 0 (the authors' code)."""

_ATEN = torch.ops.aten
ACTIVATIONS = frozenset(
    {
        _ATEN.relu,
        _ATEN.relu_,
        _ATEN.hardtanh,  # ReLU6
        _ATEN.hardtanh_,
        _ATEN.leaky_relu,
        _ATEN.leaky_relu_,
        _ATEN.elu,
        _ATEN.elu_,
        _ATEN.silu,
        _ATEN.silu_,
        _ATEN.hardswish,
        _ATEN.hardswish_,
        _ATEN.gelu,
        _ATEN.gelu_,
        _ATEN.mish,
        _ATEN.mish_,
    }
)
"""Functions that let positive inputs through and hold negative ones back, as modules or called in a forward."""


def proxies(module: nn.Module, images: Tensor, labels: Tensor, names: Sequence[str] = NAMES) -> dict[str, float]:
    """Scores of `module` by name, from normalised images (B, C, H, W) and their classes (B,), at least two images.

    The module, its mode, its gradients and the random state are left as they are. Dropout is off, batch norms use the
    batch's own statistics. A network that nothing passes through, or whose images all look the same to it, scores
    negative infinity in nwot, synflow and jacov and 0 in snip and grad_norm; so does nwot without any of `ACTIVATIONS`.
    NaN or infinity elsewhere means that activations overflowed. Raises `BefitError` for an unknown name, `BadData` for images
    that cannot be used.
    """
    if unknown := [name for name in names if name not in KNOWN]:
        raise BefitError(f"proxies: {', '.join(map(repr, unknown))} unknown; expected some of {', '.join(KNOWN)}")
    if images.ndim != 4 or len(images) < 2 or labels.shape != images.shape[:1] or not images.is_floating_point():
        raise BadData(
            f"proxies: expected at least two float images (B, C, H, W) and labels (B,), got {images.dtype} "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    place = next((weight.device for weight in module.parameters()), images.device)
    images, labels = images.detach().to(place), labels.to(place)
    found = dict[str, float]()
    with torch.random.fork_rng([place.index or 0] if place.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(0)  # for what is random all the same, such as dropout that asks for no mode
        if "nwot" in names:
            found["nwot"] = nwot(_fresh(module), images)
        if "synflow" in names:
            found["synflow"] = synflow(_fresh(module), images)
        if "jacov" in names:
            found["jacov"] = jacov(_fresh(module), images)
        if "snip" in names or "grad_norm" in names:
            found |= _of_gradients(_fresh(module), images, labels)
        if "params" in names:
            found["params"] = float(sum(weight.numel() for weight in module.parameters() if weight.requires_grad))
        if "macs" in names:
            found["macs"] = _macs(_fresh(module), images)
    return {name: found[name] for name in names}


def nwot(module: nn.Module, images: Tensor) -> float:
    """log |det K|: K[i, j] is the number of activation inputs whose signs images i and j share. Forward only."""
    codes = _Codes(len(images))
    with torch.no_grad(), codes:
        module(images)
    return float(torch.linalg.slogdet(codes.kernel)[1])


def synflow(module: nn.Module, images: Tensor) -> float:
    """log of the sum of |w dR/dw| over all weights of convolutions and linear layers; changes `module`.

    R is the sum of the outputs for one image of ones, with absolute parameters and no batch norm, in double precision. The
    logarithm keeps the ranking (deep networks differ by tens of powers of ten) and is what the published scores are in.
    """
    module.double().eval()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_hook(_bypass)
    with torch.no_grad():
        for weight in module.parameters():
            weight.abs_()
    flow = module(torch.ones_like(images[:1], dtype=torch.float64)).sum()
    gradients = _gradients(module, flow)
    return (
        float(torch.stack([(weight * own).abs().sum() for weight, own in gradients]).sum().log())
        if gradients
        else -torch.inf
    )


def jacov(module: nn.Module, images: Tensor) -> float:
    """How little images' gradients d(sum of outputs)/d(image) correlate: -sum(log(v + k) + 1 / (v + k)), at most -B about.

    v: eigenvalues of their correlation matrix (B, B); k = 1e-5.
    """
    images = images.clone().requires_grad_()
    out = module(images).sum()
    if not out.requires_grad:
        return -torch.inf
    (jacobian,) = torch.autograd.grad(out, images, allow_unused=True)
    if jacobian is None:
        return -torch.inf
    correlation = torch.corrcoef(jacobian.flatten(1).double())
    if not bool(correlation.isfinite().all()):  # an image whose gradient is the same everywhere: correlation is 0 / 0
        return -torch.inf if bool(jacobian.isfinite().all()) else torch.nan
    shifted = torch.linalg.eigvalsh(correlation).clamp_min(0) + JACOV_K
    return float(-(shifted.log() + 1 / shifted).sum())


def _of_gradients(module: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Of the batch's cross-entropy L, over weights w of convolutions and linear layers.

    snip: the sum of |w dL/dw|. grad_norm: the sum over layers of the Euclidean norm of dL/dw.
    """
    gradients = _gradients(module, functional.cross_entropy(module(images), labels))
    return {
        "snip": float(sum((weight * own).abs().sum() for weight, own in gradients)),
        "grad_norm": float(sum(own.norm() for _, own in gradients)),
    }


def _gradients(module: nn.Module, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weights of convolutions and linear layers that `value` depends on, each once, and its gradient in them."""
    layers = [layer for layer in module.modules() if isinstance(layer, _ConvNd | nn.Linear)]
    weights = list({id(layer.weight): layer.weight for layer in layers}.values())
    if not weights or not value.requires_grad:
        return []
    found = torch.autograd.grad(value, weights, allow_unused=True)
    return [(weight.detach(), own) for weight, own in zip(weights, found, strict=True) if own is not None]


def _macs(module: nn.Module, images: Tensor) -> float:
    """Multiply-adds for one image, as torch counts floating-point operations: two each."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(images[:1])
    return counter.get_total_flops() / 2


class _Codes(TorchDispatchMode):
    """Sums, over all activation functions that are called inside, how many inputs of two images have the same sign."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.kernel = torch.zeros(batch, batch, dtype=torch.float64)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        del types
        if func.overloadpacket in ACTIVATIONS and len(args[0]) == len(self.kernel):
            signs = (args[0].flatten(1) > 0).float() * 2 - 1  # before the call, which may overwrite its input
            # Of F signs, a share and b don't: a + b = F, a - b = product. Whole numbers below 2^24 are exact in fp32.
            self.kernel += (signs @ signs.T + signs.shape[1]).double().cpu() / 2
        return func(*args, **(kwargs or {}))


def _fresh(module: nn.Module) -> nn.Module:
    """A copy that can be changed: dropout off, batch norms on the batch's own statistics, all parameters with gradients."""
    own = copy.deepcopy(module).eval().requires_grad_()
    for layer in own.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
    return own


def _bypass(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A hook that makes a layer return its input."""
    del layer, output
    return inputs[0]
