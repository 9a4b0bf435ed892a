"""The verb that puts tasks to models: eval."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from befit.cli.shown import quiet, show_lines, show_rows
from befit.errors import BadData

NAMES = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="STR[,STR...]",
    instance_from_str=lambda words: tuple(dict.fromkeys(filter(None, map(str.strip, words[0].split(","))))),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda names: [",".join(names)],
)
"""One word with commas, so that what follows it is not taken for a name; each name counts once."""


def eval_verb(arguments: Sequence[str]) -> None:
    """Put tasks to models and their parent: generated ones, or those of lm-evaluation-harness."""
    from befit.lm.evaluation import EvalConfig

    @dataclass(frozen=True, kw_only=True)
    class Arguments(EvalConfig):
        models: tyro.conf.Positional[tuple[str, ...]]
        """A run directory (its parent, child and baselines), or checkpoints of any kind; befit:dense and befit:hybrid, too."""
        tasks: Annotated[tuple[str, ...], NAMES] = EvalConfig.tasks  # its help is EvalConfig's, too
        parent: str | None = None
        """What checkpoints are compared with, or "none"; if not given, the parent of the run that the first lies in."""
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

    # A function, because tyro frames the errors of a dataclass that it is given; ours are for `befit.cli.main`.
    def evaluate(asked: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
        """Put tasks to models and their parent, and compare them item by item."""
        quiet()
        _evaluate(asked)

    tyro.cli(evaluate, args=arguments, prog="befit eval")


def _evaluate(asked: Any) -> None:
    from befit.cost.device import this_device
    from befit.lm.contender import Place
    from befit.lm.evaluation import evaluate_all, table_rows
    from befit.lm.finished import is_run, keep
    from befit.lm.precision import DTYPES
    from befit.progress import Bars
    from befit.rundir import check_writable, write_json

    if asked.out is not None:
        check_writable(asked.out)
    device = this_device(asked.device).kind
    dtype = DTYPES[asked.dtype if asked.dtype != "auto" else "bf16" if device == "cuda" else "fp32"]
    place = Place(device=device, dtype=dtype, trust=asked.trust_remote_code, batch=asked.batch)
    contenders = _contenders(asked, place)
    with Bars() as progress:
        found = evaluate_all(contenders, asked, place, progress=progress)
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
