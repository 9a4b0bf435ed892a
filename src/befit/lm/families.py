"""Which families of language models befit knows: one line for each."""

from typing import Any

from befit.errors import UnsupportedModel
from befit.lm import llama, mistral, nemotron_h, qwen2, qwen3
from befit.lm.family import Family

FAMILIES = {module.FAMILY.model_type: module.FAMILY for module in (llama, mistral, nemotron_h, qwen2, qwen3)}
"""By transformers' name of the family, as in config.json."""


def family_of(config: Any) -> Family:
    """The family of a transformers configuration. Raises `UnsupportedModel` naming what was found and what is known."""
    if config.model_type not in FAMILIES:
        raise UnsupportedModel(
            f"the parent is of family {config.model_type!r} ({', '.join(config.architectures or ['no architecture named'])}); "
            f"supported families: {', '.join(FAMILIES)}"
        )
    return FAMILIES[config.model_type]
