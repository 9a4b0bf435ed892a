"""The verb that tells what this machine enforces."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import tyro

from befit.cli.shown import say, show_lines, show_rows
from befit.errors import BadBudget

if TYPE_CHECKING:
    from befit.propose.sandbox.trial import Finding


def sandbox_verb(arguments: Sequence[str]) -> None:
    """Say what proposed code is kept from on this machine, by trying it."""

    def sandbox(
        sandbox: str = "native",
        require: str = "",
        without: str = "",
        gpu: bool = False,
        json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
    ) -> None:
        """Let hostile programs try every protection, and say what held.

        Args:
            sandbox: native (no rights and no program needed), bwrap, docker:IMAGE, or none.
            require: Protections that must hold, by comma, such as "reads,connect"; or all. If one does not, the exit code is 2.
            without: Mechanisms to leave out, to see what each is worth: limits, user, pid-namespace, network-namespace,
                landlock, seccomp.
            gpu: Try the sandbox in which networks are trained on a GPU: what CUDA needs is let in there. Needs a CUDA device.
            json_: Print JSON.
        """
        from befit.propose.sandbox.trial import GPU_NAMES, NAMES, left_out, mechanisms, required, try_out

        if sandbox == "none":
            say(
                "--sandbox none: proposed code runs with your rights, on your files and your network; only its time is held."
            )
        every = (*NAMES, *GPU_NAMES) if gpu else NAMES
        needed = every if require == "all" else _words(require)
        if not gpu and set(needed) & set(GPU_NAMES):
            raise BadBudget(f"--require {require}: {', '.join(GPU_NAMES)} can be required with --gpu only")
        required([], needed)  # a misspelt name is told at once
        plan, findings = try_out(backend=sandbox, without=_words(without), gpu=gpu)
        active, absent = mechanisms(plan), left_out(plan, _words(without))
        if json_:
            rows = [asdict(found) for found in findings]
            show_lines(
                [
                    json.dumps(
                        {"sandbox": sandbox, "mechanisms": active, "left_out": absent, "protections": rows}, indent=1
                    )
                ]
            )
        else:
            show_rows([_row(found) for found in findings], f"sandbox {sandbox}: {', '.join(active) or 'no mechanism'}")
            missing = [found.name for found in findings if not found.enforced]
            show_lines([f"Not enforced here: {', '.join(missing)}." if missing else "All were tried, and all held."])
            if absent:
                show_lines([f"Left out, for CUDA does not work with it: {', '.join(absent)}."])
        required(findings, needed)

    tyro.cli(sandbox, args=arguments, prog="befit sandbox")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _row(found: "Finding") -> dict[str, str]:
    held = "yes" if found.enforced else "NO"
    seen = textwrap.shorten(found.evidence, 120)
    return {"name": found.name, "protection": found.protection, "enforced": held, "how": found.how, "evidence": seen}
