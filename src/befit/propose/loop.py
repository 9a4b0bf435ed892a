"""`befit propose` from images to the best network that a model wrote, each step kept on disk.

    choose(scored) ─ prompt ─ complete ─ read ─ gate ─ (once more) ─ train in the sandbox, judged outside ─ record ─ next

What a proposal is shown, and all its draws, depend on the proposals before it alone (with `ahead`, on all but the last of
these). So a run that was killed goes on with the one that was under way, asks for no answer that it has, and ends with the rows
of a run that was not killed. A server writes the next network while one is trained, where that one need not be known.
"""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from befit.errors import BefitError
from befit.progress import Progress, silent
from befit.propose import genome
from befit.propose.answer import Answer, read
from befit.propose.archive import choose
from befit.propose.attempts import Cache, Early, Recorded
from befit.propose.config import ProposeConfig
from befit.propose.contract import contract_text
from befit.propose.diversity import similar
from befit.propose.finish import keep_best
from befit.propose.funnel import is_trained
from befit.propose.gate import Gate
from befit.propose.job import ProposeJob
from befit.propose.judge import judge
from befit.propose.lane import Lane
from befit.propose.models import Completion, Message, Model, Request
from befit.propose.prompt import Prompt, PromptConfig, again, build
from befit.propose.proposal import Proposal, Verdict
from befit.propose.proposers import reach
from befit.propose.sandbox.box import Sandbox
from befit.propose.summary import record
from befit.rundir import Stage, alone, write_text
from befit.vision.data import Images

GONE = frozenset({"outage", "rate-limit", "refused"})
"""Ways in which a call ends when nobody is there, or nobody who would answer."""

OUTAGES = 3
"""Proposals in a row without an answer after which a run stops."""


def propose(
    config: ProposeConfig,
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = warnings.warn,
    model: Model | None = None,
    data: Images | None = None,
) -> dict[str, Any]:
    """Propose, and keep the best; returns what `summary.json` holds. Everything lies in `config.out` then.

    `model` and `data` stand for `config.llm` and `config.data`: any `Model`, images in memory. Raises `BadData`, `BadBudget`,
    `IllegalArch`, `RunConflict`, `UnsupportedModel`, `NoSandbox`, `DiskFull`, or `BefitError` for a model that does not answer.
    """
    with alone(config.out):
        job = ProposeJob.open(config, progress, say, model=model, data=data)
        if model is None:
            for one in {(one.llm, one.model): one for _, lane in job.open_rows if (one := lane.arm.config)}.values():
                reach(one)
        with job.sandboxes() as (building, training):
            job.begin()
            propose_all(job, building, training)
            best = keep_best(job, training)
        return record(job, best)


def propose_all(job: ProposeJob, building: Sandbox, training: Sandbox) -> None:
    """Make every proposal that is left, the lanes in turn. Raises `BefitError` when a model has gone."""
    gates = {name: job.gate(building, images) for name, images in job.images.items()}
    silence, left, begin = dict[str, list[Proposal]](), job.open_rows, time.perf_counter()
    early: Question | None = None
    for place, (number, lane) in enumerate(job.progress(left, "proposals")):
        question = early or question_of(job, lane, number)
        early = early_question(job, left[place : place + 2])
        row = propose_one(job, lane, question, gates[lane.dataset], training)
        lane.rows.append(row)
        job.records.write(row)
        missing = silence.setdefault(lane.arm.name, [])
        missing[:] = [*missing, row] if row.stage == "attempted" and row.reason in GONE else []
        if len(missing) == OUTAGES:
            job.records.forget(missing)
            raise BefitError(
                f"{lane.arm.config.model or lane.arm.config.llm} did not answer {OUTAGES} times in a row ({row.said}); these "
                f"attempts do not count, all others are kept. When it answers again: befit resume {job.config.out}"
            )
    known = sum(row.call_seconds + row.gate_seconds + row.train_seconds for lane in job.lanes for row in lane.rows)
    seconds = time.perf_counter() - begin if left else known
    job.run.stages.append(Stage(name="proposals", seconds=seconds, reused=not left))


