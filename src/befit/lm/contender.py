"""Models to be compared: checkpoints of any kind, opened one at a time.

A child of `befit puzzle`, a cut of `befit elastic` and a model of the hub are all a folder with weights and a tokenizer. A
checkpoint that befit's own classes describe is built from befit's source; others are transformers' own classes, and code that
came with a checkpoint runs only where the user said so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from befit.errors import UnsupportedModel
from befit.lm.answers import Speaker
from befit.lm.child import MODELS, load
from befit.lm.parent import find

PARENT = "parent"
"""What the model is called that the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that is opened when it is its turn."""

    name: str
    """In tables."""
    source: str
    """Where it comes from, for the record."""
    open: Callable[[], Any]
    """Loads it: a transformers model and its tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where models run."""

    device: str = "cpu"
    """cpu or cuda."""
    dtype: torch.dtype = torch.float32
    """Number format of weights and activations."""
    trust: bool = False
    """Whether Python code in a checkpoint may run."""
    batch: int = 8
    """Rows that go through a model at once."""

    def speaker(self, contender: Contender) -> Speaker:
        """A contender, loaded, on its device."""
        model, tokenizer = contender.open()
        return Speaker(model=model.to(self.device).eval(), tokenizer=tokenizer, batch=self.batch)


def checkpoint(source: str, place: Place, *, name: str | None = None) -> Contender:
    """A checkpoint folder, a model of the hub, or one of befit's own (befit:dense, befit:hybrid). Of its files, its
    configuration alone is read yet: what cannot be opened is told before another model has been asked for hours.

    Raises `UnsupportedModel` if there is no such folder or model, or its configuration needs code that is not trusted.
    """
    folder = find(source)
    if not (folder / "config.json").is_file():
        raise UnsupportedModel(f"{source} has no config.json; give a checkpoint folder or a run directory")
    config = _config(folder, place)
    return Contender(
        name=name or Path(source).name,
        source=source,
        open=lambda: (_model(folder, config, place), tokenizer(folder, trust=place.trust)),
    )


def tokenizer(folder: Path, *, trust: bool = False) -> Any:
    """The tokenizer of a checkpoint. Raises `UnsupportedModel` if there is none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UnsupportedModel(f"{folder} has no tokenizer; copy its parent's tokenizer files there")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)


def _config(folder: Path, place: Place) -> Any:
    """transformers' configuration of a checkpoint."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=place.trust)
    except (ValueError, KeyError, OSError) as error:
        raise UnsupportedModel(
            f"{folder}/config.json is not one that transformers can read here ({error}); a checkpoint that brings code of "
            "its own needs --trust-remote-code"
        ) from error


def _model(folder: Path, config: Any, place: Place) -> Any:
    """Weights in the format that was asked for."""
    kind = MODELS.get(config.model_type)
    if kind is not None and kind.__name__ in (config.architectures or []):
        return load(folder, dtype=place.dtype)
    loader: Any = AutoModelForCausalLM
    try:
        model, told = loader.from_pretrained(
            folder, dtype=place.dtype, trust_remote_code=place.trust, output_loading_info=True
        )
    except (ValueError, OSError, SafetensorError, RuntimeError) as error:
        raise UnsupportedModel(f"the model in {folder} cannot be loaded: {error}") from error
    if told["missing_keys"]:
        raise UnsupportedModel(f"the weights in {folder} lack {sorted(told['missing_keys'])[0]}; fetch them again")
    return model
