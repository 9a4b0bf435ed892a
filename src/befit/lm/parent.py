"""Load the trained model that is to be refitted: from a folder, from the Hugging Face hub, or the one inside the package."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from befit.arch.decoder import DecoderShape
from befit.errors import UnsupportedModel
from befit.lm.child import adopt, build, config_for, from_parent
from befit.lm.families import family_of
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM
from befit.lm.shards import LAYERS, Shards, StreamedLayers

EMBEDDED = Path(__file__).parent.parent / "assets" / "parent"
"""The small Llama that ships with befit, with its tokenizer."""
HYBRID = EMBEDDED.parent / "hybrid"
"""The small Nemotron-H that ships with befit, with the same tokenizer."""
SHIPPED = {"befit:dense": EMBEDDED, "befit:hybrid": HYBRID}
"""What users call them."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A trained model, taken apart."""

    name: str
    """As the user gave it."""
    model: BefitForCausalLM
    """Its layers in a row; logits equal those of the family's own class."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    shape: DecoderShape
    """Its sizes."""
    family: Family
    """Where its parts are."""
    digest: str
    """sha256 of its configuration and weights."""


def find(source: str | None, *, weights: bool = True) -> Path:
    """The local folder of a parent; a hub name is downloaded, without `weights` its configuration alone.

    Raises `UnsupportedModel` if there is none.
    """
    if source is None:
        return EMBEDDED
    if source in SHIPPED:
        return SHIPPED[source]
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt"] if weights else ["config.json"]
        return Path(snapshot_download(source, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UnsupportedModel(
            f"parent {source!r} is no folder here and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}); give a checkpoint folder, check the name, or log in with `hf auth login`"
        ) from error


def read_config(folder: Path) -> Any:
    """The parent's transformers configuration. Raises `UnsupportedModel` if it is missing or of another family."""
    if not (folder / "config.json").is_file():
        raise UnsupportedModel(f"{folder} has no config.json; give a folder that save_pretrained wrote")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError) as error:
        raise UnsupportedModel(f"{folder}/config.json is not one that transformers knows: {error}") from error
    family_of(config).describe(config)
    return config


def load_parent(source: str | None, *, device: str, dtype: torch.dtype, streamed: bool = False) -> Parent:
    """Load a parent's weights and tokenizer, tensor by tensor; if `streamed`, its layers stay in their files until used.

    Raises `UnsupportedModel` for another family, a quantised checkpoint, missing weights or a missing tokenizer.
    """
    folder = find(source)
    config = read_config(folder)
    family = family_of(config)
    tokenizer = _tokenizer(folder)
    shape = family.describe(config)
    model = _direct(folder, config, shape, device, dtype, streamed)
    if model is None:
        if streamed:
            raise UnsupportedModel(
                f"the tensors in {folder} do not have the names that their layers go by, so they cannot be read layer by "
                "layer; save the parent anew with transformers' save_pretrained, or keep it in memory"
            )
        model = from_parent(_weights(folder, dtype).to(device))
    return Parent(
        name=source or "befit's embedded parent",
        model=model,
        tokenizer=tokenizer,
        shape=shape,
        family=family,
        digest=_digest(folder),
    )


def _direct(
    folder: Path, config: Any, shape: DecoderShape, device: str, dtype: torch.dtype, streamed: bool
) -> BefitForCausalLM | None:
    """The parent from its files, each tensor straight to its place; None if they do not hold exactly what it needs.

    That is left to transformers, which knows older names, and tells what is missing.
    """
    config.dtype = dtype
    model = build(config_for(config, shape.arch), dtype=dtype)
    shards = Shards(folder)
    needed = {name for name, _ in model.named_parameters()}  # tied weights have one name
    if needed != shards.names - set(model._tied_weights_keys if shape.tied else ()):
        return None
    kept = {name for name in needed if not (streamed and name.startswith(LAYERS))}
    tensors = shards.read(sorted(kept), device, dtype)
    if streamed:
        layers = StreamedLayers(model.model.layers, shards, device, dtype)
        model.model.layers = nn.ModuleList()
        adopt(model, tensors)
        model.model.layers = layers
    else:
        adopt(model, tensors)
    told = (folder / "generation_config.json").is_file()
    model.generation_config = (
        GenerationConfig.from_pretrained(folder) if told else GenerationConfig.from_model_config(config)
    )
    return model


def _weights(folder: Path, dtype: torch.dtype) -> Any:
    """The family's own model; transformers would fill tensors that a checkpoint lacks with random numbers."""
    if not any(folder.glob("*.safetensors")):
        raise UnsupportedModel(f"{folder} has no .safetensors weights; save them with save_pretrained")
    loader: Any = AutoModelForCausalLM
    try:
        model, found = loader.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", output_loading_info=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UnsupportedModel(f"the weights in {folder} cannot be read ({error}); fetch or save them again") from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise UnsupportedModel(
            f"the weights in {folder} lack {len(missing)} tensors, {missing[0]} among them; fetch or save them again"
        )
    return model


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UnsupportedModel(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy the parent's tokenizer there"
        )
    return AutoTokenizer.from_pretrained(folder)


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
