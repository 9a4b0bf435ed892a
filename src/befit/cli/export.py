"""The verb that writes a network for other programs, whichever verb made it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from befit.cli.images import export_search
from befit.cli.shown import quiet, show_lines
from befit.errors import BefitError

ENDINGS = {"vllm": "-vllm", "gguf": ".gguf", "hf": "-hf"}
"""What is appended to the name of a checkpoint's folder where no --out is given."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Write a network for another engine: a language model for vLLM, llama.cpp or the hub, an image network as ONNX."""

    folder: tyro.conf.Positional[Path]
    """A run of `befit puzzle` or its child, a cut, a checkpoint, befit:dense or befit:hybrid; or a run of `befit search` or its
    best/."""
    to: Literal["vllm", "gguf", "hf", "onnx"] | None = None
    """For a language model vllm (SGLang and TensorRT-LLM read it too), gguf (llama.cpp) or hf (with a model card); for an image
    network onnx."""
    out: Path | None = None
    """Folder, or file of gguf and onnx; beside the checkpoint if not given, model.onnx in the folder of a search."""
    dtype: Literal["fp32", "bf16", "fp16", "q8_0"] | None = None
    """Format of a language model's weights, that of the checkpoint if not given; q8_0 for gguf alone."""
    name: str | None = None
    """For hf: of the repository, such as me/small-llama."""
    base_model: str | None = None
    """For hf: the parent's name on the hub; that which `befit puzzle` was given if not given."""
    license: str | None = None
    """For hf: as the hub writes it, such as apache-2.0."""
    int8: bool = False
    """For onnx: eight-bit weights and activations, calibrated on images."""
    data: str | None = None
    """For onnx: images to calibrate and compare on, as `befit search --data` takes them; those of the search if not given."""
    size: int | None = None
    """For onnx: pixels to which these are scaled, as for `befit search`."""


def export_verb(arguments: Sequence[str]) -> None:
    """Write a network for another engine."""
    wanted = tyro.cli(Wanted, args=arguments, prog="befit export")
    from befit.export.language import is_language, open_language

    quiet()
    folder, to = wanted.folder, wanted.to
    card = {"--name": wanted.name, "--base-model": wanted.base_model, "--license": wanted.license}
    images = {"--int8": wanted.int8 or None, "--data": wanted.data, "--size": wanted.size}
    if is_language(folder):
        if to is None or to == "onnx":
            raise BefitError(f"{folder} holds a language model; give --to vllm, --to gguf or --to hf")
        _refuse(images if to == "hf" else images | card, to)
        show_lines(_language(wanted, to))
        return
    if not folder.expanduser().exists():
        raise BefitError(f"{folder} is not there; give a run, or the folder of a checkpoint")
    if to not in (None, "onnx"):
        if (folder / "stages").is_dir():
            open_language(folder)  # says that the run has no child yet
        raise BefitError(f"{folder} holds no language model, which --to {to} needs; an image network goes --to onnx")
    _refuse(card | {"--dtype": wanted.dtype}, "onnx")
    show_lines(export_search(folder, wanted.out, int8=wanted.int8, data=wanted.data, size=wanted.size))


def _refuse(given: Mapping[str, object], to: str) -> None:
    wrong = [flag for flag, value in given.items() if value is not None]
    if wrong:
        raise BefitError(f"--to {to} has no use for {', '.join(wrong)}; leave it out")


def _language(wanted: Wanted, to: str) -> list[str]:
    """Write a language model; what to print."""
    from befit.budget import human
    from befit.export.gguf import export_gguf
    from befit.export.hf import export_hf
    from befit.export.language import open_language
    from befit.export.vllm import export_vllm
    from befit.lm.parent import SHIPPED

    folder, dtype = wanted.folder, wanted.dtype
    found = open_language(folder).folder.resolve()
    if str(folder) in SHIPPED:  # here, not inside of befit
        found = Path(str(folder).replace(":", "-"))
    place = wanted.out or found.with_name(found.name + ENDINGS[to])
    if to == "vllm":
        made = export_vllm(folder, place, dtype=dtype)
        what, last = f"folder  {place}, {made.form} form", f"serve   {made.command}"
    elif to == "gguf":
        made = export_gguf(folder, place, dtype=dtype)
        what, last = f"file    {place}, architecture {made.architecture}", f"serve   {made.command}"
    else:
        texts = {"name": wanted.name, "base": wanted.base_model, "licence": wanted.license}
        made = export_hf(folder, place, dtype=dtype, **texts)
        what, last = f"folder  {place}, card {place / 'README.md'}", f"push    {made.command}"
    size = f"size    {human('weight_bytes', made.size_bytes)}, {made.dtype}"
    return [what, size, *(f"note    {note}" for note in made.notes()), last]
