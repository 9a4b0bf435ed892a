"""The report page: one HTML file with everything in it, put together from the sections of a run's summary.

The page carries a content security policy that allows its own two scripts by hash and no address at all, so that it can
neither load anything nor run what a name smuggled in. Plotly (MIT licence) is inlined once, and only if a figure needs it.
"""

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from befit.report import architecture, canvas, figures, heat_map, tables
from befit.report import quantities as q


def write_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page in one step: a reader sees the old file or the new one, never half of it. Raises `OSError`."""
    page = render(summary).encode("utf-8", errors="replace")
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def render(summary: Mapping[str, Any]) -> str:
    """The whole page as text. Missing parts of the summary are left out; nothing in it can make this raise."""
    main = _header(summary) + "".join(_sections(summary)) + _footer(summary)
    scripts = [_plotly(), _asset("page.js")] if 'class="plot"' in main else []
    hashes = " ".join(_hash(script) for script in scripts) or "'none'"
    policy = f"default-src 'none'; base-uri 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(headline(summary))}</title>\n'
        f"<style>{_asset('page.css')}</style>\n</head>\n<body>\n<main>\n{main}\n</main>\n"
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one sentence of plain text."""
    child, parent = q.mapping(summary.get("child")), q.mapping(summary.get("parent"))
    name = str(parent.get("name") or "the parent")
    if not child:
        return f"{name}, not fitted yet" if parent else str(summary.get("title") or "A run of befit, not finished yet")
    shares = [f"{q.percent(share)} of the {what}" for what, share in _shares(summary)]
    kl = q.dig(child, "kl")
    ending = f", KL {q.significant(kl, 2)} to it" if kl is not None else ""
    return f"A child with {_listed(shares)} of {name}{ending}" if shares else f"A child of {name}{ending}"


