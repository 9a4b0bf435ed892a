"""The page of `befit search`: the network that was found, what it costs, and what the trials say about the space."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from befit.report import drawing, finalists, frame, learned, oneshot, progress, tables, trials
from befit.report import quantities as q


def render(summary: Mapping[str, Any]) -> str:
    """The whole page as text. Missing parts of the summary are left out; nothing in it can make this raise."""
    title = headline(summary)
    main = _header(summary, title) + "".join(_sections(summary)) + frame.footer(summary)
    return frame.document(title, main, styles=["elastic.css", "search.css"])


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one sentence of plain text."""
    best = finalists.chosen(summary)
    if not best:
        return str(summary.get("title") or "A search, not finished yet")
    splits = (("test", "of the test images"), ("validation", "of the validation images"))
    right = [f"{q.accuracy(value)} {of}" for name, of in splits if (value := q.number(best.get(name))) is not None]
    costs = _headline_costs(summary, best)
    said = f"{frame.listed(right)} right" if right else "A network"
    return said + (f", with {frame.listed(costs)}" if costs else "") + _verdict(summary, best)


def _headline_costs(summary: Mapping[str, Any], best: Mapping[str, Any]) -> list[str]:
    """The bounded costs and the parameters, predicted ones said to be so."""
    known = finalists.costs(best)
    bounded = [str(bound.get("cost")) for bound in q.entries(summary.get("bounds"))]
    named = [name for name in dict.fromkeys((*bounded, "params")) if name in known]
    told = list[str]()
    for name in named:
        value, way = known[name]
        of = " " if name in ("params", "macs") else " of "
        told.append(("a predicted " if way == "predicted" else "") + q.cost(name, value) + of + q.cost_name(name))
    return told