@dataclass(frozen=True, kw_only=True)
class Question:
    """A proposal that is asked for."""

    row: Proposal
    """As far as it is known."""
    prompt: Prompt
    """What is shown and asked."""
    model: Model
    """Who is asked."""
    early: Early | None = None
    """The first answer, if it is on its way already."""


def early_question(job: ProposeJob, here_and_next: Sequence[tuple[int, Lane]]) -> Question | None:
    """The next question, put to a server while the proposal here is made; None if it has to wait for that one."""
    if len(here_and_next) < 2:
        return None
    (here, lane), (number, other) = here_and_next
    waits = other is lane and number - job.config.ahead > here
    if waits or not other.proposer.elsewhere:
        return None
    question = question_of(job, other, number)
    return replace(question, early=Early(question.model, _request(other, number, 0, question.prompt.messages)))


def question_of(job: ProposeJob, lane: Lane, number: int) -> Question:
    """What is asked for a proposal, from the proposals that it waits for; its row is on disk."""
    config, before = lane.arm.config, number - job.config.ahead
    row = Proposal(arm=lane.arm.name, dataset=lane.dataset, seed=lane.seed, number=number, form=config.form)
    job.records.write(row)
    begin = time.perf_counter()
    model = _recorded(job, lane.proposer.model(number, lane.scored(number), folder_of(job, lane)))
    learning = time.perf_counter() - begin
    archive = replace(config.archive, at_least=lane.threshold)
    shown = choose(
        lane.scored(before), number, lane.rng(number, "choose"), archive, dataset=lane.dataset, similar=similar
    )
    prompt = build(
        lane.task,
        contract_text(recipe=config.recipe),
        shown,
        _prompt_config(config),
        space=lane.space,
        notes=notes([one for one in lane.rows if one.number < before]),
        count=lane.proposer.count,
    )
    row = replace(
        row,
        parent=shown.parent.number if shown.parent is not None else None,
        examples=prompt.examples,
        dropped=prompt.dropped,
        call_seconds=learning,
    )
    return Question(row=row, prompt=prompt, model=model)


def propose_one(job: ProposeJob, lane: Lane, question: Question, gate: Gate, training: Sandbox) -> Proposal:
    """One proposal, from its question to what it is worth."""
    row = ask(job, lane, question, gate)
    if row.stage == "new-graph":
        row = train(job, lane, row, training)
    return replace(row, done=True)


def ask(job: ProposeJob, lane: Lane, question: Question, gate: Gate) -> Proposal:
    """Ask, look at the answer, and once more if it is refused: with the reason in one line."""
    row, prompt, early = question.row, question.prompt, question.early
    messages = prompt.messages
    for call in range(1 + lane.arm.config.retries):
        request = _request(lane, row.number, call, messages)
        completion = early.answer() if early and not call else question.model.complete(request)
        row = charged(row, completion)
        if call and not completion.answered:
            return row  # what is known of the first answer is more
        if completion.answered:
            lane.proposer.heard(row.number, prompt.messages, completion.text, folder_of(job, lane))
        row = looked_at(
            lane, row, read(completion, prompt.form, parent=prompt.parent, space=lane.space), completion, gate
        )
        job.records.write(row)
        if row.stage == "new-graph" or not completion.answered:
            return row
        messages = again(messages, completion.text, row.said)
    return row


def looked_at(lane: Lane, row: Proposal, answer: Answer, completion: Completion, gate: Gate) -> Proposal:
    """The row with what an answer is, as far as the gate lets it; nothing is left of an earlier answer."""
    bare = Proposal(arm=row.arm, dataset=row.dataset, seed=row.seed, number=row.number)
    kept = {name: vars(row)[name] for name in KEPT}
    source = (
        genome.write(lane.arm.config.space, lane.options, answer.arch) if answer.arch is not None else answer.source
    )
    row = replace(bare, **kept, form=answer.form, source=source)
    if answer.reason:
        stage = "returned" if completion.answered else "attempted"
        return replace(row, stage=stage, reason=answer.reason, said=answer.said)
    return judged_by(row, gate.check(source, lane.seen(row.number)))


