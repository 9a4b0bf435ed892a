"""Tasks of lm-evaluation-harness (EleutherAI), put to any model that befit can open.

The harness makes the prompts and judges the answers, so its numbers are the ones that others publish; befit only says how likely
a continuation is and what the model writes (`befit.lm.answers`). Data come from local files where there are some: then a
definition is written that includes the harness's own and differs in where the rows are.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from befit.errors import BadData
from befit.lm.answers import Speaker
from befit.lm.asking import Measure
from befit.lm.task_data import KNOWN, LocalRows, local_rows
from befit.lm.tasks.item import Item
from befit.progress import Progress, silent

LONGEST = 256
"""Tokens written at most where a task names no limit, as in the harness."""
GUESSED = ("acc", "acc_norm")
"""Metrics that a guess among options reaches by chance."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which tasks of the harness, and how."""

    tasks: tuple[str, ...]
    """Names, or .yaml files."""
    data: str | None = None
    """Folder of local rows."""
    limit: int | None = None
    """Items of each task at most."""
    shots: int | None = None
    """Worked examples; none takes the task's own number."""
    seed: int = 0
    """Of the choice of examples."""


class Harness:
    """Tasks, loaded once and put to one model after another."""

    def __init__(self, asked: Asked) -> None:
        """Raises `BadData` without lm-eval, for an unknown task, and for one whose data are neither here nor to be had."""
        _manager()  # says so where the harness is missing
        self.asked = asked
        self.tasks: dict[str, Any] = {}
        with _calm(), TemporaryDirectory(prefix="befit-tasks-") as folder:
            for name in asked.tasks:
                self.tasks |= self._load(name, Path(folder))

    def ask(self, speaker: Speaker, *, progress: Progress = silent) -> dict[str, dict[str, Measure]]:
        """All measures of all tasks, by the task's name."""
        import lm_eval

        evaluate: Any = lm_eval.simple_evaluate
        with _calm():
            told = evaluate(
                model=_adapter(speaker, progress),
                tasks=list(self.tasks.values()),
                num_fewshot=self.asked.shots,
                limit=self.asked.limit,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=_manager(),
                random_seed=self.asked.seed,
                numpy_random_seed=self.asked.seed,
                torch_random_seed=self.asked.seed,
                fewshot_random_seed=self.asked.seed,
            )
        return {name: _measures(task, told["samples"][name]) for name, task in self.tasks.items()}

    def choices(self) -> tuple[Item, ...]:
        """The items of all tasks as choices among continuations. Raises `BadData` for a task that is no multiple choice."""
        found = list[Item]()
        for name, task in self.tasks.items():
            if task.OUTPUT_TYPE != "multiple_choice":
                raise BadData(
                    f"{name} has no options to choose among, so it gives no score; name a multiple-choice task"
                )
            with _calm():
                task.set_fewshot_seed(self.asked.seed)
                task.build_all_requests(limit=self.asked.limit, rank=0, world_size=1)
            by_doc = dict[int, list[Any]]()
            for request in task.instances:
                by_doc.setdefault(request.doc_id, []).append(request)
            for requests in by_doc.values():
                requests.sort(key=lambda request: request.idx)
                right = task.doc_to_target(requests[0].doc)
                texts = tuple(request.args[1] for request in requests)
                if isinstance(right, int) and 0 <= right < len(texts) == len(set(texts)):
                    found.append(Item(prompt=requests[0].args[0], options=texts, right=right))
        return tuple(found)

    def _load(self, name: str, folder: Path) -> dict[str, Any]:
        """One name may stand for several tasks. `folder` is needed no longer than this takes."""
        spec, defaults = name, False
        rows = None if self.asked.data is None else local_rows(self.asked.data, name)
        if rows is not None:
            spec = str(self._local(name, rows, folder))
        elif not name.endswith((".yaml", ".yml")):
            defaults = name not in KNOWN
            spec = name if defaults else str(_definitions() / KNOWN[name].yaml)
        elif not Path(name).is_file():
            raise BadData(f"there is no task definition {name!r}; give a .yaml file of lm-evaluation-harness")
        try:
            found: Any = _manager(defaults).load([spec])["tasks"]
        except KeyError as error:
            raise BadData(
                f"no task is called {name!r}; `lm-eval ls tasks` lists those of the harness, and befit has needle, tool_call "
                "and arithmetic of its own"
            ) from error
        except (OSError, ValueError) as error:
            raise BadData(
                f"the task {name!r} cannot be loaded ({error}); give a .yaml definition whose data lie here, "
                f"or put them into the folder of `befit eval --task-data`, such as {Path(name).stem}.jsonl"
            ) from error
        if self.asked.shots is not None:
            for task in found.values():
                task.set_config(key="num_fewshot", value=self.asked.shots)
        return dict(found)

    def _local(self, name: str, rows: LocalRows, folder: Path) -> Path:
        """A definition that is the harness's but for the rows, which lie beside it."""
        own = _definitions() / KNOWN[name].yaml if name in KNOWN else _found(name)
        files = {}
        for split, held in (("train", rows.train), ("validation", rows.asked), ("test", rows.asked)):
            if held:
                files[split] = str(folder / f"{name}.{split}.jsonl")
                Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in held), encoding="utf-8")
        told: dict[str, Any] = {
            "include": str(own),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache"), "keep_in_memory": True},
        }
        if self.asked.shots and len(rows.train) <= self.asked.shots:
            raise BadData(
                f"{name}: {self.asked.shots} examples need more than as many rows of their own, there are {len(rows.train)}; "
                f"put them into {name}.train.jsonl"
            )
        if not rows.train:
            told |= {"training_split": None, "fewshot_split": None, "num_fewshot": 0}
        written = folder / f"{name}.yaml"
        written.write_text(json.dumps(told), encoding="utf-8")  # JSON is YAML
        return written


