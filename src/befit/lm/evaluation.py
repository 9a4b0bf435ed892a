"""Several models on the same tasks, item by item: how good each is, and how far each is from its parent.

Models are opened one after the other. Each number has a standard error; the difference to the parent is taken over the same
items and has an interval of its own (`befit.lm.paired`). Where the parent itself can't do a task (it is not above chance),
that is said: a child can't keep what its parent never had.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from befit.errors import BadData
from befit.lm.answers import Speaker
from befit.lm.asking import Measure, ask
from befit.lm.contender import PARENT, Contender, Place
from befit.lm.paired import able, above_zero, difference, mean
from befit.lm.tasks.item import Item, items
from befit.lm.tasks.named import BUILT_IN
from befit.progress import Progress, silent

Measures = Mapping[str, Measure]
"""Of one model and one task, by the measure's name."""
Asker = Callable[[Speaker], Mapping[str, Measures]]
"""Everything that is asked of one model: the measures of each task."""

TASKS = tuple(BUILT_IN)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is asked."""

    tasks: tuple[str, ...] = TASKS
    """Generated ones (needle, tool_call, arithmetic), those of lm-evaluation-harness, or .yaml files of your own."""
    items: int = 96
    """Items of each generated task, over all its levels."""
    levels: tuple[int, ...] = ()
    """Levels of generated tasks instead of their own: tokens of needle, steps of arithmetic, tools of tool_call."""
    write: bool = True
    """Let models write answers, too; without, they choose among given ones, which is faster."""
    limit: int | None = None
    """Items of each task of the harness at most; none takes all."""
    shots: int | None = None
    """Worked examples before each item of the harness; none takes the task's own number."""
    task_data: str | None = None
    """Folder with local data for tasks of the harness, such as arc_easy.jsonl; what is found there is not downloaded."""
    seed: int = 0
    """Of generated items, and of the harness's choice of examples."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise BadData(f"name at least one task: {', '.join(TASKS)}, or one of lm-evaluation-harness")
        for name, value in (("items", self.items), ("limit", self.limit), *(("levels", one) for one in self.levels)):
            if value is not None and value < 1:
                raise BadData(f"{name} must be at least 1, got {value}")
        if self.shots is not None and self.shots < 0:
            raise BadData(f"shots must be 0 or more, got {self.shots}")

    @property
    def own(self) -> tuple[str, ...]:
        """The built-in tasks among them."""
        return tuple(name for name in self.tasks if name in BUILT_IN)

    @property
    def foreign(self) -> tuple[str, ...]:
        """Those of the harness."""
        return tuple(name for name in self.tasks if name not in BUILT_IN)


def evaluate_all(
    contenders: Sequence[Contender], config: EvalConfig, place: Place, *, progress: Progress = silent
) -> dict[str, Any]:
    """All contenders on all tasks, as JSON values; differences are to the one called `parent`, where there is one.

    Raises `BadData` for a task that is unknown or has no data, `UnsupportedModel` for a model that cannot be loaded.
    """
    harness = None
    if config.foreign:
        from befit.lm.harness import Asked, Harness

        harness = Harness(
            Asked(tasks=config.foreign, data=config.task_data, limit=config.limit, shots=config.shots, seed=config.seed)
        )
    found = dict[str, dict[str, Measures]]()
    notes, asked = list[str](), dict[str, tuple[Item, ...]]()
    for contender in contenders:
        speaker = place.speaker(contender)
        asked = asked or generated(config, speaker, notes)  # All models are asked what the first one's tokens make.
        lost = _lost(found.get(PARENT, {}))
        found[contender.name] = {
            name: ask(BUILT_IN[name], own, speaker, write=config.write and name not in lost, progress=progress)
            for name, own in asked.items()
        }
        if harness is not None:
            found[contender.name] |= harness.ask(speaker, progress=progress)
        del speaker
    names = list(next(iter(found.values())))
    return {
        "models": {one.name: {"source": one.source} for one in contenders},
        "seed": config.seed,
        "tasks": {name: _task(_about(name), {model: told[name] for model, told in found.items()}) for name in names},
        "notes": notes,
    }


def generated(config: EvalConfig, speaker: Speaker, notes: list[str]) -> dict[str, tuple[Item, ...]]:
    """The items of the built-in tasks; lengths that the model has no positions for are left out and noted."""
    found = dict[str, tuple[Item, ...]]()
    for name in config.own:
        levels = config.levels or BUILT_IN[name].levels
        if BUILT_IN[name].unit == "tokens" and speaker.room is not None:
            beyond = [level for level in levels if level > speaker.room]
            levels = tuple(level for level in levels if level <= speaker.room)
            if not levels:
                raise BadData(f"{name}: the model has {speaker.room} positions, too few for {min(beyond)} tokens")
            notes += [
                f"{name} at {level} tokens was left out: the model has {speaker.room} positions." for level in beyond
            ]
        found[name] = items(BUILT_IN[name], seed=config.seed, count=config.items, tokens=speaker.count, levels=levels)
    return found


def _lost(parent: Mapping[str, Measures]) -> set[str]:
    """Tasks in which the parent writes nothing that is right: no other model is asked to write for them, which takes longest."""
    return {name for name, own in parent.items() if "exact" in own and not _able(own["exact"])}


def _task(about: str, told: Mapping[str, Measures]) -> dict[str, Any]:
    """One task: its measures, and of each the models that were judged by it."""
    first = next(iter(told.values()))
    measures = {name: _measure({model: own[name] for model, own in told.items() if name in own}) for name in first}
    return {"about": about, "items": len(next(iter(first.values())).values), "measures": measures}


def _about(name: str) -> str:
    return BUILT_IN[name].about if name in BUILT_IN else "lm-evaluation-harness"


def _measure(told: Mapping[str, Measure]) -> dict[str, Any]:
    """One measure of all models, over all items and by their labels."""
    first, base = next(iter(told.values())), told.get(PARENT)
    groups = dict[str, dict[str, list[int]]]()
    for number, labels in enumerate(first.labels):
        for kind, label in labels.items():
            groups.setdefault(kind, {}).setdefault(label, []).append(number)
    return {
        "about": first.about,
        "chance": first.chance,
        "higher_is_better": first.higher,
        "parent_can": None if base is None else _able(base),
        "models": {name: _compared(own, None if name == PARENT else base) for name, own in told.items()},
        "groups": {
            kind: {
                label: {
                    "parent_can": None if base is None else _able(_part(base, numbers)),
                    "models": {
                        name: _compared(
                            _part(own, numbers), None if name == PARENT or base is None else _part(base, numbers)
                        )
                        for name, own in told.items()
                    },
                }
                for label, numbers in by.items()
            }
            for kind, by in groups.items()
        },
    }


def _part(measure: Measure, numbers: Sequence[int]) -> Measure:
    return replace(measure, values=tuple(measure.values[number] for number in numbers), labels=())


def _compared(own: Measure, base: Measure | None) -> dict[str, Any]:
    """A mean with its standard error, and the difference to the parent's over the same items."""
    told: dict[str, Any] = dict(vars(mean(own.values)))
    if base is not None and own is not base:
        told["difference"] = dict(vars(difference(own.values, base.values)))
    return told