KEPT = (
    "parent", "examples", "dropped", "calls", "prompt_tokens", "completion_tokens", "price", "call_seconds", "gate_seconds",
)  # fmt: skip
"""What a row keeps when another answer takes the place of the first."""


def judged_by(row: Proposal, verdict: Verdict) -> Proposal:
    """The row with what the gate says."""
    keys, known = verdict.keys, verdict.same_as
    return replace(
        row,
        stage=verdict.stage,
        reason=verdict.reason,
        said=verdict.said,
        whitespace=keys.whitespace if keys else "",
        tree=keys.tree if keys else "",
        recipe=keys.recipe if keys else "",
        lemur=keys.lemur if keys else "",
        graph=verdict.graph,
        params=verdict.params,
        flops=verdict.flops,
        accuracy=known.accuracy if known and known.number >= 0 else None,
        same_as=known.number if known else None,
        gate_seconds=row.gate_seconds + verdict.seconds,
    )


def train(job: ProposeJob, lane: Lane, row: Proposal, training: Sandbox) -> Proposal:
    """The row with the network's accuracy, or why it has none; the file lies in networks/ too."""
    write_text(job.run.folder / "networks" / lane.name / f"{row.number:04d}.py", row.source)
    found = judge(training, row.source, lane.images, job.training, seed=lane.seed)
    row = replace(row, train_seconds=found.seconds)
    if found.accuracy is None:
        return replace(row, reason=found.reason, said=found.said)
    if found.accuracy > lane.threshold:
        return replace(row, stage="above-chance", accuracy=found.accuracy)
    said = f"{found.accuracy:.1%} is no better than guessing"
    return replace(row, stage="trained", accuracy=found.accuracy, reason="chance", said=said)


def charged(row: Proposal, made: Completion) -> Proposal:
    """The row with one more call."""
    known = made.price is not None and (row.calls == 0 or row.price is not None)
    return replace(
        row,
        calls=row.calls + 1,
        prompt_tokens=row.prompt_tokens + (made.prompt_tokens or 0),
        completion_tokens=row.completion_tokens + (made.completion_tokens or 0),
        price=(row.price or 0.0) + (made.price or 0.0) if known else None,
        call_seconds=row.call_seconds + made.seconds,
    )


def notes(rows: Sequence[Proposal]) -> list[str]:
    """What is worth telling about earlier proposals, the most useful first."""
    told = list[str]()
    scores = [row.accuracy for row in rows if row.accuracy is not None and is_trained(row)]
    if scores:
        told.append(
            f"{len(scores)} networks were trained: the best has {max(scores):.1%}, the median {median(scores):.1%}."
        )
    repeated = [row for row in rows if row.same_as is not None]
    if repeated:
        known = dict.fromkeys(f"{row.accuracy:.1%}" for row in repeated if row.accuracy is not None)
        told.append(
            f"{len(repeated)} proposals computed the same as an earlier one ({', '.join([*known][-4:]) or 'no score'}): other "
            "names or another layout do not make a network new."
        )
    refused = [row for row in rows if row.reason and row.same_as is None and row.stage != "attempted"]
    last = {row.reason: row.said for row in refused}
    for reason, count in Counter(row.reason for row in refused).most_common():
        told.append(f"{count} failed by {reason}, the last one so: {last[reason]}")
    return told


def folder_of(job: ProposeJob, lane: Lane) -> Path:
    """Where the lane's proposer keeps what it learns."""
    return job.run.folder / "learn" / lane.name


def _request(lane: Lane, number: int, call: int, messages: tuple[Message, ...]) -> Request:
    config = lane.arm.config
    return Request(
        messages=messages,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=lane.seed_of(number, f"call {call}"),
    )


def _recorded(job: ProposeJob, model: Model) -> Recorded:
    cache = None if job.config.cache is None else Cache(job.config.cache)
    return Recorded(model, job.attempts, cache=cache)


def _prompt_config(config: ProposeConfig) -> PromptConfig:
    return PromptConfig(
        form=config.form,
        chain_of_thought=config.chain_of_thought,
        tokens=config.prompt_tokens,
        notes=config.notes,
        recipe=config.recipe,
    )
