"""`befit elastic` from a parent to a nested model, each stage kept on disk.

    parent ─ rank ─ sort ─ price ─ score axes ─ train(router, budgets, teacher) ─ write ─ evaluate ─ report

After this, `befit cut` takes any size out of the nested model in seconds. Every stage is stored under a key made from all that
went into it; a run that was killed goes on where it stopped, in training at its last checkpoint.

Source: Nemotron Elastic (arXiv 2511.16664).
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from befit.arch.member import Member, cut_shape
from befit.elastic import baselines
from befit.elastic.budgets import Price, check_targets, price_of
from befit.elastic.config import ElasticConfig
from befit.elastic.curriculum import ElasticTraining
from befit.elastic.gains import Gains
from befit.elastic.job import LATENCY, UNMEASURED, Job, targets_of
from befit.elastic.manifest import Quality as Judged
from befit.elastic.manifest import evaluated, read_manifest, write_manifest
from befit.elastic.nested import FOLDER, Nested, hash_of, write_nested
from befit.elastic.record import Trained
from befit.elastic.router import Router
from befit.elastic.space import NestedSpace
from befit.elastic.summary import Findings, record
from befit.elastic.train import train
from befit.lm.data import digest as tensor_digest
from befit.lm.depth import DepthRanking, Method, compare_methods
from befit.lm.network import head, hidden_states
from befit.lm.precision import DTYPES
from befit.lm.prefix import prefix
from befit.lm.quality import Predictor, judge
from befit.lm.rank import AxisRanking, axis_scores, rank_axes
from befit.lm.sort import sort_weights
from befit.lm.team import Team
from befit.progress import Progress, silent
from befit.rundir import digest, read_json, read_tensors, write_json, write_tensors


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """What matters in the parent, and how much."""

    axes: AxisRanking
    depth: dict[Method, DepthRanking]


def elastic(config: ElasticConfig, *, progress: Progress = silent) -> dict[str, Any]:
    """Train a nested model; returns what `summary.json` holds. Everything lies in `config.out` when it returns.

    Raises `BadBudget`, `BadData`, `UnsupportedModel`, `IllegalArch`, `Infeasible`, `RunConflict` or `DiskFull`; where several
    processes make one nested model (`befit.lm.team`), the main one does, and the others raise `SystemExit`.
    """
    team = Team.of(config.device)
    with team.one_voice():
        return _elastic(Job.open(config, team, progress if team.main else silent))


def _elastic(job: Job) -> dict[str, Any]:
    ranks = rank_stage(job)
    parent = sort_weights(job.weights, job.net.shape, job.parent.family, ranks.axes)
    blank = blank_of(job, ranks, parent)
    scores = score_stage(job, blank)
    nested = start_of(job, blank, scores)
    trained = train_stage(job, "train", nested, job.config.training)
    rivals = rival_stage(job, blank, nested)
    round_weights(nested, job.dtype)
    with job.team.first():
        if job.team.main:
            write_stage(job, nested)
            results = evaluate_stage(job, parent, nested, rivals, scores)
            record(Findings(job, ranks.axes, ranks.depth, nested, trained, scores, results))
    return read_json(job.run.folder / "summary.json")


def rank_stage(job: Job) -> Ranks:
    """Rank every axis on text, and layers by every measure."""

    def make(folder: Path) -> None:
        axes = rank_axes(job.net, job.weights, job.rank_rows, progress=job.progress)
        write_tensors(folder / "axes.safetensors", axes.tensors())
        kept = max(1, round(job.net.shape.layers * job.config.least))  # no member has fewer
        depth = compare_methods(job.net, job.weights, job.depth_rows, keep_at_least=kept, progress=job.progress)
        write_json(folder / "depth.json", {method: asdict(found) for method, found in depth.items()})

    folder = job.stage("rank", job.ranked_key, make)
    told = read_json(folder / "depth.json")
    depth = {method: DepthRanking(**{n: _tuple(v) for n, v in found.items()}) for method, found in told.items()}
    return Ranks(axes=AxisRanking.from_tensors(read_tensors(folder / "axes.safetensors")), depth=depth)


def blank_of(job: Job, ranks: Ranks, parent: Mapping[str, Tensor]) -> Nested:
    """The nested model before training: the sorted parent, and a router that knows no better than uniform ratios."""
    config = job.config
    space = job.space(ranks.depth[config.depth].removal)
    bounded = targets_of(config, job.costs | UNMEASURED)[0].cost
    latency = bounded == LATENCY
    price = price_stage(job, space, parent) if latency else price_of(job.net.shape, bounded, job.workload)
    costs = job.costs | ({LATENCY: price(space.whole)} if latency else {})
    targets = targets_of(config, costs)
    check_targets(space, price, targets)
    shares = [target.share for target in targets]
    return Nested(
        net=job.net,
        config=job.plain,
        space=space,
        targets=targets,
        workload=job.workload,
        router=Router(space, shares, price=price),
        gains=Gains(job.net.shape, job.parent.family, shares) if config.training.gains else None,
        weights=dict(parent),
        price=price if latency else None,
    )


def price_stage(job: Job, space: NestedSpace, parent: Mapping[str, Tensor]) -> Price:
    """Measure what members take on this device, once."""
    from befit.elastic.latency import MemberLatency, measure_prices

    def make(folder: Path) -> None:
        found = measure_prices(
            job.net,
            job.plain,
            parent,
            space,
            job.workload,
            job.device,
            effort=job.config.measure,
            progress=job.progress,
        )
        write_json(folder / "latency.json", found.to_json())

    told = [job.parent.digest, space.to_json(), asdict(job.workload), job.device.name, repr(job.config.measure)]
    folder = job.stage("price", digest("price", told), make)
    return MemberLatency.from_json(read_json(folder / "latency.json"))


def score_stage(job: Job, nested: Nested) -> dict[str, list[float]]:
    """The KL of every option of every axis alone, untrained: what greedy and additive choices go by."""
    space = nested.space
    options = {axis: [space.member({axis: k}) for k in range(len(own))] for axis, own in space.axes.items()}

    def make(folder: Path) -> None:
        found = axis_scores(job.net, nested.weights, options, job.depth_rows, progress=job.progress)
        write_json(folder / "scores.json", found)

    return read_json(job.stage("score", digest("score", job.ranked_key, space.to_json()), make) / "scores.json")


def start_of(job: Job, blank: Nested, scores: Mapping[str, list[float]]) -> Nested:
    """The nested model that is trained: with a router that sets out from a baseline's choices."""
    shares = [target.share for target in blank.targets]
    choose = {"greedy": baselines.greedy, "additive": baselines.additive}.get(job.config.start)
    start = (
        {}
        if choose is None
        else {share: choose(blank.space, blank.cost, blank.limit(share), scores) for share in shares}
    )
    router = Router(blank.space, shares, price=blank.cost, start=start)
    return replace(blank, router=router, weights=dict(blank.weights))


