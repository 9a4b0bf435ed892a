"""Arms: the settings that a run compares, each with the same number of proposals.

shots=0..6                                  seven arms
form=network,unified; shots=1,3             four, all combinations (the semicolon may be a comma)
llm=grammar | llm=learn, temperature=1.0    two: one or the other
"""

import json
import re
from dataclasses import dataclass, replace
from itertools import product
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from befit.errors import BadData
from befit.propose.config import ProposeConfig

COMPARED = (
    "llm", "model", "shots", "pick", "selection", "islands", "form", "space", "chain_of_thought", "notes", "retries",
    "temperature", "max_tokens", "prompt_tokens", "extra",
)  # fmt: skip
"""Settings that arms may differ in: what a model is told and asked. How networks are judged is the same for all."""

MOST = 64
"""Arms of a run; more are a mistake rather than a wish."""

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the settings that are compared."""

    name: str
    """Such as "shots=3"; empty where nothing is compared."""
    config: ProposeConfig
    """The run's configuration with these settings."""


def arms_of(config: ProposeConfig) -> list[Arm]:
    """The arms of a run, in the order in which they are written. Raises `BadData`."""
    if not config.arms.strip():
        return [Arm(name="", config=config)]
    found = [_arm(config, settings) for part in config.arms.split("|") for settings in _combinations(part)]
    names = [arm.name for arm in found]
    if len(set(names)) < len(names):
        raise BadData(f"arms: {next(one for one in names if names.count(one) > 1)!r} is there twice in {config.arms!r}")
    if len(found) > MOST:
        raise BadData(f"arms: {config.arms!r} makes {len(found)} arms, at most {MOST} can be compared")
    return found


def _combinations(text: str) -> list[dict[str, str]]:
    """Every combination of the values of "name=a,b; other=0..2"."""
    axes = dict[str, list[str]]()
    name = ""
    for piece in filter(None, (part.strip() for part in re.split(r"[;,]", text))):
        before, sign, value = piece.partition("=")
        if sign:
            name = before.strip().replace("-", "_")
            if name in axes:
                raise BadData(f"arms: {name} is set twice in {text.strip()!r}")
            axes[name] = []
        elif not name:
            raise BadData(f"arms: expected name=values, such as shots=0..6; got {piece!r}")
        axes[name] += _values((value if sign else piece).strip())
    if not axes:
        raise BadData(f"arms: expected name=values, such as shots=0..6; got {text!r}")
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _values(text: str) -> list[str]:
    span = _RANGE.fullmatch(text)
    return [text] if span is None else [str(number) for number in range(int(span[1]), int(span[2]) + 1)]


def _arm(config: ProposeConfig, settings: dict[str, str]) -> Arm:
    unknown = [name for name in settings if name not in COMPARED]
    if unknown:
        raise BadData(f"arms: {unknown[0]!r} cannot be compared; arms may set {', '.join(COMPARED)}")
    hints = get_type_hints(ProposeConfig)
    told = {name: _typed(name, value, hints[name]) for name, value in settings.items()}
    name = ", ".join(f"{name}={value}" for name, value in settings.items())
    return Arm(name=name, config=replace(config, **told))


def _typed(name: str, text: str, hint: Any) -> Any:
    """The value as the setting has it."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if not {bool, int, float} & set(kinds):
        return text
    try:
        value = json.loads(text.lower())
    except ValueError:
        value = None
    value = float(value) if float in kinds and isinstance(value, int) and not isinstance(value, bool) else value
    if type(value) not in kinds:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kinds[0]]
        raise BadData(f"arms: {name} must be {wanted}, got {text!r}")
    return value
