"""`befit puzzle` from parent to child: Puzzle's stages in the paper's order (arXiv 2411.19146), each kept on disk.

    parent ─ rank ─ sort ─ library ─ score ─ measure ─ choose(budget): solve, polish, verify ─ heal ─ evaluate ─ report

Every stage is stored under a key made from all that went into it. A run that was killed goes on where it stopped; a run with
another budget reads everything up to the scores and the cost table and starts at the solver.

Under `accelerate launch` several processes share the layers of the library, the batches of the scores and the true KLs of
polishing, and heal together; everything else the main one does alone (`befit.lm.team`). With `--rounds`, blocks are scored
again around the healed child, with the same library, and solving goes on from there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from befit.arch.decoder import DecoderArch
from befit.cost.latency import Latency, LatencyTable
from befit.cost.workload import Workload
from befit.lm.child import arch_of, save
from befit.lm.data import digest as tensor_digest
from befit.lm.finished import note_healed
from befit.lm.modeling_befit import BefitForCausalLM
from befit.lm.quality import Quality, evaluate
from befit.lm.rank import Ranking, rank
from befit.lm.shards import whole
from befit.lm.sort import sort
from befit.lm.team import AskAll, Team
from befit.lm.timing import measure_models, measure_table, table_key
from befit.progress import Progress, silent
from befit.puzzle import baselines
from befit.puzzle.batches import fitted
from befit.puzzle.choose import TIMED, Chooser, Chosen, affordable
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.heal import HealConfig, HealResult, heal
from befit.puzzle.job import Job
from befit.puzzle.library import Library, free
from befit.puzzle.local import build_library, library_errors
from befit.puzzle.polish import TrueKl
from befit.puzzle.prices import Prices
from befit.puzzle.record import Findings, record
from befit.puzzle.score import Metric, Scores, load_task, score_batches, score_task, scores_of
from befit.puzzle.served import served_stage, served_times
from befit.puzzle.task_score import asked
from befit.rundir import digest, read_json, read_tensors, replacing_folder, write_json, write_tensors

ROUND = "round"
"""In the names of stages that `--rounds` repeats."""


def puzzle(config: PuzzleConfig, *, progress: Progress = silent) -> dict[str, Any]:
    """Refit a parent to a budget; returns what `summary.json` holds. Everything lies in `config.out` when it returns.

    Raises `BadBudget`, `BadData`, `UnsupportedModel`, `Infeasible`, `RunConflict` or `DiskFull`; of several processes the main
    one does, and the others raise `SystemExit`.
    """
    team = Team.of(config.device)
    with team.one_voice():
        return _puzzle(Job.open(config, team, progress if team.main else silent))


def _puzzle(job: Job) -> dict[str, Any]:
    ranking = rank_stage(job)
    library = library_stage(job, ranking)
    scores = score_stage(job, library)
    prices = price_stages(job, library.parent.config, job.batches)
    chosen = choose_stage(job, library, scores, prices)
    rivals = rival_stage(job, library, scores, prices[chosen.batch], chosen, ranking)
    rounds = [Made(library, chosen.arch)]
    for number in range(2, job.config.rounds + 1):
        around = around_stage(job, rounds[-1], number)
        chosen = choose_stage(job, around, score_stage(job, around, number), prices, number)
        rounds.append(Made(around, chosen.arch))
    made = {"child": rounds[-1]} | {name: Made(library, arch) for name, arch in rivals.items()}
    healed = {name: heal_stage(job, name, one) for name, one in made.items()}
    results = evaluate_stage(job, made, healed, chosen.batch)
    with job.team.first():
        if job.team.main:
            archs = {name: one.arch for name, one in made.items()}
            record(Findings(job, library, ranking, scores, prices, chosen, archs, results, healed["child"][1]))
    return read_json(job.run.folder / "summary.json")


def measure_only(config: PuzzleConfig, *, progress: Progress = silent) -> Prices:
    """Measure, or read, the cost table of a parent on this device, and nothing else."""
    job = Job.open(config, Team(), progress)
    batch = job.workload.batch
    return price_stages(job, job.parent.model.config, (batch,))[batch]


class Made(NamedTuple):
    """A child and what it is assembled from."""

    library: Library
    arch: DecoderArch


def rank_stage(job: Job) -> Ranking:
    """Rank on text, then sort the parent in memory, so that every narrower FFN is a prefix."""

    def make(folder: Path) -> None:
        rows = job.rows(job.config.rank_tokens)
        found = rank(job.parent.model, job.parent.shape, job.parent.family, rows, progress=job.progress)
        write_tensors(folder / "ranking.safetensors", found.tensors())

    folder = job.stage("rank", job.sorted_key, make)
    ranking = Ranking.from_tensors(read_tensors(folder / "ranking.safetensors"))
    sort(job.parent.model, job.parent.shape, job.parent.family, ranking)
    return ranking


def library_stage(job: Job, ranking: Ranking) -> Library:
    """Every variant of every sub-block, distilled from its original."""
    del ranking  # The parent has been sorted by it.
    library = Library(
        parent=job.parent.model,
        space=job.space,
        family=job.parent.family,
        folder=job.run.folder / "stages" / f"library-{job.library_key}",
        key=job.library_key,
    )

    def work(_folder: Path) -> None:
        rows = job.rows(job.config.local_tokens)
        build_library(rows, job.config.local, library=library, mine=job.team.mine, progress=job.progress)

    def finish(folder: Path) -> None:
        write_json(folder / "errors.json", {str(layer): table for layer, table in library_errors(library).items()})

    job.team.shared_stage(job.run, "library", job.library_key, work, finish)
    whole(library.parent)  # From here on children share its tensors.
    return library


def score_stage(job: Job, library: Library, number: int = 1) -> Scores:
    """The quality each replacement costs, in round `number`."""
    config, rows, metrics = job.config.score, job.score_rows, list[Metric]()
    if config.task is not None:
        task = asked(config.task, job.parent, count=job.config.score_sequences, seed=job.config.seed)
        rows, config = task.tokens, task.config(config)
        metrics = task.metrics(config.batch)

    def work(folder: Path) -> None:
        if config.function is None:
            score_batches(
                library, rows, config, folder=folder, mine=job.team.mine, metrics=metrics, progress=job.progress
            )

    def finish(folder: Path) -> None:
        if config.function is not None:
            found = score_task(library, load_task(config.function), progress=job.progress)
        else:
            found = scores_of(library, rows, config, folder)
        write_json(folder / "scores.json", found.to_json())

    key = digest("score", library.key, repr(config), tensor_digest(rows))
    folder = job.team.shared_stage(job.run, _in_round("score", number), key, work, finish)
    return Scores.from_json(read_json(folder / "scores.json"))


def price_stages(job: Job, parent: Any, batches: Sequence[int]) -> dict[int, Prices]:
    """What every option costs at each batch size, by whatever the run measures with."""
    if job.config.engine == "vllm":
        return served_stage(job, parent, batches)
    return {batch: price_stage(job, parent, batch) for batch in batches}


def price_stage(job: Job, parent: Any, batch: int) -> Prices:
    """What every option costs at a batch size, measured on the device."""
    workload = replace(job.workload, batch=batch)

    def make(folder: Path) -> None:
        table = measure_table(
            parent, job.space, workload, job.device, job.dtype, effort=job.config.measure, progress=job.progress
        )
        write_json(folder / "latency.json", table.to_json())

    key = digest("measure", table_key(job.space, workload, job.device, job.dtype, job.config.measure))
    folder = job.stage("measure" if batch == job.workload.batch else f"measure batch {batch}", key, make)
    return Prices(
        space=job.space, workload=workload, latency=LatencyTable.from_json(read_json(folder / "latency.json"))
    )


def choose_stage(job: Job, library: Library, scores: Scores, prices: Mapping[int, Prices], number: int = 1) -> Chosen:
    """Solve, polish on true KL, verify on the device. Where a task scores, its best solution stands as it is."""
    config, true_kl = job.config, TrueKl(library, job.score_rows)
    if config.score.metric.startswith("task:"):  # Polishing would take the choice back from the task.
        config = replace(config, solutions=1, polish=replace(config.polish, evaluations=1))
    timed = any(bound.cost in TIMED for bound in job.budget.bounds)

    def measure(arch: DecoderArch, batch: int) -> tuple[dict[str, float], dict[str, float]]:
        # Relative bounds mean the parent at the workload's own batch; it may have no room for the child's.
        base, own = job.workload, prices[batch].workload
        parent, child = {"parent": library.parent}, {"child": library.assemble(arch)}
        # Side by side where they can be, so that a drifting clock touches both.
        turns = [(parent | child, own)] if own == base else [(child, own), (parent, base)]
        times = {name: time for models, at in turns for name, time in _times(job, models, at).items()}
        parent_costs = prices[base.batch].arch(job.space.shape.arch)
        return with_measured(parent_costs, times["parent"], base), with_measured(
            prices[batch].arch(arch), times["child"], own
        )

    def make(folder: Path, ask: AskAll) -> None:
        true_kl.ask = ask
        chooser = Chooser(
            prices=prices,
            base=job.workload.batch,
            scores=scores,
            true_kls=true_kl.all,
            config=config.polish,
            solutions=config.solutions,
            progress=job.progress,
        )
        chosen = chooser.choose(job.budget, measure if timed else None)
        write_json(folder / "chosen.json", chosen.to_json())

    tables = {batch: price.latency.to_json() for batch, price in prices.items()}
    key = digest(
        "choose", library.key, scores.to_json(), tables, str(job.budget), repr(config.polish), config.solutions
    )
    folder = job.team.led_stage(job.run, _in_round("choose", number), key, make, true_kl)
    return Chosen.from_json(read_json(folder / "chosen.json"))


def rival_stage(
    job: Job, library: Library, scores: Scores, prices: Prices, chosen: Chosen, ranking: Ranking
) -> dict[str, DecoderArch]:
    """Baselines at the budget the child was solved for; one that cannot meet it is left out."""
    if not job.config.baselines:
        return {}
    fits, bounds = affordable(prices, chosen.budget), prices.bounds(chosen.budget)
    true_kl = TrueKl(library, job.score_rows)

    def make(folder: Path) -> None:
        found = {
            "uniform": baselines.uniform(job.space, true_kl, scores, fits),
            "depth": baselines.depth(job.space, ranking.influence, fits),
            "greedy": baselines.greedy(job.space, prices, scores, bounds),
            "random": baselines.drawn(job.space, prices.table(scores), bounds, fits, seed=job.config.seed),
        }
        write_json(folder / "rivals.json", {name: arch.to_json() for name, arch in found.items() if arch})

    key = digest("baselines", chosen.to_json(), scores.to_json(), job.config.seed)
    folder = job.stage("baselines", key, make)
    return {name: DecoderArch.from_json(arch) for name, arch in read_json(folder / "rivals.json").items()}


def around_stage(job: Job, made: Made, number: int) -> Library:
    """Heal the child of the round before for its share of the tokens; the library, with its blocks in it."""
    child, _ = heal_stage(job, f"{ROUND} {number - 1}", made)
    return replace(made.library, key=digest("around", _heal_key(job, made, ROUND)), healed=child)


def heal_stage(job: Job, name: str, made: Made) -> tuple[BefitForCausalLM, HealResult]:
    """Distil a whole child from the parent; returns it healed, with the course of its loss.

    A child that healing made worse, on the text that chose it, stays as it was assembled.
    """
    library, arch = made
    config, rows = _healing(job, name), job.rows(job.config.heal.tokens)

    def work(folder: Path) -> None:
        heal(free(library.assemble(arch)), library.parent, rows, config, folder, job.progress)

    def finish(folder: Path) -> None:
        before, after = library.assemble(arch), free(library.assemble(arch))
        heal(after, library.parent, rows, config, folder)
        if true_kl(after) > true_kl(before):
            write_tensors(folder / "healed.safetensors", {n: p.detach().clone() for n, p in before.named_parameters()})

    def true_kl(model: BefitForCausalLM) -> float:
        return evaluate(model, job.score_rows, library.parent).kl

    folder = job.team.shared_stage(job.run, f"heal {name}", _heal_key(job, made, name), work, finish)
    child = free(library.assemble(arch))
    result = heal(child, library.parent, rows, config, folder)  # Done by now: this only reads.
    if job.team.main and not name.startswith(ROUND):
        note_healed(job.run.folder, name, folder)
    if name == "child" and job.team.main:
        with replacing_folder(job.run.folder / "child") as folder:
            save(child, folder, job.parent.tokenizer)
    return child, result


def evaluate_stage(
    job: Job,
    made: Mapping[str, Made],
    healed: Mapping[str, tuple[BefitForCausalLM, HealResult]],
    batch: int,
) -> dict[str, Any]:
    """Loss, KL and measured times of parent, child and baselines, on text that chose nothing.

    Where the parent has no room for the child's batch, it is timed at its own.
    """
    parent, rows = made["child"].library.parent, job.final_rows
    workload = replace(job.workload, batch=batch)
    beside = workload if fitted(workload, job.budget, job.space.shape) == workload else job.workload

    def make(folder: Path) -> None:
        own = {"parent": parent}
        models = own | {name: model for name, (model, _) in healed.items()}
        if beside == workload:
            times = _times(job, models, workload)
        else:
            times = _times(job, {n: m for n, m in models.items() if n not in own}, workload) | _times(job, own, beside)
        told: dict[str, Any] = {}
        for name in job.progress(list(models), "evaluate", len(models)):
            quality = evaluate(models[name], rows, parent)
            before = (
                quality if name == "parent" else evaluate(made[name].library.assemble(made[name].arch), rows, parent)
            )
            told[name] = _told(quality, before, times[name])
        at_base = times if beside == job.workload else _times(job, own, job.workload)
        base = _told_time(at_base["parent"])
        write_json(folder / "results.json", {"models": told, "parent_batch": beside.batch, "parent_at_base": base})

    children = {name: one.arch.to_json() for name, one in made.items()}, repr(job.config.heal)
    key = digest("evaluate", made["child"].library.key, children, workload, job.device, tensor_digest(rows))
    return read_json(job.stage("evaluate", key, make) / "results.json")


def _healing(job: Job, name: str) -> HealConfig:
    """How a child is healed: the rounds share the tokens that a baseline has for itself."""
    config = job.config.heal
    share = job.config.rounds if name == "child" or name.startswith(ROUND) else 1
    return replace(config, tokens=math.ceil(config.tokens / share))


def _heal_key(job: Job, made: Made, name: str) -> str:
    """Names a healed child by all that made it."""
    rows = tensor_digest(job.rows(job.config.heal.tokens))
    return digest("heal", made.library.key, made.arch.to_json(), repr(_healing(job, name)), rows)


def _in_round(name: str, number: int) -> str:
    """A stage's name; in the first round it has no number."""
    return name if number == 1 else f"{name} {ROUND} {number}"


