"""The ONNX file against PyTorch, read with nothing but ONNX Runtime."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from befit.arch.cell import parse
from befit.arch.space import Choice, Space
from befit.errors import BefitError
from befit.export.onnx import TOLERANCE, export_onnx
from befit.vision.cell import cell
from befit.vision.checkpoint import Facts, save_classifier
from befit.vision.data import Images, from_arrays, load_images
from befit.vision.predict import Classifier
from befit.vision.training import TrainConfig, train

ARCH = Space({"width": Choice(4)}).arch({"width": 4})


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images()


@pytest.fixture(scope="module")
def trained(digits: Images) -> Classifier:
    """A cell network that knows most digits."""
    torch.manual_seed(0)
    arch = parse("|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|avg_pool_3x3~2|")
    module = cell(channels=8, cells=1).build(arch, digits.task)
    train(module, digits, TrainConfig(epochs=3))
    return Classifier.of(module, digits, arch, blueprint="cell", options={"channels": 8, "cells": 1})


def logits(file: Path, images: Tensor) -> Tensor:
    runs = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [one.name for one in runs.get_inputs()] == ["images"]
    return torch.from_numpy(runs.run(["logits"], {"images": images.numpy()})[0])


def without_onnxscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("befit.export.onnx.find_spec", lambda name: None if name == "onnxscript" else find_spec(name))


@pytest.mark.parametrize("exporter", ["dynamo", "tracing"])
def test_the_file_computes_what_pytorch_does(
    trained: Classifier, digits: Images, tmp_path: Path, exporter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exporter == "tracing":
        without_onnxscript(monkeypatch)
    save_classifier(tmp_path / "best", trained, Facts(data="digits"))
    told = export_onnx(tmp_path / "best", tmp_path / "out" / "net.onnx", data=digits)
    assert told.exporter == exporter and told.path.stat().st_size == told.size_bytes and told.agreement is None
    assert 0 <= told.max_difference <= TOLERANCE
    images = digits.validation.images
    for batch in (images, images[:1], images[:7]):
        assert (logits(told.path, batch.float() / 255) - trained.logits(batch)).abs().max() < TOLERANCE * 10
    right = (logits(told.path, images.float() / 255).argmax(1) == digits.validation.labels).double().mean().item()
    assert told.accuracy == pytest.approx(right) and right > 0.8
    model = onnx.load(str(told.path))
    props = {one.key: one.value for one in model.metadata_props}
    assert json.loads(props["classes"]) == list("0123456789") and props["weights"] == "float32"
    assert json.loads(props["arch"]) == trained.arch.to_json() and "0..1 (bytes over 255)" in props["input"]
    assert {one.domain: one.version for one in model.opset_import}[""] == told.opset == 18
    assert len(list(told.path.parent.iterdir())) == 1, "weights are in the file, and nothing is left beside it"


def test_eight_bits_agree(trained: Classifier, digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_onnxscript(monkeypatch)  # the exporter that traces is faster
    told = export_onnx(trained, tmp_path / "int8.onnx", data=digits, int8=True)
    model = onnx.load(str(told.path))
    kinds = {one.op_type for one in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    convolved = {name for one in model.graph.node if one.op_type == "Conv" for name in one.input}
    assert not convolved & {one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    images = digits.validation.images
    own = logits(told.path, images.float() / 255).argmax(1)
    same = (own == trained.logits(images).argmax(1)).double().mean().item()
    right = (own == digits.validation.labels).double().mean().item()
    assert told.int8 and told.agreement == pytest.approx(same) and told.accuracy == pytest.approx(right)
    assert same > 0.97
    assert {one.key: one.value for one in model.metadata_props}["weights"] == "int8"


class Forgetful(nn.Module):
    """Adds what it counts, which a file cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(16, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x.flatten(1)) + self.calls


class Stubborn(nn.Module):
    """Decides by values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1)) if x.sum() > 0 else self.inner(x.flatten(1)) * 2


def simple(module: nn.Module, images: Images) -> Classifier:
    return Classifier.of(module, images, ARCH, blueprint="x:y")


@pytest.fixture(scope="module")
def floats() -> Images:
    return from_arrays(torch.randn(20, 1, 4, 4) * 3 + 1, [0, 1] * 10)


def test_networks_of_other_numbers_say_which(floats: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_onnxscript(monkeypatch)
    network = simple(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), floats)
    told = export_onnx(network, tmp_path / "a.onnx", data=floats)
    images = floats.validation.images
    assert (logits(told.path, images) - network.logits(images)).abs().max() < 1e-4
    props = {one.key: one.value for one in onnx.load(str(told.path)).metadata_props}
    assert "as the training images" in props["input"] and f"{network.span[0]:.6g}.." in props["input"]


def test_what_cannot_be_exported(floats: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.onnx"
    with pytest.raises(BefitError, match=r"cannot be exported to ONNX \(.*replace the operation in question"):
        export_onnx(simple(Stubborn(), floats), out)
    without_onnxscript(monkeypatch)
    with pytest.raises(BefitError, match=r"differs from PyTorch by \d.*; at most 0\.0001 of that is expected"):
        export_onnx(simple(Forgetful(), floats), out)
    network = simple(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), floats)
    with pytest.raises(BefitError, match="8 bits needs data"):
        export_onnx(network, out, int8=True)
    with pytest.raises(BefitError, match=r"the data are ImageTask\(.*give its own data"):
        export_onnx(network, out, data=replace(floats, classes=("a", "b", "c")))
    monkeypatch.setattr("befit.export.onnx.find_spec", lambda name: None)
    with pytest.raises(BefitError, match=r"needs onnx and onnxruntime: pip install 'befit\[export\]'"):
        export_onnx(network, out)
    assert not out.exists()
