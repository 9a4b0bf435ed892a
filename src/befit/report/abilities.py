"""What parent, child and baselines can do: one row for each task and way of judging, with intervals of the differences.

Where the parent itself is not above chance, the row says so and shows nobody else: a child can't have lost what was not there.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from befit.report import quantities as q

CAPTION = (
    "Means with their standard errors; below, the difference to the parent on the same items with its 95 % interval. "
    "Intervals that leave out zero are set in bold. Nats: lower is better, but for what the text saves."
)


def tasks(evaluation: Any) -> str:
    """The table of all tasks, and notes on what was left out. Nothing where there is no evaluation."""
    evaluation = q.mapping(evaluation)
    models = [str(name) for name in q.mapping(evaluation.get("models"))]
    rows = "".join(
        line
        for name, task in q.mapping(evaluation.get("tasks")).items()
        for line in _task(name, q.mapping(task), models)
    )
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in models)
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in q.sequence(evaluation.get("notes")))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Tasks"><table class="compare"><thead>'
        f'<tr><th scope="col">task</th><th scope="col">chance</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _task(name: str, task: Mapping[str, Any], models: list[str]) -> Iterator[str]:
    """A row for each measure, followed by those of its levels."""
    for measure, given in q.mapping(task.get("measures")).items():
        told = q.mapping(given)
        about = str(told.get("about") or measure)
        remark = f"{measure}: {about}" if about not in (measure, task.get("about")) else str(measure)
        yield _row(name, f"{remark}, {q.whole(q.number(task.get('items')))} items", told, told, models)
        for kind, by in list(q.mapping(told.get("groups")).items())[:1]:
            groups = q.mapping(by)
            for label in groups if len(groups) > 1 else ():
                yield _row("", f"{label} {kind}", q.mapping(groups[label]), told, models)


def _row(name: str, remark: str, told: Mapping[str, Any], measure: Mapping[str, Any], models: list[str]) -> str:
    chance, share = q.number(measure.get("chance")), q.number(measure.get("chance")) is not None
    higher = measure.get("higher_is_better") is not False
    unable = told.get("parent_can") is False
    cells = []
    for model in models:
        own = q.mapping(q.mapping(told.get("models")).get(model))
        if unable and model != "parent":
            cells.append(
                '<td><span class="tag">the parent can’t do this</span></td>' if model == models[1] else "<td></td>"
            )
        else:
            cells.append(f"<td>{_value(own, share)}{_difference(q.mapping(own.get('difference')), share, higher)}</td>")
    guess = q.percent(chance) if chance else ""
    return (
        f'<tr class="baseline"><th scope="row">{escape(name)}<small>{escape(remark)}</small></th><td>{guess}</td>'
        f"{''.join(cells)}</tr>"
    )


def _value(own: Mapping[str, Any], share: bool) -> str:
    value, error = q.dig(own, "mean"), q.dig(own, "stderr")
    if value is None:
        return ""
    return _number(value, share) + (f" ± {_number(error, share)}" if error is not None else "")


def _difference(told: Mapping[str, Any], share: bool, higher: bool) -> str:
    value, low, high = (q.dig(told, key) for key in ("mean", "low", "high"))
    if value is None or low is None or high is None:
        return ""
    text = f"{_signed(value, share)} [{_signed(low, share)}, {_signed(high, share)}]"
    if low > 0 or high < 0:
        better = (value > 0) == higher
        text = f'<b title="{"better" if better else "worse"} than the parent">{text}</b>'
    return f"<small>{text}</small>"


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.1f}\u202f%" if share else f"{value:.3f}"


def _signed(value: float, share: bool) -> str:
    sign = "+" if value > 0 else "−" if value < 0 else ""
    return sign + _number(abs(value), share)