def _measures(task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
    """One measure for each metric that is a mean over items; with several filters, one for each."""
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    found = dict[str, Measure]()
    higher, aggregated = task.higher_is_better(), task.aggregation()
    for filtered in filters:
        own = sorted((s for s in samples if s["filter"] == filtered), key=lambda s: s["doc_id"])
        for metric in own[0]["metrics"]:
            values = [sample[metric] for sample in own]
            means = getattr(aggregated.get(metric), "__name__", "") == "mean"
            if not means or not all(isinstance(value, int | float | bool) for value in values):
                continue
            name = metric if len(filters) == 1 else f"{metric}, {filtered}"
            chance = sum(1 / len(sample["resps"]) for sample in own) / len(own) if metric in GUESSED else None
            found[name] = Measure(
                name=name,
                about="lm-evaluation-harness",
                values=tuple(float(value) for value in values),
                chance=0.0 if metric == "exact_match" else chance,
                higher=bool(higher.get(metric, True)),
            )
    return found


def _adapter(speaker: Speaker, progress: Progress) -> Any:
    """The harness's view of a speaker."""
    from lm_eval.api.model import LM

    class Adapter(LM):
        """Answers the harness's three kinds of request."""

        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            told = speaker.likelihoods([speaker.pair(*request.args) for request in requests], progress=progress)
            return [(one.total, one.greedy) for one in told]

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            return [one.total for one in speaker.whole([request.args[0] for request in requests], progress=progress)]

        def generate_until(self, requests: Any) -> list[str]:
            settings = [request.args[1] for request in requests]
            stops = [_stops(one.get("until")) for one in settings]
            limits = [int(one.get("max_gen_toks", one.get("max_new_tokens", LONGEST))) for one in settings]
            return speaker.write([request.args[0] for request in requests], limits, stops, progress=progress)

    return Adapter()


def _stops(until: Any) -> tuple[str, ...]:
    return (until,) if isinstance(until, str) else tuple(until or ())


def _definitions() -> Path:
    _manager()
    import lm_eval.tasks

    return Path(lm_eval.tasks.__path__[0])


def _manager(defaults: bool = False) -> Any:
    """What finds tasks; the harness's own thousands take seconds to look through, so only where they are needed."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise BadData("tasks of lm-evaluation-harness need `pip install lm-eval` (befit's extra `eval`)") from error
    return TaskManager(include_defaults=defaults)


def _found(name: str) -> Path:
    entry = _manager(defaults=True).task_index.get(name)
    if entry is None or entry.yaml_path is None:
        raise BadData(f"the harness has no single task {name!r} that local rows could be given to")
    return Path(entry.yaml_path)


@contextmanager
def _calm() -> Iterator[None]:
    """Keep the harness's own bars and advice out of befit's output."""
    import datasets

    logger, bars = logging.getLogger("lm_eval"), datasets.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