def train_stage(job: Job, name: str, nested: Nested, config: ElasticTraining) -> Trained:
    """Train a nested model in place, or read what an earlier call trained."""
    told = [job.ranked_key, nested.space.to_json(), [asdict(t) for t in nested.targets], asdict(config)]
    told += [job.config.start, asdict(job.workload), {str(share): m.to_json() for share, m in nested.chosen.items()}]
    key, teacher = digest(name, told, tensor_digest(*job.blocks.train)), dict(nested.weights)
    # Training changes what it is given; the copy is trained, then read back like that of an earlier call.
    fresh = replace(
        nested, weights=dict(teacher), router=copy.deepcopy(nested.router), gains=copy.deepcopy(nested.gains)
    )
    folder = job.run.stage(  # entered by all processes
        name, key, lambda folder: train(fresh, teacher, job.blocks.train, config, folder, job.progress) and None
    )
    return train(nested, teacher, job.blocks.train, config, folder)


def rival_stage(job: Job, blank: Nested, nested: Nested) -> dict[str, Nested]:
    """With `--baselines`, what else the same tokens could have made: uniform ratios, and the smallest size on its own."""
    if not job.config.baselines or nested.targets[-1].share >= 1:
        return {}
    shares = [target.share for target in nested.targets if target.share < 1]
    uniform = {share: baselines.uniform(blank.space, blank.cost, blank.limit(share)) for share in shares}
    alone = {shares[-1]: nested.member(shares[-1])}
    stages = tuple(replace(stage, weights=()) for stage in job.config.training.stages)
    rivals = {
        "uniform": (replace(blank, chosen=uniform, weights=dict(blank.weights)), job.config.training),
        "separate": (
            replace(blank, chosen=alone, targets=blank.targets[-1:], weights=dict(blank.weights)),
            replace(job.config.training, stages=stages, mode="sampled"),
        ),
    }
    for name, (rival, config) in rivals.items():
        train_stage(job, f"train-{name}", rival, config)
        round_weights(rival, job.dtype)
    return {name: rival for name, (rival, _) in rivals.items()}


def round_weights(nested: Nested, dtype: str) -> None:
    """Give the weights the values that the checkpoint's format can hold, so that what is judged is what is written."""
    for name, weight in nested.weights.items():
        nested.weights[name] = weight.to(DTYPES[dtype]).to(weight.dtype)


def write_stage(job: Job, nested: Nested) -> None:
    """Write the nested checkpoint."""
    own = {name: weight.to("cpu", DTYPES[job.dtype]) for name, weight in nested.weights.items()}
    rotary = None if job.net.rotary is None else copy.deepcopy(job.net.rotary).cpu()
    plain = replace(nested, weights=own, net=replace(job.net, rotary=rotary))
    write_nested(job.run.folder / FOLDER, plain, job.parent.tokenizer)


