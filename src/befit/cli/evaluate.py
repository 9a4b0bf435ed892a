"""The verb that puts tasks to models: eval."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from befit.cli.shown import quiet, show_lines, show_rows
from befit.errors import BadData


def eval_verb(arguments: Sequence[str]) -> None:
    """Put tasks to models and their parent: generated ones, or those of lm-evaluation-harness."""
    from befit.lm.evaluation import TASKS

    @dataclass(frozen=True)
    class Arguments:
        """Put tasks to models and their parent, and compare them item by item."""

        models: tyro.conf.Positional[tuple[str, ...]]
        """A run directory (its parent, child and baselines), or checkpoints of any kind; befit:dense and befit:hybrid, too."""
        tasks: str = ",".join(TASKS)
        """Separated by commas: needle, tool_call, arithmetic are generated; others are of the harness, or .yaml files."""
        parent: str | None = None
        """What checkpoints are compared with, or "none"; if not given, the parent of the run that the first lies in."""
        items: int = 96
        """Items of each generated task."""
        levels: tuple[int, ...] = ()
        """Levels of generated tasks instead of their own: tokens of needle, steps of arithmetic, tools of tool_call."""
        write: bool = True
        """Let models write answers, too; without, they choose among given ones, which is faster."""
        limit: int | None = None
        """Items of each task of the harness at most."""
        shots: int | None = None
        """Worked examples before each item of the harness; the task's own number if not given."""
        task_data: str | None = None
        """Folder with local data for tasks of the harness, such as arc_easy.jsonl."""
        seed: int = 0
        """Of generated items, and of the harness's choice of examples."""
        batch: int = 8
        """Rows that go through a model at once."""
        device: Literal["auto", "cpu", "cuda"] = "auto"
        """Where models run."""
        dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
        """Number format; auto is bf16 on a GPU, fp32 on a CPU."""
        trust_remote_code: bool = False
        """Run Python code that came with a checkpoint; befit's own children need none."""
        out: Path | None = None
        """File for the results as JSON; of a run they also go to its eval.json and its report."""

    asked: Any = tyro.cli(Arguments, args=arguments, prog="befit eval")
    quiet()
    _evaluate(asked)


def _evaluate(asked: Any) -> None:
    from befit.cost.device import this_device
    from befit.lm.contender import Place
    from befit.lm.evaluation import EvalConfig, evaluate_all, table_rows
    from befit.lm.finished import is_run, keep
    from befit.lm.precision import DTYPES
    from befit.progress import Bars
    from befit.rundir import write_json

    config = EvalConfig(
        tasks=tuple(dict.fromkeys(filter(None, (name.strip() for name in asked.tasks.split(","))))),
        items=asked.items,
        levels=asked.levels,
        write=asked.write,
        limit=asked.limit,
        shots=asked.shots,
        task_data=asked.task_data,
        seed=asked.seed,
    )
    device = this_device(asked.device).kind
    dtype = DTYPES[asked.dtype if asked.dtype != "auto" else "bf16" if device == "cuda" else "fp32"]
    place = Place(device=device, dtype=dtype, trust=asked.trust_remote_code, batch=asked.batch)
    contenders = _contenders(asked, place)
    with Bars() as progress:
        found = evaluate_all(contenders, config, place, progress=progress)
    show_rows(table_rows(found), "Tasks")
    show_lines(found["notes"])
    if asked.out is not None:
        write_json(asked.out, found)
        print(f"results {asked.out}")
    run = Path(asked.models[0])
    if is_run(run):
        keep(run, found)
        draw(run)
        print(f"results {run / 'eval.json'}\nreport  {run / 'report.html'}")


def _contenders(asked: Any, place: Any) -> list[Any]:
    """The parent first, where there is one; names that no two models share."""
    from befit.lm import finished
    from befit.lm.contender import PARENT, checkpoint

    if not asked.models:
        raise BadData("name a run directory, or at least one checkpoint: befit eval runs/small")
    runs = [name for name in asked.models if finished.is_run(Path(name))]
    if runs:
        if len(asked.models) > 1:
            raise BadData(f"{runs[0]} is a run: give it alone, or give its checkpoints (such as {runs[0]}/child)")
        return finished.contenders(Path(runs[0]), place)
    parent = asked.parent or finished.parent_of(Path(asked.models[0]))
    found = [] if parent in (None, "none") else [checkpoint(parent, place, name=PARENT)]
    names = [Path(source).name for source in asked.models]
    for source, name in zip(asked.models, names, strict=True):
        own = name if names.count(name) == 1 and name != PARENT else source
        found.append(checkpoint(source, place, name=own))
    return found


def draw(run: Path) -> None:
    """Draw a run's report anew from what lies in it."""
    from befit.report.page import write_report
    from befit.rundir import read_json

    summary = read_json(run / "summary.json")
    if (run / "eval.json").is_file():
        from befit.lm.finished import with_evaluation

        summary = with_evaluation(summary, run)
    write_report(summary, run / "report.html")
