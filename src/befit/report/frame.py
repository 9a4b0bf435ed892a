"""What every report page shares: one HTML file with everything in it, its header, its sections and its footer.

The page carries a content security policy that allows its own scripts by hash and no address at all, so that it can
neither load anything nor run what a name smuggled in. Plotly (MIT licence) is inlined once, and only if a figure needs it.
"""

import hashlib
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from befit.report import quantities as q


def document(title: str, main: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> str:
    """The whole page as text: `main` under the page's own style, then `styles` and `scripts` (names of files beside this).

    Plotly and the script that draws with it come along if `main` has a figure for them.
    """
    programs = [_plotly(), _asset("page.js")] if 'class="plot"' in main else []
    programs += [_asset(name) for name in scripts]
    hashes = " ".join(_hash(program) for program in programs) or "'none'"
    policy = f"default-src 'none'; base-uri 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"
    style = "".join(_asset(name) for name in ("page.css", *styles))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n{main}\n</main>\n"
        + "".join(f"<script>{program}</script>\n" for program in programs)
        + "</body>\n</html>\n"
    )


def write(page: str, path: Path) -> None:
    """Write the page in one step: a reader sees the old file or the new one, never half of it. Raises `OSError`."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(page.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def header(summary: Mapping[str, Any], headline: str) -> str:
    """The run's title, the result in one sentence, and where it was found: device and workload."""
    title = f'<p class="eyebrow">{escape(str(summary["title"]))}</p>' if summary.get("title") else ""
    facts = [fact for fact in (_device(summary.get("device")), workload(summary.get("workload"))) if fact]
    where = "".join(f"<p>{escape(fact)}</p>" for fact in facts)
    return f"<header>{title}<h1>{escape(headline)}</h1><div class='where'>{where}</div></header>"


def section(title: str, body: str, caption: str) -> str:
    """A part of the page under a heading; nothing if it has no body. `body` and `caption` are HTML."""
    if not body:
        return ""
    head = f"<h2>{escape(title)}</h2>" if title else ""
    below = f'<p class="caption">{caption}</p>' if caption else ""
    return f"<section>{head}{body}{below}</section>\n"


def notes(given: Any) -> str:
    """What the reader must know, as a list."""
    lines = [f"<li>{escape(str(note))}</li>" for note in q.sequence(given) if note]
    return f'<ul class="notes">{"".join(lines)}</ul>' if lines else ""


def footer(summary: Mapping[str, Any]) -> str:
    """How the run was started and with which versions."""
    command = f"<pre><code>{escape(str(summary['command']))}</code></pre>" if summary.get("command") else ""
    facts = [f"befit {summary['befit']}" if summary.get("befit") else "befit"]
    facts += [f"seed {seed}" for seed in [q.number(summary.get("seed"))] if seed is not None]
    facts += [
        f"{name} {version}" for name, version in q.mapping(q.mapping(summary.get("device")).get("versions")).items()
    ]
    facts += [_moment(str(summary["made"]))] if summary.get("made") else []
    return f"<footer>{command}<p>{escape(' · '.join(facts))} · all numbers are in summary.json</p></footer>"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; at least one word."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def workload(facts: Any) -> str:
    """The workload in words: how many requests of what length, stored how."""
    facts = q.mapping(facts)
    counts = [(q.number(facts.get(key)), noun) for key, noun in
              (("batch", "requests at a time"), ("prompt", "prompt tokens"), ("generate", "generated tokens"))]  # fmt: skip
    words = [f"{q.whole(value)} {noun}" for value, noun in counts if value is not None]
    words += [f"{noun} in {facts[key]}" for key, noun in (("weights", "weights"), ("cache", "cache")) if facts.get(key)]
    return ", ".join(words)


def _device(facts: Any) -> str:
    facts = q.mapping(facts)
    return ", ".join(str(facts[key]) for key in ("name", "engine", "dtype") if facts.get(key))


def _moment(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return text


@cache
def _hash(script: str) -> str:
    """The name by which a content security policy allows one inline script."""
    return f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@cache
def _asset(name: str) -> str:
    return files("befit.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # The HTML parser turns CR LF into LF before a script is hashed.
    return get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
