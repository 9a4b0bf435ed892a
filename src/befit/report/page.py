"""The report of any run: which page draws which kind of summary, and the file on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from befit.report import elastic, frame, puzzle


def write_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page in one step: a reader sees the old file or the new one, never half of it. Raises `OSError`."""
    frame.write(render(summary), path)


def render(summary: Mapping[str, Any]) -> str:
    """The whole page as text. Missing parts of the summary are left out; nothing in it can make this raise.

    A summary names its `kind`; one without is of `befit puzzle`.
    """
    return elastic.render(summary) if summary.get("kind") == "elastic" else puzzle.render(summary)
