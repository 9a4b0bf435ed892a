"""The page of `befit propose`: the best networks that were written, and what became of all the others.

Of the summary it reads: title, notes, data, budget and bounds, arms (a line for each arm, dataset and seed with funnel, reasons,
spent and means), comparison, rows (a proposal each), best (the result for each dataset, with accuracy as it was proposed, then on
validation and test images after its last training, costs and source), leaders (the best as they were proposed), similarity,
stages.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from befit.report import arms, canvas, finalists, frame, tables, yields
from befit.report import quantities as q
from befit.report.tables import Column, Row, path

_KEY = ("arm", "dataset", "seed", "number")
_UNSEEN = "\u200b"
"""A space without width."""
_MOST_CODES = 10
"""Networks whose code is on the page; every one is a file of the run directory."""


def render(summary: Mapping[str, Any]) -> str:
    """The whole page as text. Missing parts of the summary are left out; nothing in it can make this raise."""
    title = headline(summary)
    main = _header(summary, title) + "".join(_sections(summary)) + frame.footer(summary)
    return frame.document(title, main, styles=["elastic.css", "search.css", "proposals.css"])


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one sentence of plain text."""
    results = q.entries(summary.get("best"))
    best = next(iter(results), {})
    splits = (("test", "of the test images"), ("validation", "of the validation images"))
    right = [f"{q.accuracy(value)} {of}" for name, of in splits if (value := q.number(best.get(name))) is not None]
    tried, new = (_total(summary, stage) for stage in ("attempted", "new-graph"))
    told = (
        f"{q.whole(new)} new network{'s' * (new != 1)} from {q.whole(tried)} proposal{'s' * (tried != 1)}"
        if tried
        else ""
    )
    if len(results) > 1:  # each of another dataset
        right = [
            f"{q.accuracy(value)} of the test images of {one.get('dataset')}"
            for one in results
            if (value := q.number(one.get("test"))) is not None
        ]
    if not right:
        return told or str(summary.get("title") or "No proposals yet")
    params = q.dig(_costed(best), "counted", "params")
    size = f" with {q.amount(params)} parameters" if params is not None and len(results) == 1 else ""
    return f"{frame.listed(right)} right{size}" + (f"; {told}" if told else "")


def _total(summary: Mapping[str, Any], stage: str) -> float:
    return sum(max(0, q.dig(one, "funnel", stage) or 0) for one in q.entries(summary.get("arms")))


def _header(summary: Mapping[str, Any], title: str) -> str:
    device = q.mapping(summary.get("device"))
    facts = {
        "name": device.get("name"),
        "engine": f"trained on {device['trained_on']}" if device.get("trained_on") else "",
    }
    return frame.header({"title": summary.get("title"), "device": facts}, title)


def _sections(summary: Mapping[str, Any]) -> list[str]:
    return [
        frame.section("", _budget(summary), ""),
        frame.section("The best networks", best(summary), escape(_best_in_words(summary))),
        frame.section("Their code", codes(summary), ""),
        frame.section("What to know", frame.notes(summary.get("notes")), ""),
        frame.section("The best so far", arms.curves(summary), escape(arms.curves_in_words(summary))),
        frame.section("From attempts to networks", yields.funnel(summary), escape(yields.FUNNEL_IN_WORDS)),
        frame.section("Why proposals went no further", yields.reasons(summary), yields.REASONS_IN_WORDS),
        frame.section("What was spent", yields.spent(summary), escape(yields.SPENT_IN_WORDS)),
        frame.section("The arms compared", arms.comparison(summary), escape(arms.comparison_in_words(summary))),
        frame.section("How alike the networks are", alike(summary), escape(alike_in_words(summary))),
        frame.section("What the run did", tables.stages(summary.get("stages")), ""),
        frame.section("Predict", _using(summary), ""),
    ]


def _budget(summary: Mapping[str, Any]) -> str:
    networks, bounds = q.entries(summary.get("best")), q.entries(summary.get("bounds"))
    if not networks or not bounds:
        return ""
    known = finalists.costs(_costed(networks[0]))
    child = [{"cost": name, "value": value, "kind": way} for name, (value, way) in known.items()]
    met = networks[0].get("within", True)  # nothing beyond the budget is ever trained
    return tables.budget({"text": summary.get("budget"), "bounds": bounds, "child": child, "met": met})


def _costed(one: Mapping[str, Any]) -> Mapping[str, Any]:
    """A network whose exact counts stand with the costs that are counted."""
    exact = {name: one.get(name) for name in ("params", "flops") if q.number(one.get(name)) is not None}
    return {**one, "counted": {**exact, **q.mapping(one.get("counted"))}}


def _networks(summary: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], bool]]:
    """The results, then the other best ones; whether each is a result."""
    results = [_costed(one) for one in q.entries(summary.get("best"))]
    keys = [[one.get(name) for name in _KEY] for one in results]
    others = [_costed(one) for one in q.entries(summary.get("leaders"))]
    return [(one, True) for one in results] + [
        (one, False) for one in others if [one.get(name) for name in _KEY] not in keys
    ]


