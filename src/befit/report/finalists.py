"""The finalists of a search: what each costs, how that is known, and how accurate it is.

Counted, predicted and measured costs stand in columns of their own. A finalist that breaks the budget is marked wherever it
is drawn.
"""

from collections.abc import Callable, Mapping
from typing import Any

from befit.report import canvas, frame, tables
from befit.report import quantities as q
from befit.report.tables import Column, Row, path

WAYS = ("counted", "predicted", "measured")
"""How a cost may be known, from the least certain about the device to the most."""

_MOST_NAMED = 3
"""Choices that differ from the best's and are named; of more, only their number is told."""


def chosen(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The finalist that became the result; empty if there is none."""
    return next((one for one in q.entries(summary.get("finalists")) if one.get("chosen") is True), {})


def costs(one: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Every cost of a finalist that is known, and how; measured goes before predicted."""
    found = dict[str, tuple[float, str]]()
    for way in WAYS:
        for name, value in q.mapping(one.get(way)).items():
            if (known := q.number(value)) is not None:
                found[str(name)] = known, way
    return found


def budget(summary: Mapping[str, Any]) -> str:
    """Every bound beside the chosen network's own value, and whether all are kept."""
    best = chosen(summary)
    if not best or not q.entries(summary.get("bounds")):
        return ""
    child = [{"cost": name, "value": value, "kind": way} for name, (value, way) in costs(best).items()]
    facts = {"text": summary.get("budget"), "bounds": summary["bounds"], "child": child, "met": best.get("within")}
    return tables.budget(facts)


def table(summary: Mapping[str, Any]) -> str:
    """One row for each finalist, the chosen one marked."""
    best, rows = chosen(summary), []
    for place, one in enumerate(q.entries(summary.get("finalists")), start=1):
        mine = one is best
        trial = {"trial": value_in_trial(summary, one)}
        rows.append(
            Row(
                name="best" if mine else f"no. {place}",
                remark=_remark(one, best),
                values={**one, **trial},
                look="child" if mine else "baseline" if one.get("within") is not False else "baseline beyond",
            )
        )
    return tables.grid(rows, _columns(summary), best, "Finalists")


def value_in_trial(summary: Mapping[str, Any], one: Mapping[str, Any]) -> float | None:
    """What the search saw of this arch: the value of its trial."""
    arch = one.get("arch")
    values = (
        q.number(row.get("value")) for row in q.entries(summary.get("trials")) if arch and row.get("arch") == arch
    )
    return next((value for value in values if value is not None), None)


def _remark(one: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    words = ["chosen"] if one is best else []
    words += ["over budget"] if one.get("within") is False else []
    if one is not best and best:
        own, other = q.mapping(one.get("arch")), q.mapping(best.get("arch"))
        differs = [name for name in canvas.union((own, other)) if own.get(name) != other.get(name)]
        if 0 < len(differs) <= _MOST_NAMED:
            words.append(f"differs in {frame.listed(differs)}")
        elif differs:
            words.append(f"differs in {len(differs)} choices")
    return "; ".join(words)


def _columns(summary: Mapping[str, Any]) -> list[Column]:
    finalists = q.entries(summary.get("finalists"))
    shared = bool(q.mapping(q.mapping(summary.get("extra")).get("shared")))
    columns = [
        Column(
            group="Accuracy",
            name="by shared weights" if shared else "as a trial",
            read=path("trial"),
            write=_fine,
        ),
        Column(group="Accuracy", name="validation", read=path("validation"), write=_fine),
        Column(group="Accuracy", name="test", read=path("test"), write=_fine),
    ]
    for name in canvas.union(q.mapping(one.get(way)) for one in finalists for way in WAYS):
        title = canvas.safe(q.cost_name(name))
        for way in reversed(WAYS):
            column = Column(
                group=title[:1].upper() + title[1:], name=way, read=path(way, name), write=_writer(name), share=False
            )
            columns.append(column)
    return [
        *columns,
        Column(group="Training", name="epochs", read=_trained("epochs"), write=_plain),
        Column(group="Training", name="time", read=_trained("seconds"), write=q.duration),
    ]


def _trained(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    """A number that only a network with a training of its own has."""
    return lambda one: q.dig(one, name) if q.dig(one, "epochs") else None


def _writer(name: str) -> Callable[[float | None], str]:
    return lambda value: q.cost(name, value)


def _plain(value: float | None) -> str:
    return q.ABSENT if value is None else f"{value:.3g}"


def _fine(fraction: float | None) -> str:
    """Finalists are near each other: two decimals."""
    return q.ABSENT if fraction is None else f"{100 * fraction:.2f}{q.GAP}%"