def evaluate_stage(
    job: Job,
    parent: Mapping[str, Tensor],
    nested: Nested,
    rivals: Mapping[str, Nested],
    scores: Mapping[str, list[float]],
) -> dict[str, Any]:
    """Judge every member, trained and untrained, the baselines and budgets that nobody trained for; on held-out text."""
    config = job.config
    told = [job.run.stages[-1].name, config.between, config.seed, config.start, tensor_digest(job.blocks.held_out)]
    told += [hash_of(one.weights, job.net.shape) for one in (nested, *rivals.values())]
    told += [[asdict(target) for target in nested.targets], nested.space.to_json()]

    def make(folder: Path) -> None:
        found = judge_all(job, parent, nested, rivals, scores)
        if nested.targets[0].cost == LATENCY:
            found["latency_ms"] = time_members(job, nested)
        write_json(folder / "results.json", found)

    results = read_json(job.run.stage("evaluate", digest("evaluate", told), make) / "results.json")
    folder = job.run.folder / FOLDER
    quality = {row["share"]: Judged(**row["trained"]) for row in results["members"]}
    latency = {float(share): ms for share, ms in results.get("latency_ms", {}).items()}
    write_manifest(folder, evaluated(read_manifest(folder, nested.net.shape), quality, latency))
    return results


def time_members(job: Job, nested: Nested) -> dict[str, float]:
    """Share -> latency of the trained members as they will be cut, measured in turns on this device."""
    from befit.lm.member_timing import MemberTimer

    timer = MemberTimer(
        net=job.net,
        config=job.plain,
        weights=nested.weights,
        workload=job.workload,
        device=job.device,
        effort=job.config.measure,
        progress=job.progress,
    )
    shares = [target.share for target in nested.targets]
    times = timer([nested.member(share) for share in shares])
    return {repr(share): float(ms) for share, ms in zip(shares, times, strict=True)}


def judge_all(
    job: Job,
    parent: Mapping[str, Tensor],
    nested: Nested,
    rivals: Mapping[str, Nested],
    scores: Mapping[str, list[float]],
) -> dict[str, Any]:
    """Loss and KL of everything there is to compare."""
    judged = _Judge(job, parent)
    shares = [target.share for target in nested.targets]
    limits = {share: nested.limit(share) for share in shares if share < 1}
    pick = {
        "uniform": lambda limit: baselines.uniform(nested.space, nested.cost, limit),
        "greedy": lambda limit: baselines.greedy(nested.space, nested.cost, limit, scores),
        "random": lambda limit: baselines.random(nested.space, nested.cost, limit, job.config.seed),
        "additive": lambda limit: baselines.additive(nested.space, nested.cost, limit, scores),
    }
    jobs = [(name, share, choose(limit)) for name, choose in pick.items() for share, limit in limits.items()]
    members = {share: nested.member(share) for share in [*shares, *_between(shares, job.config.between)]}
    results: dict[str, Any] = {"members": [], "baselines": [], "parent": judged(parent, nested.space.whole)}
    for share, member in job.progress(members.items(), "evaluate", len(members)):
        own = judged(nested.folded(nested.weights, share), member)
        results["members"].append(
            {"share": share, "member": member.to_json(), "trained": own, "untrained": judged(parent, member)}
        )
    for name, share, member in job.progress(jobs, "baselines", len(jobs)):
        row = {"name": name, "share": share, "member": member.to_json(), "trained": False}
        results["baselines"].append(row | judged(parent, member))
    for name, rival in rivals.items():
        for target in rival.targets:
            if target.share < 1:
                member = rival.member(target.share)
                row = {"name": name, "share": target.share, "member": member.to_json(), "trained": True}
                own = judged(rival.folded(rival.weights, target.share), member)
                results["baselines"].append(row | own | {"tokens": job.config.training.tokens})
    return results


class _Judge:
    """Loss and KL of members on the held-out text; what the parent says of it is computed once."""

    def __init__(self, job: Job, parent: Mapping[str, Tensor]) -> None:
        self.job, self.rows = job, job.blocks.held_out
        self.parent = self._predictor(parent, None)
        self.heard: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, weights: Mapping[str, Tensor], member: Member) -> dict[str, float]:
        found = judge(self._predictor(weights, member), self.rows, self._said)
        return {"loss": found.loss, "kl": max(found.kl, 0.0)}

    def _said(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        key = ids.data_ptr()  # batches are views of the same rows
        if key not in self.heard:
            self.heard[key] = self.parent(ids)
        return self.heard[key]

    def _predictor(self, weights: Mapping[str, Tensor], member: Member | None) -> Predictor:
        net, device = self.job.net, self.job.device.kind
        if member is not None:
            weights = prefix(weights, net.shape, net.family, member)
            net = replace(net, shape=cut_shape(net.shape, member))
        return lambda ids: (hidden_states(net, weights, ids.to(device)), head(net, weights))


def _between(shares: list[float], count: int) -> list[float]:
    """At most `count` budgets, evenly spread from the largest to the smallest trained one, none of those."""
    most, least = shares[0], shares[-1]
    points = [most + (least - most) * (i + 1) / (count + 1) for i in range(count)]
    return [point for point in points if all(abs(point - share) > 1e-6 for share in shares)]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