def best(summary: Mapping[str, Any]) -> str:
    """A row for each of the best networks; what is counted, predicted and measured stands in columns of its own."""
    networks = _networks(summary)
    costs = canvas.union(q.mapping(one.get(way)) for one, _ in networks for way in finalists.WAYS)
    columns = [
        Column(group="Accuracy", name=words, read=path(name), write=_fine)
        for name, words in (("proposed", "as proposed"), ("validation", "validation"), ("test", "test"))
    ]
    for cost in costs:
        title = canvas.safe(q.cost_name(cost))
        columns += [
            Column(group=title[:1].upper() + title[1:], name=way, read=path(way, cost), write=_writer(cost))
            for way in reversed(finalists.WAYS)
        ]
    rows = [
        Row(name=_name(one), remark=_remark(summary, one), values=one, look="child" if result else "baseline")
        for one, result in networks
    ]
    return tables.grid(rows, columns, {}, "The best networks")


def _best_in_words(summary: Mapping[str, Any]) -> str:
    data = [str(one["source"]) for one in _data(summary) if one.get("source")]
    source = f"Data: {'; '.join(data)}. " if data else ""
    return source + (
        "As proposed: on validation images, after the short training that every network gets. The best one was then trained for "
        "good, and the test images were opened once, after that."
    )


def _data(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The facts of each dataset."""
    given = summary.get("data")
    return [given] if isinstance(given, Mapping) else q.entries(given)


def codes(summary: Mapping[str, Any]) -> str:
    """The source of the best networks, folded."""
    told = list[str]()
    for one, _ in _networks(summary)[:_MOST_CODES]:
        if not one.get("source"):
            continue
        accuracy = q.number(one.get("proposed"))
        facts = [_remark(summary, one), f"{q.accuracy(accuracy)} as proposed" if accuracy is not None else ""]
        said = " · ".join(fact for fact in facts if fact)
        told.append(
            f'<details class="code"><summary><b>{escape(_name(one))}</b> {escape(said)}</summary>'
            f"<pre><code>{escape(str(one['source']))}</code></pre></details>"
        )
    return "".join(told)


def _name(one: Mapping[str, Any]) -> str:
    number = q.number(one.get("number"))
    return "a network" if number is None else f"no. {q.whole(number)}"


def _remark(summary: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """Which run it is of, where there are several."""
    lines = q.entries(summary.get("arms"))
    words = [
        str(one[key]) for key in ("arm", "dataset") if one.get(key) and len({str(line.get(key)) for line in lines}) > 1
    ]
    seeded = len({str(line.get("seed")) for line in lines}) > 1 and q.number(one.get("seed")) is not None
    words += [f"seed {q.whole(q.number(one.get('seed')))}"] if seeded else []
    return ", ".join(words)


def alike(summary: Mapping[str, Any]) -> str:
    """How similar the best networks are to each other, as a map."""
    facts = q.mapping(summary.get("similarity"))
    lines = [[q.number(value) for value in q.sequence(line)] for line in q.sequence(facts.get("matrix"))]
    named = q.entries(facts.get("names"))
    if len(lines) < 2 or any(len(line) != len(lines) for line in lines) or len(named) != len(lines):
        return ""
    numbers = [_name(one) for one in named]
    names = [
        f"{name}{_UNSEEN * numbers[:place].count(name)}" for place, name in enumerate(numbers)
    ]  # axes merge equal names
    full = [canvas.safe(" ".join(filter(None, (_name(one), _remark(summary, one))))) for one in named]
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap",
            "z": lines,
            "x": names,
            "y": names,
            "zmin": 0,
            "zmax": 1,
            "colorscale": [[place / 4, f"var(--heat-{place})"] for place in range(5)],
            "text": [[f"{a}<br>{b}" for a in full] for b in full],
            "hovertemplate": "%{text}<br>%{z:.2f}<extra></extra>",
            "xgap": 1,
            "ygap": 1,
            "colorbar": {"thickness": 10, "outlinewidth": 0, "tickvals": [0, 0.5, 1], "len": 0.9},
        }
    ]
    layout = {
        "margin": {"l": 62, "r": 10, "t": 10, "b": 56},
        "xaxis": canvas.axis(type="category", showgrid=False, tickangle=-60),
        "yaxis": canvas.axis(type="category", showgrid=False, autorange="reversed"),
    }
    height = 130 + 24 * len(lines)
    return f'<div class="half">{canvas.plot(data, layout, height, "Similarity of the best networks")}</div>'


def alike_in_words(summary: Mapping[str, Any]) -> str:
    """Mean similarity, and how near the nearest one is."""
    facts = q.mapping(summary.get("similarity"))
    mean, nearest, count = (q.number(facts.get(name)) for name in ("mean", "nearest", "networks"))
    if mean is None or nearest is None or count is None:
        return ""
    return (
        "Similarity is the share of runs of five tokens that two networks have in common, 1 for equal ones; names do not count. "
        f"Of {q.whole(count)} networks that were trained, two have {q.significant(mean, 2)} on average, and one has "
        f"{q.significant(nearest, 2)} to the one most like it at the median."
    )


def _using(summary: Mapping[str, Any]) -> str:
    text = summary.get("use")
    return f"<pre><code>{escape(text)}</code></pre>" if isinstance(text, str) and text else ""


def _writer(name: str) -> Any:
    return lambda value: q.cost(name, value)


def _fine(fraction: float | None) -> str:
    """The best are near each other: two decimals."""
    return q.ABSENT if fraction is None else f"{100 * fraction:.2f}{q.GAP}%"
