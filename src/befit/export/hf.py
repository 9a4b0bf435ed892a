"""A checkpoint as a repository for the Hugging Face hub: weights, configuration, tokenizer, code if it needs any, model card."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from befit.arch.decoder import Block, DecoderArch
from befit.errors import UnsupportedModel
from befit.export import card
from befit.export.language import Language, carry, open_language, write_weights
from befit.export.vllm import RECORD, check_dtype, check_out, form_of
from befit.lm.precision import DTYPES
from befit.rundir import read_json, replacing_folder, write_json, write_text

NESTED = ("nested/nested.json", "nested.json")
"""Where, above a cut, the record of the nested model may lie, which knows the quality of the members trained for."""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A folder that can be pushed as it is."""

    folder: Path
    name: str
    """As the card says it: the folder's, unless another was given."""
    own_code: bool
    """Whether the folder brings the modelling file that its class needs."""
    dtype: str
    size_bytes: int
    """Of the weights."""

    @property
    def command(self) -> str:
        """The line that publishes it."""
        return f"hf upload {self.name} {self.folder}"

    def notes(self) -> tuple[str, ...]:
        """What a user of this folder should know."""
        return ("it loads with trust_remote_code=True: its layers differ",) if self.own_code else ()


def export_hf(
    source: Path | str,
    out: Path,
    *,
    dtype: str | None = None,
    name: str | None = None,
    base: str | None = None,
    licence: str | None = None,
) -> Repository:
    """Write the checkpoint in `source` (a run of `befit puzzle`, its child, a cut, a plain one) with a model card to `out`.

    `name` is the repository's ("me/small-llama"), `base` the parent's on the hub, by default what the run was given, `licence`
    the identifier that the hub shows; a child is a derivative of its parent, whose licence it has to keep. `dtype` as
    `export_vllm` takes it. Raises `RunConflict`, `UnsupportedModel` and `IllegalArch` as that does.
    """
    found = open_language(source)
    dtype = check_dtype(dtype or found.dtype)
    check_out(out)
    name = name or out.resolve().name
    base = base or card.base_model(found.summary)
    with replacing_folder(out) as temporary:
        size = write_weights(found, temporary, dtype=dtype, rename=str)
        told = read_json(found.folder / "config.json")
        write_json(temporary / "config.json", told | {"dtype": str(DTYPES[dtype]).removeprefix("torch.")})
        carry(found.folder, temporary)
        if found.own_code:
            for file in found.folder.glob("*.py"):
                shutil.copy(file, temporary / file.name)
        write_text(temporary / "README.md", model_card(found, name=name, base=base, licence=licence))
        write_json(temporary / RECORD, {"to": "hf", "arch": found.arch.to_json()})
    return Repository(folder=out, name=name, own_code=found.own_code, dtype=dtype, size_bytes=size)


def model_card(source: Language, *, name: str, base: str | None, licence: str | None) -> str:
    """README.md: the front matter that the hub reads, and what a person should know."""
    tags = ["befit", source.shape.family]
    told = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*tags, *(["custom_code"] if source.own_code else [])],
        base_model=base,
        license=licence,
    )
    lines = [
        f"---\n{told.to_yaml()}\n---\n",
        f"# {name.rsplit('/', maxsplit=1)[-1]}\n",
        _summary(source, base, licence),
    ]
    lines += ["\n## Architecture\n", _sizes(source), *card.layer_rows(source.arch.blocks, _parent(source)), ""]
    if source.summary is not None:
        lines += card.puzzle_lines(source.summary)
    elif source.cut is not None:
        lines += card.cut_lines(source.cut, quality_of(source))
    lines += ["", *card.load_lines(name, own_code=source.own_code, served=_served(source))]
    return "\n".join(lines) + "\n"


def quality_of(source: Language) -> Mapping[str, float] | None:
    """Loss and KL of a cut, from the record of the nested model it was cut from, if that lies above it and has this member."""
    for above in source.folder.resolve().parents[:3]:
        for place in NESTED:
            if (above / place).is_file() and source.cut is not None:
                entries = read_json(above / place)["entries"]
                return next((e["quality"] for e in entries if e["hash"] == source.cut["hash"]), None)
    return None


def _summary(source: Language, base: str | None, licence: str | None) -> str:
    """The first paragraph."""
    parent = base or (card.parent_name(source.summary) if source.summary is not None else None)
    link = f"[{base}](https://huggingface.co/{base})" if base else parent
    of = f" of {link}" if link else ""
    if source.summary is not None:
        what = f"A child{of}, fitted to a hardware budget by `befit puzzle`"
    elif source.cut is not None:
        what = f"A size{of}, cut from a nested model by `befit cut`"
    else:
        what = f"A {source.shape.family} model"
    told = (
        f"Licence: {licence}." if licence else "It is a derivative of its parent: the parent's licence applies to it."
    )
    return f"{what}. {told}"


def _sizes(source: Language) -> str:
    shape = source.shape
    heads = f"{shape.heads} query heads of {shape.head_dim} channels"
    return (
        f"Family {shape.family}: {shape.layers} layers, hidden size {shape.hidden:,}, {heads}, vocabulary {shape.vocab:,}"
        f"{', output tied to the embedding' if shape.tied else ''}.\n"
    )


def _parent(source: Language) -> tuple[Block, ...] | None:
    """The parent's layers, where the run tells them."""
    if source.summary is None:
        return None
    return DecoderArch.from_json(source.summary["parent"]["arch"]).blocks


def _served(source: Language) -> str:
    """What other engines make of it."""
    try:
        form = form_of(source.arch, source.shape, source.config)
    except UnsupportedModel as error:
        return f"Other engines: {re.sub(r'^this', 'This', str(error))}."
    if form == "plain" and not source.own_code:
        return "Engines that know the family (vLLM is one) serve this folder as it is; for llama.cpp: `befit export --to gguf`."
    return (
        "`befit export --to vllm` writes it in the form that vLLM, SGLang and TensorRT-LLM serve, "
        "`befit export --to gguf` for llama.cpp."
    )
