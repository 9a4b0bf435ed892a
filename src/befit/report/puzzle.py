"""The page of `befit puzzle`: the child beside its parent and the baselines, and why it looks as it does."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from befit.report import abilities, architecture, canvas, figures, frame, heat_map, tables
from befit.report import quantities as q


def render(summary: Mapping[str, Any]) -> str:
    """The whole page as text. Missing parts of the summary are left out; nothing in it can make this raise."""
    title = headline(summary)
    return frame.document(title, frame.header(summary, title) + "".join(_sections(summary)) + frame.footer(summary))


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one sentence of plain text."""
    child, parent = q.mapping(summary.get("child")), q.mapping(summary.get("parent"))
    name = str(parent.get("name") or "the parent")
    if not child:
        return f"{name}, not fitted yet" if parent else str(summary.get("title") or "A run of befit, not finished yet")
    shares = [f"{q.percent(share)} of the {what}" for what, share in _shares(summary)]
    kl = q.dig(child, "kl")
    ending = f", KL {q.significant(kl, 2)} to it" if kl is not None else ""
    return f"A child with {frame.listed(shares)} of {name}{ending}" if shares else f"A child of {name}{ending}"


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


def _sections(summary: Mapping[str, Any]) -> list[str]:
    child = q.mapping(summary.get("child"))
    scores, accuracy = summary.get("scores"), summary.get("accuracy")
    work = tables.stages(summary.get("stages")) + tables.funnel(summary.get("funnel"))
    return [
        frame.section("", tables.budget(summary.get("budget")), ""),
        frame.section("Parent, child and baselines", tables.comparison(summary), _kl_in_words(child)),
        frame.section("Tasks", abilities.tasks(summary.get("evaluation")), abilities.CAPTION),
        frame.section("What to know", frame.notes(summary.get("notes")), ""),
        frame.section("The child, layer by layer", _architecture(summary), ""),
        frame.section("What each replacement costs in quality",
                      heat_map.heat_map(scores, summary.get("ranking"), child.get("arch")), _SCORES),
        frame.section("Quality against cost", figures.front(summary.get("front"), summary.get("budget")), ""),
        frame.section("Predicted against measured", figures.accuracy(accuracy),
                      escape(figures.accuracy_in_words(accuracy))),
        frame.section("Healing", figures.healing(summary.get("heal")), _healed(summary.get("heal"))),
        frame.section("What the run did", work, ""),
        frame.section("Load the child", _loading(summary) if child else "", ""),
    ]  # fmt: skip


_SCORES = (
    "The stronger the colour, the more harm. A dot marks what the child uses. "
    "kvN keeps N key/value heads (wN: over the last N tokens), ffnN keeps N neurons, noop keeps nothing."
)


def _kl_in_words(child: Mapping[str, Any]) -> str:
    total, before, now = (q.dig(child, key) for key in ("kl_sum", "kl_before_heal", "kl"))
    values = ((total, "by adding up the scores of its parts"), (before, "when assembled"),
              (now, "after healing" if before is not None else "when assembled"))  # fmt: skip
    words = [f"{q.significant(value)} {when}" for value, when in values if value is not None]
    return f"The child’s KL to the parent: {', '.join(words)}." if len(words) > 1 else ""


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
    if 'class="mamba"' in picture:
        marks = (("box mamba", "a Mamba head"), *marks)
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