def with_measured(costs: Mapping[str, float], time: Latency, workload: Workload) -> dict[str, float]:
    """Counted costs with the measured times in place of the predicted ones."""
    measured = {"prefill_ms": time.prefill_ms, "decode_ms": time.decode_ms}
    measured |= {"latency_ms": time.latency_ms(workload), "tokens_per_s": time.tokens_per_s(workload)}
    return dict(costs) | measured


def _times(job: Job, models: Mapping[str, BefitForCausalLM], workload: Workload) -> dict[str, Latency]:
    if job.config.engine == "vllm":
        archs = {name: arch_of(model.config) for name, model in models.items()}
        return served_times(job, job.parent.model.config, archs, workload)
    effort = job.config.measure
    repeats, seconds = effort.repeats, effort.seconds / 2
    return measure_models(models, workload, job.device, repeats=repeats, seconds=seconds, progress=job.progress)


def _told(quality: Quality, before: Quality, time: Latency) -> dict[str, float]:
    return {
        "loss": quality.loss,
        "kl": quality.kl,
        "kl_before_heal": before.kl,
        "loss_before_heal": before.loss,
        **_told_time(time),
    }


def _told_time(time: Latency) -> dict[str, float]:
    return {"prefill_ms": time.prefill_ms, "decode_ms": time.decode_ms}
