"""An image network as an ONNX file, checked at once under ONNX Runtime; on request with 8-bit weights and activations.

The file holds all of the network: it takes images as floats in 0..1 (bytes over 255), any number at a time, normalises them
itself and gives logits; its metadata name the classes. In 8 bits it is quantised statically, with `QuantizeLinear` and
`DequantizeLinear` around what is computed (signed, per channel), the ranges of activations taken from training images.

Shapes: N images, C channels, H height, W width, K classes.
"""

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from befit.errors import BefitError
from befit.rundir import befit_version, replacing
from befit.vision.checkpoint import load_classifier
from befit.vision.data import Images
from befit.vision.predict import Classifier
from befit.vision.timing import session_options

OPSET = 18
"""Of the operators; ONNX Runtime 1.14 and later know it."""

TOLERANCE = 1e-4
"""Largest difference of logits between ONNX Runtime and PyTorch, over the largest logit where that is above 1."""

CALIBRATION_IMAGES = 512
"""Training images from which the ranges of activations are taken."""

_CHECKED = 64
_NEEDED = ("onnx", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX file and how near it is to the network it was made of."""

    path: Path
    size_bytes: int
    opset: int
    exporter: str
    """`dynamo` or, where onnxscript is not installed, `tracing`."""
    max_difference: float
    """Largest difference of logits to PyTorch before quantisation, on random and, where given, real images."""
    int8: bool
    agreement: float | None
    """Of the file in 8 bits: share (0..1) of the validation images that it gives the same class as PyTorch in fp32 does."""
    accuracy: float | None
    """0..1, of this file under ONNX Runtime on the validation images; None without data."""


def export_onnx(
    source: Path | str | Classifier,
    out: Path,
    *,
    data: Images | None = None,
    int8: bool = False,
    opset: int = OPSET,
) -> Exported:
    """Write the network of a folder (or in memory) to `out` and check it there.

    `data`: real images to check and judge with, needed for `int8`. Raises `BefitError` if the network cannot be exported,
    computes something else than PyTorch, or a library is missing.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise BefitError(f"export to ONNX needs {' and '.join(missing)}: pip install 'befit[export]'")
    if int8 and data is None:
        raise BefitError("export in 8 bits needs data: training images give the ranges; pass the data of the search")
    classifier = source if isinstance(source, Classifier) else load_classifier(source)
    if data is not None and data.task != classifier.task:
        raise BefitError(f"export: the data are {data.task}, the network is for {classifier.task}; give its own data")
    deployed = Deployed(classifier)
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        exporter = _export(deployed, _noise(classifier, 2), plain, opset)
        _describe(plain, classifier, int8)
        images = _noise(classifier, _CHECKED)
        if data is not None:
            images = torch.cat([images, _floats(data.validation.images[:_CHECKED])])
        difference = _difference(deployed, plain, images)
        if int8 and data is not None:
            _quantise(plain, quantised, data)
        written = quantised if int8 else plain
        agreement, accuracy = (None, None) if data is None else _judged(deployed, written, data)
        with replacing(out) as temporary:
            temporary.write_bytes(written.read_bytes())
    return Exported(
        path=out,
        size_bytes=out.stat().st_size,
        opset=opset,
        exporter=exporter,
        max_difference=difference,
        int8=int8,
        agreement=agreement if int8 else None,
        accuracy=accuracy,
    )


class Deployed(nn.Module):
    """A network with its normalisation: float images (N, C, H, W) in 0..1 to logits (N, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.module.cpu()
        self.register_buffer("mean", torch.tensor(classifier.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(classifier.std).view(1, -1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def session(file: Path) -> Any:
    """The file, ready to run on the processor."""
    import onnxruntime

    options = session_options(torch.get_num_threads())
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _export(deployed: Deployed, images: Tensor, file: Path, opset: int) -> str:
    """Write the file; which of PyTorch's exporters did."""
    exporter = "dynamo" if find_spec("onnxscript") is not None else "tracing"
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "opset_version": opset}
    if exporter == "dynamo":
        shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
        names |= {"dynamo": True, "dynamic_shapes": shapes, "external_data": False, "verbose": False}
    else:
        names |= {"dynamo": False, "dynamic_axes": {"images": {0: "batch"}, "logits": {0: "batch"}}}
    with _quiet():
        try:
            torch.onnx.export(deployed, (images,), str(file), **names)
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise BefitError(
                f"the network cannot be exported to ONNX ({str(error).splitlines()[0]}); "
                "replace the operation in question in the network's class"
            ) from error
    return exporter


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself: its own deprecated calls, and libraries of operators that are not there."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # PyTorch's exporters call deprecated functions of its own, and the one that traces is deprecated as a whole; it
            # is used only where the other cannot be. What they write is checked below.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # A trace warns of every shape that it takes as fixed; only the first may differ, which is checked below too.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
            yield
    finally:
        logger.setLevel(before)