def _able(measure: Measure) -> bool | None:
    """Whether a model does better than by guessing; none where a guess has no number."""
    if measure.chance is not None:
        return able(measure.values, measure.chance)
    return above_zero(measure.values) if measure.name == "gain" else None


def table_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The results for a terminal: for each task, way of judging and level, a row for each model."""
    rows = list[dict[str, str]]()
    for name, task in found["tasks"].items():
        for measure, told in task["measures"].items():
            chance = f", chance {told['chance']:.0%}" if told["chance"] else ""
            about = measure if told["about"] == task["about"] else f"{measure}: {told['about']}"
            rows += _shown(name, about + chance, told, told["chance"] is not None)
            for kind, by in list(told["groups"].items())[:1]:
                for label, own in by.items() if len(by) > 1 else ():
                    rows += _shown("", f"{label} {kind}", own, told["chance"] is not None)
    return rows


def _shown(task: str, what: str, told: Mapping[str, Any], share: bool) -> list[dict[str, str]]:
    rows = list[dict[str, str]]()
    for model, own in told["models"].items():
        told_value = _number(own["mean"], share) + _error(own["stderr"], share)
        apart = own.get("difference")
        row = {"task": "" if rows else task, "judged by": "" if rows else what, "model": model, "mean": told_value}
        rows.append(row | {"minus the parent": _interval(apart, share) if apart else ""})
        if told["parent_can"] is False:
            return [row | {"minus the parent": "the parent can't do this"}]
    return rows


def _number(value: float, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.3f}"


def _error(stderr: float | None, share: bool) -> str:
    return "" if stderr is None else f" ±{_number(stderr, share)}"


def _interval(apart: Mapping[str, Any], share: bool) -> str:
    low, middle, high = (f"{apart[k]:+.1%}" if share else f"{apart[k]:+.3f}" for k in ("low", "mean", "high"))
    return f"{middle} [{low}, {high}]"
