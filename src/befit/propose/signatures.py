"""Parameters and defaults of PyTorch's common layers, losses, optimizers and functions, as plain text.

With them `nn.Conv2d(3, 16, 3)` and `nn.Conv2d(in_channels=3, out_channels=16, kernel_size=3, stride=1)` are seen to be one
call without importing torch. Only parameters that all supported releases of PyTorch have in this order are listed; what
else a call names is kept as it stands. A test compares the table with the installed PyTorch.
"""

import ast
from functools import cache

_CONV = (
    "in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, padding_mode='zeros'"
)
_LAZY_CONV = _CONV.removeprefix("in_channels, ")
_NORM = "eps=1e-05, momentum=0.1, affine=True, track_running_stats=True"
_LOSS = "weight=None, size_average=None, ignore_index=-100, reduce=None, reduction='mean'"

TEXT = {
    "torch.nn.Conv1d": _CONV,
    "torch.nn.Conv2d": _CONV,
    "torch.nn.Conv3d": _CONV,
    "torch.nn.ConvTranspose2d": (
        "in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1, bias=True, dilation=1"
    ),
    "torch.nn.LazyConv2d": _LAZY_CONV,
    "torch.nn.Linear": "in_features, out_features, bias=True",
    "torch.nn.LazyLinear": "out_features, bias=True",
    "torch.nn.BatchNorm1d": f"num_features, {_NORM}",
    "torch.nn.BatchNorm2d": f"num_features, {_NORM}",
    "torch.nn.LazyBatchNorm2d": _NORM,
    "torch.nn.GroupNorm": "num_groups, num_channels, eps=1e-05, affine=True",
    "torch.nn.LayerNorm": "normalized_shape, eps=1e-05, elementwise_affine=True, bias=True",
    "torch.nn.InstanceNorm2d": "num_features, eps=1e-05, momentum=0.1, affine=False, track_running_stats=False",
    "torch.nn.ReLU": "inplace=False",
    "torch.nn.ReLU6": "inplace=False",
    "torch.nn.LeakyReLU": "negative_slope=0.01, inplace=False",
    "torch.nn.PReLU": "num_parameters=1, init=0.25",
    "torch.nn.ELU": "alpha=1.0, inplace=False",
    "torch.nn.SELU": "inplace=False",
    "torch.nn.GELU": "approximate='none'",
    "torch.nn.SiLU": "inplace=False",
    "torch.nn.Mish": "inplace=False",
    "torch.nn.Hardswish": "inplace=False",
    "torch.nn.Hardsigmoid": "inplace=False",
    "torch.nn.Softmax": "dim=None",
    "torch.nn.LogSoftmax": "dim=None",
    "torch.nn.MaxPool2d": "kernel_size, stride=None, padding=0, dilation=1, return_indices=False, ceil_mode=False",
    "torch.nn.AvgPool2d": "kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True",
    "torch.nn.AdaptiveAvgPool2d": "output_size",
    "torch.nn.AdaptiveMaxPool2d": "output_size, return_indices=False",
    "torch.nn.Dropout": "p=0.5, inplace=False",
    "torch.nn.Dropout2d": "p=0.5, inplace=False",
    "torch.nn.Flatten": "start_dim=1, end_dim=-1",
    "torch.nn.Upsample": "size=None, scale_factor=None, mode='nearest', align_corners=None",
    "torch.nn.PixelShuffle": "upscale_factor",
    "torch.nn.MultiheadAttention": (
        "embed_dim, num_heads, dropout=0.0, bias=True, add_bias_kv=False, add_zero_attn=False, kdim=None, vdim=None, "
        "batch_first=False"
    ),
    "torch.nn.CrossEntropyLoss": f"{_LOSS}, label_smoothing=0.0",
    "torch.nn.NLLLoss": _LOSS,
    "torch.nn.functional.relu": "input, inplace=False",
    "torch.nn.functional.relu6": "input, inplace=False",
    "torch.nn.functional.leaky_relu": "input, negative_slope=0.01, inplace=False",
    "torch.nn.functional.elu": "input, alpha=1.0, inplace=False",
    "torch.nn.functional.silu": "input, inplace=False",
    "torch.nn.functional.mish": "input, inplace=False",
    "torch.nn.functional.hardswish": "input, inplace=False",
    "torch.nn.functional.dropout": "input, p=0.5, training=True, inplace=False",
    "torch.nn.functional.dropout2d": "input, p=0.5, training=True, inplace=False",
    "torch.nn.functional.adaptive_avg_pool2d": "input, output_size",
    "torch.nn.functional.softmax": "input, dim=None",
    "torch.nn.functional.log_softmax": "input, dim=None",
    "torch.nn.functional.interpolate": "input, size=None, scale_factor=None, mode='nearest', align_corners=None",
    "torch.nn.functional.pad": "input, pad, mode='constant', value=None",
    "torch.nn.functional.cross_entropy": f"input, target, {_LOSS}, label_smoothing=0.0",
    "torch.nn.functional.normalize": "input, p=2.0, dim=1, eps=1e-12",
    "torch.nn.functional.layer_norm": "input, normalized_shape, weight=None, bias=None, eps=1e-05",
    "torch.optim.SGD": "params, lr=0.001, momentum=0, dampening=0, weight_decay=0, nesterov=False",
    "torch.optim.Adam": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0, amsgrad=False",
    "torch.optim.AdamW": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=False",
    "torch.optim.RMSprop": "params, lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0, momentum=0, centered=False",
}
"""Dotted name to the text between the parentheses of its signature, without `self`."""


@cache
def signature(path: str) -> dict[str, ast.expr | None] | None:
    """Parameters in order, each with its default (None: it has none); None for what the table does not have."""
    if path not in TEXT:
        return None
    arguments = ast.parse(f"def f({TEXT[path]}): ...").body[0].args  # type: ignore[union-attr]
    missing = [None] * (len(arguments.args) - len(arguments.defaults))
    return dict(zip([one.arg for one in arguments.args], [*missing, *arguments.defaults], strict=True))