def _describe(file: Path, classifier: Classifier, int8: bool) -> None:
    """Say in the file what goes in and what comes out."""
    import onnx

    low, high = classifier.span
    unit = "0..1 (bytes over 255)" if classifier.takes_pictures else f"{low:.6g}..{high:.6g}, as the training images"
    model = onnx.load(str(file))
    onnx.helper.set_model_props(
        model,
        {
            "classes": json.dumps(list(classifier.classes), ensure_ascii=False),
            "input": f"float32 images (batch, {'RGB' if classifier.task.channels == 3 else classifier.task.channels}, "
            f"{classifier.task.height}, {classifier.task.width}) in {unit}; normalised inside",
            "output": "logits (batch, classes)",
            "mean": json.dumps(list(classifier.mean)),
            "std": json.dumps(list(classifier.std)),
            "arch": json.dumps(classifier.arch.to_json()),
            "blueprint": classifier.blueprint,
            "weights": "int8" if int8 else "float32",
            "befit": befit_version(),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(file))


def _difference(deployed: Deployed, file: Path, images: Tensor) -> float:
    """Largest difference of logits; all images at once and the first alone. Raises `BefitError` above `TOLERANCE`."""
    runs, difference, largest = session(file), 0.0, 1.0
    for batch in (images, images[:1]):
        with torch.no_grad():
            expected = deployed(batch)
        got = torch.from_numpy(runs.run(None, {"images": batch.numpy()})[0])
        difference = max(difference, (got - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    if not difference <= TOLERANCE * largest:
        raise BefitError(
            f"the exported network differs from PyTorch by {difference:.2g} (logits up to {largest:.2g}); at most "
            f"{TOLERANCE:g} of that is expected. It may decide by values of its input, which an ONNX file cannot keep"
        )
    return difference


def _judged(deployed: Deployed, file: Path, data: Images) -> tuple[float, float]:
    """Share of the validation images classified as by PyTorch, and correctly."""
    runs, same, right = session(file), 0, 0
    for begin in range(0, len(data.validation), _CHECKED):
        images = _floats(data.validation.images[begin : begin + _CHECKED])
        with torch.no_grad():
            expected = deployed(images).argmax(1)
        got = torch.from_numpy(runs.run(None, {"images": images.numpy()})[0]).argmax(1)
        same += int((got == expected).sum())
        right += int((got == data.validation.labels[begin : begin + _CHECKED]).sum())
    return same / len(data.validation), right / len(data.validation)


def _quantise(plain: Path, quantised: Path, data: Images) -> None:
    from onnxruntime import quantization

    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:CALIBRATION_IMAGES]
    batches = [{"images": _floats(part).numpy()} for part in data.train.images[order].split(_CHECKED)]
    prepared = plain.with_name("prepared.onnx")
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)  # it advises preparing the network, which is what is being done
    try:
        quantization.quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(quantised),
            _Batches(iter(batches)),  # pyright: ignore[reportArgumentType] - it is asked for get_next only
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logger.setLevel(before)


class _Batches:
    """What ONNX Runtime asks for images to calibrate with."""

    def __init__(self, batches: "Iterator[dict[str, np.ndarray]]") -> None:
        self._batches = batches

    def get_next(self) -> "dict[str, np.ndarray] | None":
        return next(self._batches, None)


def _floats(images: Tensor) -> Tensor:
    """Images as the file takes them."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _noise(classifier: Classifier, count: int) -> Tensor:
    """Random images over the range of values that the network knows."""
    task, (low, high) = classifier.task, classifier.span
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(count, task.channels, task.height, task.width, generator=generator)
