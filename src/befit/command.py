"""A run's configuration as the line that asks for it again: what reports, cards and run directories show."""

import shlex
from collections.abc import Collection, Mapping
from typing import Any


def command_line(
    verb: str,
    told: Mapping[str, Any],
    usual: Mapping[str, Any],
    *,
    always: Collection[str] = (),
    never: Collection[str] = (),
) -> str:
    """`befit VERB` with what is not as it is by default, and the run directory last.

    Args:
        told: Settings as `to_json` gives them; groups are mappings, and `out` is among them.
        usual: The same of a configuration to which nothing was said.
        always: Flags that stand there even where they are as by default.
        never: Flags that say where a run ran, or hold what others must not see.
    """
    flags, defaults = _flags(told), _flags(usual)
    words = [f"befit {verb}"]
    for flag, value in flags.items():
        if flag in ("out", *never) or (value == defaults[flag] and flag not in always):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list | tuple) else (value,)
            words.append(f"--{flag} {shlex.join(map(str, values))}")
    return " ".join([*words, f"--out {shlex.quote(str(flags['out']))}"])


def _flags(told: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by the names that they have on the command line."""
    found = dict[str, Any]()
    for name, value in told.items():
        flag = before + name.replace("_", "-")
        found |= _flags(value, f"{flag}.") if isinstance(value, Mapping) else {flag: value}
    return found
