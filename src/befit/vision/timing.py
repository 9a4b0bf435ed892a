"""Measure what image networks take on a target: a processor or a GPU, under PyTorch or ONNX Runtime.

    measure_ms(network, task, engine="onnx", threads=1).median_ms

A network is timed as it is used: in evaluation mode, without gradients, its input already in the device's memory; on a GPU
under PyTorch as a CUDA graph. Several networks are timed in turns, so that whatever else the machine does slows all of them
alike and their ratios hold. Time depends on shapes and not on weights, with one exception: fresh weights under untrained norms
let the activations of a deep network fade until they are denormal numbers, on which processors are many times slower. So a
copy is timed whose norms have seen one batch of noise.

Shapes: B batch, C image channels, H height, W width.
"""

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from befit.arch.task import ImageTask
from befit.cost.device import Device, Step, this_device, time_together
from befit.cost.target import Target
from befit.errors import BefitError
from befit.progress import Progress, silent

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True, kw_only=True)
class Effort:
    """When to stop timing: the first of these ends it, for all networks that are timed together."""

    rounds: int = 300
    """Timed calls of each network."""
    seconds: float = 10.0
    """Time of all timed calls together; building, exporting and warming up come on top."""
    tolerance: float = 0.02
    """Width of the interval that holds the true median in 95 of 100 cases, over the median; 0: never close enough."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.seconds > 0 or not self.tolerance >= 0:
            raise BefitError(f"effort: rounds and seconds must be above 0, tolerance at least 0, got {self}")


EFFORT = Effort()
"""A few seconds for a small network on a quiet machine."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one call of a network takes."""

    median_ms: float
    """Half of the calls were faster."""
    low_ms: float
    """Lower end of the interval that holds the true median in 95 of 100 cases; 0 of fewer than eight rounds."""
    high_ms: float
    """Its upper end; infinity of fewer than eight rounds."""
    fast_ms: float
    """A tenth of the calls were faster: the time on a machine that does nothing else, as far as a busy one can tell."""
    rounds: int
    """Timed calls behind these numbers (on a GPU: bursts of calls)."""
    target: Target
    """How it was run, threads filled in."""
    note: str = ""
    """Why a network on a GPU did not run as a CUDA graph; empty otherwise."""


def measure_ms(
    module: nn.Module,
    task: ImageTask,
    *,
    engine: Any = "torch",
    device: Any = "cpu",
    batch: int = 1,
    threads: int | None = None,
    effort: Effort = EFFORT,
) -> Timing:
    """How long `module` takes for `batch` images of `task`; the module is left as it is. Raises as `measure_many` does."""
    target = Target(engine=engine, device=device, batch=batch, threads=threads)
    return measure_many({"network": module}, task, target, effort=effort)["network"]


def measure_many(
    modules: Mapping[str, nn.Module],
    task: ImageTask,
    target: Target,
    *,
    effort: Effort = EFFORT,
    progress: Progress = silent,
) -> dict[str, Timing]:
    """Time several networks in turns, each for `target.batch` images of `task`; the modules are left as they are.

    Raises `BefitError` where torch or ONNX Runtime has no such device, or where a network cannot be exported.
    """
    machine = this_device(target.device)
    target = resolved(target)
    images = torch.randn(
        target.batch, task.channels, task.height, task.width, generator=torch.Generator().manual_seed(0)
    )
    prepare = _on_torch if target.engine == "torch" else _on_onnx_runtime
    with _threads(target.threads or 1):
        steps: dict[str, Step] = {}
        for name, module in progress(modules.items(), "prepare", len(modules)):
            steps[name] = prepare(_settled(module, images), images, target)
        times = time_together(
            steps,
            # ONNX Runtime manages its own streams, so its calls are timed by the clock: they return when they are done.
            machine if target.engine == "torch" else this_device("cpu"),
            repeats=effort.rounds,
            seconds=effort.seconds,
            tolerance=effort.tolerance,
            progress=progress,
        )
    return {
        name: Timing(
            median_ms=time.median_ms,
            low_ms=time.interval_ms[0],
            high_ms=time.interval_ms[1],
            fast_ms=time.low_ms,
            rounds=time.repeats,
            target=target,
            note=time.note,
        )
        for name, time in times.items()
    }


def resolved(target: Target) -> Target:
    """The target with its number of threads told: torch's own if it names none."""
    return replace(target, threads=target.threads or torch.get_num_threads())


def machine_of(target: Target) -> Device:
    """The machine that measures for `target`. Raises `BefitError` if it has no such device."""
    return this_device(target.device)


def versions_of(target: Target) -> dict[str, str]:
    """The software whose age matters to the target's latency."""
    names = ("torch",) if target.engine == "torch" else ("torch", "onnxruntime")
    return {name: version(name) for name in names}


def session_options(threads: int) -> Any:
    """ONNX Runtime's options as befit measures and deploys: all graph optimisations, operations one after the other."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _settled(module: nn.Module, images: Tensor) -> nn.Module:
    """A copy on the CPU in evaluation mode, whose batch norms have the statistics of one batch of noise."""
    own = copy.deepcopy(module).cpu().eval()
    norms = [layer for layer in own.modules() if isinstance(layer, Norm) and layer.track_running_stats]
    if norms:
        for norm in norms:
            norm.momentum = None  # the average of what was seen since the reset
            norm.reset_running_stats()
            norm.train()
        # One image of 1 x 1 pixels has no variance, so at least two are shown.
        shown = images if len(images) > 1 else torch.cat([images, images.flip(-1).neg()])
        with torch.no_grad():
            own(shown)
    return own.eval()


def _on_torch(module: nn.Module, images: Tensor, target: Target) -> Step:
    module, images = module.to(target.device), images.to(target.device)
    return torch.inference_mode()(partial(module, images))


def _on_onnx_runtime(module: nn.Module, images: Tensor, target: Target) -> Step:
    import onnxruntime

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[target.device]
    if provider not in onnxruntime.get_available_providers():
        raise BefitError(
            f"target: this ONNX Runtime {onnxruntime.__version__} has no {provider}; "
            "install onnxruntime-gpu, or measure with engine torch or device cpu"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "network.onnx")
        _export(module, images, file)
        session = onnxruntime.InferenceSession(file, session_options(target.threads or 1), providers=[provider])
    binding = session.io_binding()
    for one in session.get_inputs():  # a network that does not look at its images has none
        value = onnxruntime.OrtValue.ortvalue_from_numpy(images.numpy(), target.device, 0)
        binding.bind_ortvalue_input(one.name, value)
    binding.bind_output("logits", target.device)
    return partial(session.run_with_iobinding, binding)


def _export(module: nn.Module, images: Tensor, file: str) -> None:
    """Write the network for images of just this shape.

    With the exporter that traces: both give networks that ONNX Runtime runs alike, this one in a tenth of the time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and traces warn of every shape that they take as fixed
        try:
            torch.onnx.export(module, (images,), file, dynamo=False, input_names=["images"], output_names=["logits"])
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise BefitError(
                f"latency under ONNX Runtime: this network cannot be exported: {str(error).splitlines()[0]}; "
                "change the operation that it names, or measure with engine torch"
            ) from error