def _verdict(summary: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    if not q.entries(summary.get("bounds")) or not isinstance(best.get("within"), bool):
        return ""
    if not best["within"]:
        return "; the budget is not met"
    known = finalists.costs(best)
    ways = {known[name][1] for bound in q.entries(summary.get("bounds")) if (name := str(bound.get("cost"))) in known}
    way = "measured" if "measured" in ways else "predicted" if "predicted" in ways else "counted"
    return f"; the budget is met as {way}"


def _header(summary: Mapping[str, Any], title: str) -> str:
    """As on every page; where it was trained and where it is to run, in words."""
    device = q.mapping(summary.get("device"))
    target = q.mapping(device.get("target"))
    engine = {"onnx": "ONNX Runtime", "torch": "PyTorch"}.get(str(target.get("engine")))
    threads = q.number(target.get("threads"))
    words = [f"trained on {_processor(device['trained_on'])}"] if device.get("trained_on") else []
    if engine:
        on = f"to run under {engine} on {_processor(target.get('device') or 'cpu')}"
        on += f", {q.whole(q.number(target.get('batch')))} image at a time" if target.get("batch") == 1 else ""
        many = threads is not None and threads != 1
        words.append(on + (f", {q.whole(threads)} thread{'s' * many}" if threads is not None else ""))
    facts = {"name": device.get("name"), "engine": "; ".join(words)}
    return frame.header({"title": summary.get("title"), "device": facts}, title)


def _processor(name: Any) -> str:
    return {"cpu": "the CPU", "cuda": "the GPU"}.get(str(name), str(name))


def _sections(summary: Mapping[str, Any]) -> list[str]:
    extra = q.mapping(summary.get("extra"))
    effects, funnel = summary.get("learned"), summary.get("funnel")
    best = finalists.chosen(summary)
    shared = oneshot.shared(summary) + oneshot.compared(summary)
    return [
        frame.section("", finalists.budget(summary), ""),
        frame.section("Finalists", finalists.table(summary), escape(_finalists_in_words(summary))),
        frame.section("What to know", frame.notes(summary.get("notes")), ""),
        frame.section("Accuracy against cost", trials.front(summary), escape(_front_in_words(summary))),
        frame.section("The architecture", drawing.picture(summary.get("drawing")), escape(_space_in_words(summary))),
        frame.section("Trial by trial", progress.progress(summary), escape(progress.in_words(summary))),
        frame.section(
            "What the gradients said",
            (oneshot.told(oneshot.gradient_in_words(summary)) + oneshot.gradient(summary))
            if extra.get("gradient")
            else "",
            "",
        ),
        frame.section(
            "Shared weights",
            oneshot.told(oneshot.shared_in_words(summary))
            + (f'<div class="panels split">{shared}</div>' if shared else ""),
            "",
        ),
        frame.section(
            "What the search saw of each choice",
            learned.choices(effects, summary.get("space")),
            escape(learned.in_words(effects)),
        ),
        frame.section("From proposals to one network", learned.funnel(funnel), escape(learned.funnel_in_words(funnel))),
        frame.section(
            "Does it hold on other data?",
            trials.transfer(summary.get("transfer")),
            escape(trials.transfer_in_words(summary.get("transfer"))),
        ),
        frame.section("What the run did", tables.stages(_merged(summary.get("stages"))), ""),
        frame.section("Predict and export", _using(summary) if best else "", ""),
    ]


def _merged(stages: Any) -> list[dict[str, Any]]:
    """Stages of one name as one: a network each."""
    groups = dict[tuple[str, bool], list[float]]()
    for entry in q.entries(stages):
        key = str(entry.get("name", "")), entry.get("reused") is True
        groups.setdefault(key, []).append(q.number(entry.get("seconds")) or 0.0)
    return [
        {"name": name, "seconds": sum(spent), "reused": reused, "note": f"{len(spent)} networks" * (len(spent) > 1)}
        for (name, reused), spent in groups.items()
    ]


def _front_in_words(summary: Mapping[str, Any]) -> str:
    line = "The line is the best that trials reached at each cost. " if q.entries(summary.get("trials")) else ""
    ends = q.entries(summary.get("finalists"))
    trained = (
        "after their full training" if any(q.number(one.get("epochs")) for one in ends) else "on validation images"
    )
    hollow = "; hollow ones broke the budget when they were measured" if any(
        one.get("within") is False for one in ends
    ) else ""  # fmt: skip
    return f"{line}Diamonds are the finalists {trained}{hollow}."


def _finalists_in_words(summary: Mapping[str, Any]) -> str:
    """What the accuracies were measured on."""
    data = q.mapping(summary.get("data"))
    counts = q.mapping(data.get("images"))
    parts = [f"{q.whole(value)} {name}" for name in ("train", "validation", "test")
             if (value := q.number(counts.get(name))) is not None]  # fmt: skip
    source = f"Data: {data['source']}" if data.get("source") else "Data"
    classes = len(q.sequence(data.get("classes")))
    images = f" ({frame.listed(parts)} images, {classes} classes)" if parts else ""
    told = f"{source}{images}. " if data else ""
    return told + "The choice was made by validation; the test images were opened once, after it."


def _space_in_words(summary: Mapping[str, Any]) -> str:
    space = q.mapping(summary.get("space"))
    if not space.get("name"):
        return ""
    options = "; ".join(f"{name} {_listed(value)}" for name, value in q.mapping(space.get("options")).items())
    size = q.number(space.get("size"))
    words = f"Space {space['name']}" + (f" ({options})" if options else "")
    words += f", {q.whole(size)} archs." if size else "."
    kind = q.mapping(summary.get("drawing")).get("kind")
    return words + (
        " Every node sums what its edges bring; all cells of the network are alike." if kind == "cell" else ""
    )


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _using(summary: Mapping[str, Any]) -> str:
    run = str(summary.get("run") or "RUN")
    best = f"{run}/best"
    shared = q.mapping(q.mapping(summary.get("extra")).get("shared"))
    cut = (
        f'befit cut {escape(run)} --budget "params&lt;=100k"  <i># another size, without training</i>\n'
        if shared
        else ""
    )
    return (
        f"<pre><code>befit predict {escape(best)} photo.jpg\nbefit export {escape(best)} --to onnx\n{cut}</code></pre>"
        f"<pre><code>befit.load({escape(json.dumps(best, ensure_ascii=False))}).predict(image).label</code></pre>"
    )
