"""A language model on disk, as every export reads it: a child of `befit puzzle`, a cut of `befit elastic`, or a plain parent.

Nothing of the weights is in memory but what is being written.
"""

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Linear, NoOp
from befit.errors import RunConflict, UnsupportedModel
from befit.lm.checkpoint import SHARD_BYTES, Checkpoint, write_shards
from befit.lm.child import arch_of
from befit.lm.families import FAMILIES, family_of
from befit.lm.family import Family
from befit.lm.parent import SHIPPED
from befit.lm.precision import DTYPES
from befit.rundir import read_json

CARRIED = (
    "generation_config.json",
    "token*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
"""Files that an export takes over as they are: the tokenizer's, and how to generate."""

CHILD, CUT, SUMMARY = "child", "cut.json", "summary.json"
"""In a run of `befit puzzle`, the child; in a cut of `befit elastic`, its record; in a run, its record."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """A checkpoint, described."""

    folder: Path
    config: Any
    """transformers' configuration, of the parent's family."""
    family: Family
    shape: DecoderShape
    """What its layers share; `shape.arch` is the checkpoint's own architecture."""
    summary: Mapping[str, Any] | None
    """`summary.json` of the run that it is the child of, or None."""
    cut: Mapping[str, Any] | None
    """`cut.json` of a cut, or None."""

    @property
    def arch(self) -> DecoderArch:
        return self.shape.arch

    @property
    def own_code(self) -> bool:
        """Whether its class is befit's, whose modelling file travels with it."""
        return any(name.startswith("Befit") for name in self.config.architectures or [])

    @property
    def dtype(self) -> str:
        """Number format of the weights: fp32, bf16 or fp16."""
        return next((name for name, dtype in DTYPES.items() if dtype == self.config.dtype), "fp32")

    def weights(self) -> Checkpoint:
        """Its weights, opened, under the names that they have in the family's own class. A context manager."""
        files = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if not files:
            raise UnsupportedModel(f"{self.folder} has no .safetensors weights; give the folder of a checkpoint")
        return Checkpoint(self.folder, files, _plain_name)


def is_language(source: Path | str) -> bool:
    """Whether the folder `source`, or the child in it, holds a language model and not an image network."""
    folder = _folder(source)
    files = [place / "config.json" for place in (folder / CHILD, folder)]
    return any(file.is_file() and "model_type" in read_json(file) for file in files)


def open_language(source: Path | str) -> Language:
    """Describe the checkpoint in `source`: a run of `befit puzzle` (whose child it is), a checkpoint folder, or "befit:dense" or
    "befit:hybrid".

    Raises `RunConflict` if there is none, `UnsupportedModel` for another family or a feature befit does not keep.
    """
    given = _folder(source)
    folder = given / CHILD if (given / CHILD / "config.json").is_file() else given
    if not (folder / "config.json").is_file():
        raise RunConflict(
            f"{given} holds no checkpoint (no config.json, no {CHILD}/); give a finished run or its child"
        )
    kind = read_json(folder / "config.json").get("model_type")
    if kind is None and (folder / "stages").is_dir():
        raise RunConflict(f"{given} has no child yet; finish the run first: befit resume {given}")
    if kind not in FAMILIES:
        raise UnsupportedModel(f"{folder} is of family {kind!r}; supported families: {', '.join(FAMILIES)}")
    config = AutoConfig.from_pretrained(folder)
    summary, cut = folder.parent / SUMMARY, folder / CUT
    return Language(
        folder=folder,
        config=config,
        family=family_of(config),
        shape=shape_of(config),
        summary=read_json(summary) if folder.name == CHILD and summary.is_file() else None,
        cut=read_json(cut) if cut.is_file() else None,
    )


def shape_of(config: Any) -> DecoderShape:
    """What a plain checkpoint's configuration, or a child's, says of the network; `arch` is its own.

    Raises `UnsupportedModel` as `Family.describe` does.
    """
    family = family_of(config)
    if not config.is_heterogeneous:
        return family.describe(config)
    return replace(family.describe(uniform(config)), arch=arch_of(config))


def uniform(config: Any) -> Any:
    """A copy of a child's configuration without what it says of single layers and without what names befit's code."""
    plain = copy.deepcopy(config)
    plain.per_layer_config = None
    for name in ("auto_map", "linear"):
        vars(plain).pop(name, None)
    if plain.num_key_value_heads == 0:  # as `config_for` writes it where the family's own class must not be used
        plain.num_key_value_heads = config.num_attention_heads
    return plain


def present(arch: DecoderArch) -> tuple[int, ...]:
    """The layers of which anything is left. A layer without both sub-blocks computes nothing and is not written."""
    kept = (i for i, b in enumerate(arch.blocks) if not (isinstance(b.attention, NoOp) and isinstance(b.ffn, NoOp)))
    return tuple(kept)


def is_plain(blocks: list[Block], shape: DecoderShape) -> bool:
    """Whether transformers' own class of the family holds these layers: all alike, those of a hybrid by kind."""
    kinds: dict[type, set[Any]] = {}
    for block in blocks:
        for half in (block.attention, block.ffn):
            kinds.setdefault(type(half), set()).add(half)
    windows = {half.window for half in kinds.get(Attention, ())}
    if Linear in kinds or not blocks or any(len(found) > 1 for kind, found in kinds.items() if kind is not Attention):
        return False
    if len({half.kv_heads for half in kinds.get(Attention, ())}) > 1:
        return False
    if shape.family == "nemotron_h":
        # Its own class counts tokens in the cache of an attention layer.
        return windows == {None} and not any(isinstance(b.attention, NoOp) == isinstance(b.ffn, NoOp) for b in blocks)
    if NoOp in kinds:
        return False
    if shape.family in ("qwen2", "qwen3"):
        return len(windows - {None}) <= 1
    return windows == {None} or (shape.family == "mistral" and len(windows) == 1)


def layer_name(name: str, new: Mapping[int, int]) -> str:
    """A tensor's name (`model.layers.7.…`) with its layer numbered anew; names outside the layers stay."""
    parts = name.split(".")
    if parts[:2] != ["model", "layers"]:
        return name
    return ".".join([*parts[:2], str(new[int(parts[2])]), *parts[3:]])


def write_weights(source: Language, folder: Path, *, dtype: str, rename: Callable[[str], str]) -> int:
    """Write every tensor of a checkpoint under its new name and in one number format; returns the bytes."""
    with source.weights() as stored:
        names = [name for name in stored.names() if not (source.shape.tied and name == "lm_head.weight")]
        size = torch.empty((), dtype=DTYPES[dtype]).element_size()
        planned = {rename(name): math.prod(stored.shape(name)) * size for name in names}

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name in names:
                yield rename(name), stored.whole(name).to(DTYPES[dtype])

        write_shards(folder, tensors(), planned, SHARD_BYTES)
    return sum(planned.values())


def carry(source: Path, folder: Path) -> None:
    """Copy the tokenizer and the generation settings."""
    for pattern in CARRIED:
        for file in source.glob(pattern):
            shutil.copy(file, folder / file.name)


def _folder(source: Path | str) -> Path:
    return SHIPPED.get(str(source)) or Path(source).expanduser()


def _plain_name(stored: str) -> str:
    """Published Nemotron-H checkpoints say `backbone.` where transformers says `model.`."""
    return "model." + stored.removeprefix("backbone.") if stored.startswith("backbone.") else stored
