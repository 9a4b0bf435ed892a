"""The page of `befit elastic`: every budget of one nested model, what it keeps, and what that costs in quality."""

from collections.abc import Mapping
from html import escape
from typing import Any

from befit.report import abilities, budgets, frame, members, panel, rankings, tables, training
from befit.report import quantities as q

_MOST_TOLD = 3
"""Budgets that the headline names; of more, the largest and the smallest."""


def render(summary: Mapping[str, Any]) -> str:
    """The whole page as text. Missing parts of the summary are left out; nothing in it can make this raise."""
    title = headline(summary)
    main = frame.header(summary, title) + "".join(_sections(summary)) + frame.footer(summary)
    scripts = ["panel.js"] if 'class="memory"' in main else []
    return frame.document(title, main, styles=["elastic.css"], scripts=scripts)


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one sentence of plain text."""
    name = str(q.mapping(summary.get("parent")).get("name") or "the parent")
    cut = [
        (budgets.budget_name(entry), q.dig(entry, "kl"))
        for entry in q.entries(summary.get("members"))
        if entry.get("trained") is not False and (q.number(entry.get("budget")) or 1) < 1
    ]
    if not cut:
        begun = summary.get("parent") or not summary.get("title")
        return f"{name}, not yet nested" if begun else str(summary.get("title"))
    cut = cut if len(cut) <= _MOST_TOLD else [cut[0], cut[-1]]
    what = f"{frame.listed([share for share, _ in cut])} of its {q.cost_name(budgets.cost_of(summary))}"
    losses = [q.significant(kl, 2) for _, kl in cut if kl is not None]
    ending = f" at KL {frame.listed(losses)}" if len(losses) == len(cut) else ""
    return f"{name}, nested: {what}{ending}, cut from one file"


def _sections(summary: Mapping[str, Any]) -> list[str]:
    parent, given = members.Parent.of(summary), summary.get("members")
    trained, ranking = summary.get("training"), summary.get("ranking")
    quality = budgets.quality(summary) + budgets.numbers(summary)
    return [
        frame.section("", budgets.table(summary), _costs_in_words(summary)),
        frame.section("Tasks", abilities.tasks(summary.get("evaluation")), abilities.CAPTION),
        frame.section("What to know", frame.notes(summary.get("notes")), ""),
        frame.section(
            "Which size fits?",
            panel.panel(summary.get("panel"), parent, summary.get("parent")),
            _panel_in_words(summary),
        ),
        frame.section("Quality against budget", quality, ""),
        frame.section("What each budget keeps", _kept(given, parent), ""),
        frame.section("What matters in the parent", rankings.importance(ranking, parent, given), _IMPORTANCE),
        frame.section("Which layers go first", rankings.removals(ranking, parent, given), _REMOVALS),
        frame.section("On disk", budgets.storage(summary), ""),
        frame.section(
            "Training", training.curves(trained) + training.choices(trained, parent), training.curriculum(trained)
        ),
        frame.section("What the run did", tables.stages(summary.get("stages")), ""),
        frame.section("Cut and load", _loading(summary) if q.entries(given) else "", ""),
    ]


_IMPORTANCE = (
    "Importance by rank, most important first, a line for each layer; each axis in its own unit. "
    "A dotted line marks how many a budget keeps; heads and what is in them go group by group."
)
_REMOVALS = (
    "Numbers are layers of the parent, first to go on top; a line follows a layer from method to method. What the budgets "
    "drop lies above their line. Point at a layer for its scores."
)


def _kept(given: Any, parent: members.Parent) -> str:
    rows = []
    for entry in q.entries(given):
        kl = q.dig(entry, "kl")
        remark = ", ".join(
            ["never trained on"] * (entry.get("trained") is False)
            + ([f"KL {q.significant(kl, 2)}"] if kl is not None else [])
        )
        rows.append((budgets.budget_name(entry), remark, entry.get("member")))
    return members.sizes(rows, parent)


def _costs_in_words(summary: Mapping[str, Any]) -> str:
    work = frame.workload(summary.get("workload"))
    return f"Memory is weights and caches for {escape(work)}." if work and q.entries(summary.get("members")) else ""


def _panel_in_words(summary: Mapping[str, Any]) -> str:
    work = frame.workload(summary.get("workload"))
    words = "Memory is weights and caches (keys and values, SSM states) for the workload above. " if work else ""
    return words + "Costs are counted, not measured. Long ticks are sizes whose quality was measured."


def _loading(summary: Mapping[str, Any]) -> str:
    entries = [entry for entry in q.entries(summary.get("members")) if (q.number(entry.get("budget")) or 1) < 1]
    share = q.number(entries[-1].get("budget")) if entries else 1.0
    budget = f"{100 * (share or 1):.3g}%"
    return (
        f'<pre><code>befit cut RUN --budget "{budget}" --out small\n'
        'model = AutoModelForCausalLM.from_pretrained("small")  <i># an ordinary checkpoint, without befit</i></code></pre>'
    )
