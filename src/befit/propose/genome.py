"""Networks as JSON: what the choices of a space look like in a prompt, and the arch that an answer holds.

Small models write one JSON object far more reliably than a hundred lines of code, and whatever they write is either an arch
of the space or refused with the space's own words. `write` makes a file of the contract from it, so that gate, fingerprint and
sandbox see a network like any other.
"""

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from befit.arch.space import Arch, Choice, Space, Value
from befit.errors import BadProposal, IllegalArch

STARTS = 200
"""Opening braces at which an object is looked for."""


def describe(space: Space) -> str:
    """The choices of a space, one a line, with the conditions under which they are open."""
    lines = [_line(name, choice) for name, choice in space.choices.items()]
    if space.legal is not None:
        lines.append("Some combinations are refused by a rule; the message then says which.")
    return "\n".join(lines)


def _line(name: str, choice: Choice) -> str:
    line = f"{json.dumps(name)}: {_either(choice.options)}"
    for other, allowed in choice.when.items():
        line += f"{'; only if' if ';' not in line else ' and'} {json.dumps(other)} is {_either(allowed)}"
    return line


def _either(options: Sequence[Value]) -> str:
    shown = [json.dumps(option) for option in options]
    return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"


def shown(arch: Arch) -> str:
    """An arch as a prompt shows it and an answer should hold it."""
    return json.dumps(arch.to_json(), indent=1)


def read(space: Space, texts: Sequence[str]) -> Arch:
    """The arch in the last of these texts that holds a JSON object.

    Raises:
        BadProposal: No object (reason "no-genome"), or one that is no arch of the space ("bad-genome").
    """
    last: Any = None
    for text in texts:
        for found in _objects(text):
            last = found
    if last is None:
        raise BadProposal("no JSON object found; answer with one, its keys those of the choices", reason="no-genome")
    if isinstance(last, ValueError):
        raise BadProposal(f"not strict JSON: {last}", reason="bad-genome")
    try:
        return space.arch(last)
    except IllegalArch as error:
        raise BadProposal(str(error), reason="bad-genome") from error


def _objects(text: str) -> Iterator[dict[str, Any] | ValueError]:
    """The JSON objects in a text, outermost ones only; an object that names a key twice, or NaN, is an error instead."""
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
    place, tries = text.find("{"), 0
    while place >= 0 and tries < STARTS:
        tries += 1
        end = place + 1
        try:
            found, end = decoder.raw_decode(text, place)
            yield found
        except json.JSONDecodeError:
            pass  # a brace of prose or code
        except ValueError as error:
            yield error
        except RecursionError:
            return
        place = text.find("{", end)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key is there twice in {[name for name, _ in pairs]}")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number here")


SOURCE = '''\
"""A network of befit's space {name}, written from its arch."""

from torch import nn

from befit.propose.genome import network

ARCH = {arch}


class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.body = network({name!r}, {options!r}, ARCH, in_shape, out_shape)

    def forward(self, x):
        return self.body(x)
'''


def write(name: str, options: Mapping[str, Any], arch: Arch) -> str:
    """The arch of the space `name`, made with these options, as a file of the contract."""
    return SOURCE.format(name=name, options=dict(options), arch=arch.to_json())


def arch_in(source: str) -> dict[str, Value]:
    """The arch that `write` wrote into a file, as JSON. Raises `BadProposal` if there is none."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "ARCH":
            return ast.literal_eval(statement.value)
    raise BadProposal("the file was not written from an arch: it has no ARCH", reason="no-genome")


def network(
    name: str,
    options: Mapping[str, Any],
    arch: Mapping[str, Value],
    in_shape: tuple[int, int, int, int],
    out_shape: tuple[int, ...],
) -> Any:
    """The torch module of an arch for images (N, channels, height, width) and (classes,)."""
    from befit.arch.task import ImageTask
    from befit.vision.checkpoint import blueprint_of

    _, channels, height, width = in_shape
    blueprint = blueprint_of(name, options)
    task = ImageTask(channels=channels, height=height, width=width, classes=out_shape[0])
    return blueprint.build(blueprint.space.arch(arch), task)