def _shares(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(cost in words, child's share of the parent's) for every bounded cost, or for parameters and memory."""
    parent, child = q.mapping(summary.get("parent")), q.mapping(summary.get("child"))
    budget = q.mapping(summary.get("budget"))
    values = {str(entry.get("cost")): q.number(entry.get("value")) for entry in q.entries(budget.get("child"))}
    shares = []
    for bound in q.entries(budget.get("bounds")):
        name = str(bound.get("cost"))
        share = q.ratio(values.get(name), _parents(bound, parent))
        if share is not None:
            shares.append((q.cost_name(name), share))
    if not shares:
        pairs = (("parameters", q.dig(child, "params"), q.dig(parent, "params")),
                 ("memory", tables.memory(child), tables.memory(parent)))  # fmt: skip
        shares = [(name, share) for name, own, whole in pairs if (share := q.ratio(own, whole)) is not None]
    return list(dict(shares).items())


def _parents(bound: Mapping[str, Any], parent: Mapping[str, Any]) -> float | None:
    """The parent's value of a bounded cost: the limit undone if it was relative, else what the parent states."""
    name, relative = str(bound.get("cost")), q.factor(bound.get("given"))
    if relative:
        return q.ratio(q.number(bound.get("value")), relative)
    if name == "memory_bytes":
        return tables.memory(parent)
    return q.dig(parent, name) if q.dig(parent, name) is not None else q.dig(parent, name, "measured")


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _header(summary: Mapping[str, Any]) -> str:
    title = f'<p class="eyebrow">{escape(str(summary["title"]))}</p>' if summary.get("title") else ""
    facts = [fact for fact in (_device(summary.get("device")), _workload(summary.get("workload"))) if fact]
    where = "".join(f"<p>{escape(fact)}</p>" for fact in facts)
    return f"<header>{title}<h1>{escape(headline(summary))}</h1><div class='where'>{where}</div></header>"


def _device(facts: Any) -> str:
    facts = q.mapping(facts)
    return ", ".join(str(facts[key]) for key in ("name", "engine", "dtype") if facts.get(key))


def _workload(facts: Any) -> str:
    facts = q.mapping(facts)
    counts = [(q.number(facts.get(key)), noun) for key, noun in
              (("batch", "requests at a time"), ("prompt", "prompt tokens"), ("generate", "generated tokens"))]  # fmt: skip
    words = [f"{q.whole(value)} {noun}" for value, noun in counts if value is not None]
    words += [f"{noun} in {facts[key]}" for key, noun in (("weights", "weights"), ("cache", "cache")) if facts.get(key)]
    return ", ".join(words)


def _sections(summary: Mapping[str, Any]) -> list[str]:
    child = q.mapping(summary.get("child"))
    scores, accuracy = summary.get("scores"), summary.get("accuracy")
    work = tables.stages(summary.get("stages")) + tables.funnel(summary.get("funnel"))
    return [
        _section("", tables.budget(summary.get("budget")), ""),
        _section("Parent, child and baselines", tables.comparison(summary), _kl_in_words(child)),
        _section("What to know", _notes(summary.get("notes")), ""),
        _section("The child, layer by layer", _architecture(summary), ""),
        _section("What each replacement costs in quality", heat_map.heat_map(scores, summary.get("ranking"), child.get("arch")),
                 _SCORES),
        _section("Quality against cost", figures.front(summary.get("front"), summary.get("budget")), ""),
        _section("Predicted against measured", figures.accuracy(accuracy),
                 escape(figures.accuracy_in_words(accuracy))),
        _section("Healing", figures.healing(summary.get("heal")), _healed(summary.get("heal"))),
        _section("What the run did", work, ""),
        _section("Load the child", _loading(summary) if child else "", ""),
    ]  # fmt: skip


_SCORES = (
    "The stronger the colour, the more harm. A dot marks what the child uses. "
    "kvN keeps N key/value heads (wN: over the last N tokens), ffnN keeps N neurons, noop keeps nothing."
)


def _section(title: str, body: str, caption: str) -> str:
    if not body:
        return ""
    head = f"<h2>{escape(title)}</h2>" if title else ""
    below = f'<p class="caption">{caption}</p>' if caption else ""
    return f"<section>{head}{body}{below}</section>\n"


def _kl_in_words(child: Mapping[str, Any]) -> str:
    total, before, now = (q.dig(child, key) for key in ("kl_sum", "kl_before_heal", "kl"))
    values = ((total, "by adding up the scores of its parts"), (before, "when assembled"),
              (now, "after healing" if before is not None else "when assembled"))  # fmt: skip
    words = [f"{q.significant(value)} {when}" for value, when in values if value is not None]
    return f"The child’s KL to the parent: {', '.join(words)}." if len(words) > 1 else ""


def _notes(notes: Any) -> str:
    lines = [f"<li>{escape(str(note))}</li>" for note in q.sequence(notes) if note]
    return f'<ul class="notes">{"".join(lines)}</ul>' if lines else ""


def _architecture(summary: Mapping[str, Any]) -> str:
    parent, child = (q.mapping(summary.get(key)) for key in ("parent", "child"))
    ghost = parent.get("arch")
    picture = architecture.picture(child.get("arch"), ghost)
    if not picture:
        return ""
    others = [("parent", parent), ("child", child), *q.mapping(summary.get("baselines")).items()]
    small = [
        f"<figure>{thumb}<figcaption>{escape(str(name))}{_kl(q.mapping(model))}</figcaption></figure>"
        for name, model in others
        if (thumb := architecture.thumbnail(q.mapping(model).get("arch"), ghost))
    ]
    marks = (("box attn", "a KV head"), ("box ffn", "FFN"), ("box ghost", "only in the parent"), ("box noop", "dropped"),
             ("box half", "sliding window"))  # fmt: skip
    key = canvas.key(*marks)
    return (
        f"<p>{escape(architecture.describe(child.get('arch'), ghost))}</p>{picture}{key}"
        f'<div class="thumbs">{"".join(small)}</div>'
    )


def _kl(model: Mapping[str, Any]) -> str:
    kl = q.dig(model, "kl")
    return f"<small>KL {q.significant(kl, 2)}</small>" if kl is not None else ""


def _healed(facts: Any) -> str:
    tokens = q.dig(facts, "tokens")
    return f"Distilled from the parent on {q.amount(tokens)} tokens." if tokens else ""


def _loading(summary: Mapping[str, Any]) -> str:
    place = escape(json.dumps(str(summary.get("checkpoint") or "child"), ensure_ascii=False))
    return (
        "<pre><code>"
        f"model = befit.load({place})\n"
        f"model = AutoModelForCausalLM.from_pretrained({place}, trust_remote_code=True)  <i># without befit</i>"
        "</code></pre>"
    )


def _footer(summary: Mapping[str, Any]) -> str:
    command = f"<pre><code>{escape(str(summary['command']))}</code></pre>" if summary.get("command") else ""
    facts = [f"befit {summary['befit']}" if summary.get("befit") else "befit"]
    facts += [f"seed {seed}" for seed in [q.number(summary.get("seed"))] if seed is not None]
    facts += [
        f"{name} {version}" for name, version in q.mapping(q.mapping(summary.get("device")).get("versions")).items()
    ]
    facts += [_moment(str(summary["made"]))] if summary.get("made") else []
    return f"<footer>{command}<p>{escape(' · '.join(facts))} · all numbers are in summary.json</p></footer>"


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
