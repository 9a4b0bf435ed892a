"""What the pages of results are written from: the recorded files, and what all their sections say alike."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def recorded(path: Path) -> Any:
    """What a file of results holds; None if it is not there."""
    return json.loads(path.read_text()) if path.exists() else None


def made_at(*results: Mapping[str, Any]) -> str:
    """The commits that results were made at, as a paragraph; empty if none was recorded."""
    found = sorted({result["commit"][:7] for result in results if result.get("commit")})
    return f"\nMade at commit{'s' * (len(found) > 1)} {', '.join(found)}.\n" if found else ""


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: names to the left, numbers to the right."""
    lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *rows]
    head, rule, *body = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([head, rule.replace(" ", ""), *body]) + "\n"
