"""Inside the sandbox: do one task on the candidate's source and write the answer as JSON. Nothing here is trusted from outside.

The folder that is the current directory holds `request.json` (task, source, arguments) and the arrays that were given. The
answer is `answer.json`; arrays go beside it. A fresh process (`BOOT`) does the same as a forked one.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from befit.errors import BefitError, TrialFailed

REQUEST, ANSWER, READY = "request.json", "answer.json", "ready"
BOOT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("befit", sys.argv[1])
sys.modules["befit"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["befit"])
from befit.propose.sandbox.candidate import main
main()
"""
"""For `python -c`: finds befit without listing the folder that it lies in, which a candidate may not do."""

SOURCE_NAME = "<candidate>"
"""File name of the candidate's source in tracebacks."""

FULL = ("allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""What torch, CUDA, and cuBLAS and cuDNN say when memory is full."""

Task = Callable[[str, Mapping[str, Any], Path], Mapping[str, Any]]
"""A module-level function of an installed package: (source, arguments, folder) -> an answer that JSON can hold."""


def name_of(task: Callable[..., object]) -> str:
    """module:function, by which the other side finds it."""
    module, name = task.__module__, task.__qualname__
    if "." in name or "<" in name or module == "__main__":
        raise ValueError(
            f"{module}:{name} cannot be found by name in another process: a function of a module is needed"
        )
    return f"{module}:{name}"


def named(name: str) -> Callable[..., Any]:
    """The function `module:function`."""
    module, _, function = name.partition(":")
    found = vars(importlib.import_module(module))[function]
    assert callable(found)
    return found


class Caught:
    """Whatever is raised inside becomes a failure with a reason and one line; the one place where everything is caught."""

    def __init__(self) -> None:
        self.failure: dict[str, object] | None = None

    def __enter__(self) -> "Caught":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self.failure = {"ok": False, "reason": reason_of(error), "message": one_line(error)}
        return True


def reason_of(error: BaseException) -> str:
    """One of `errors.REASONS`."""
    if isinstance(error, TrialFailed):
        return error.reason
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out-of-memory"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in FULL):
        return "out-of-memory"
    return "crash" if isinstance(error, SystemExit | KeyboardInterrupt) else "invalid"


def one_line(error: BaseException) -> str:
    """Type, message and the candidate's own line, short enough for a prompt."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == SOURCE_NAME]
    if isinstance(error, SyntaxError) and error.filename == SOURCE_NAME:
        lines = [error.lineno]
    where = f"line {lines[-1]}: " if lines and lines[-1] else ""
    told = (
        str(error).partition("\n")[0] if "CUDA error" in str(error) else str(error)
    )  # the rest is advice on debugging
    said = " ".join(told.split())
    kind = "" if isinstance(error, BefitError) else f"{type(error).__name__}: "  # befit's own say what they are
    return f"{where}{kind}{said}"[:500]


def ready(folder: Path) -> None:
    """Said by a task of befit when it has started, and before it runs the source: from here on its time counts."""
    (folder / READY).touch()


def answer(folder: Path) -> None:
    """Do the task of the folder's request and write its answer."""
    request = json.loads((folder / REQUEST).read_text())
    text = ""
    with Caught() as caught:
        value = named(request["task"])(request["source"], request["arguments"], folder)
        text = json.dumps({"ok": True, "value": dict(value)}, allow_nan=False)
    (folder / ANSWER).write_text(json.dumps(caught.failure) if caught.failure else text)


def main() -> None:
    """Answer in the current directory, and end without running what the candidate may have left for the end."""
    answer(Path.cwd())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
