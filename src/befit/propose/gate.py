"""The gate: what a proposal must pass before it may cost training time, the cheapest look first.

    parse ─ policy ─ tree seen? ─ build, run forward and backward in the sandbox ─ budget ─ graph seen? ─ may be trained

Every refusal has a reason code that is counted and one line that can be sent back to a model. Nothing here computes on data:
the network is built on the meta device, where tensors have shapes and no numbers, so that parameters, FLOPs and the operation
graph are exact and cost milliseconds. A network that cannot be built without numbers is built with them, in the same sandbox.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from befit.budget import Budget, human
from befit.errors import BadBudget, BadProposal
from befit.propose.contract import parse
from befit.propose.fingerprint import Keys, keys_of
from befit.propose.policy import lint
from befit.propose.proposal import Known, Stage, Verdict
from befit.propose.sandbox.box import Result, Sandbox
from befit.propose.sandbox.limits import Limits
from befit.propose.sandbox.tasks import inspect

FLOAT = 4
"""Bytes of a weight in fp32."""

Seen = Callable[[str, str], Known | None]
"""(rung, key) to the earlier proposal that has the key; rung is "tree" or "graph"."""

FAILED = {"invalid": "build"}
"""The sandbox's reasons that are called otherwise here; the others are timeout, out-of-memory, crash and output."""


class Gate:
    """Looks at proposals for one task, one after the other."""

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        in_shape: tuple[int, ...],
        classes: int,
        prm: Mapping[str, Any],
        budget: Budget | None = None,
        recipe: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Nothing is run yet.

        Args:
            sandbox: Open; networks are built in it.
            in_shape: (N, C, H, W) as the network is told; it must take any N.
            classes: Of the task.
            prm: Hyper-parameters by name; a file may declare more, which get a number between 0 and 1.
            budget: Absolute bounds on params, macs, flops and weights; None allows everything.
            recipe: Whether the file brings its own training, which then must run, and counts for being new.
            limits: Of one build.

        Raises:
            BadBudget: A bound on what is not known before training, or a relative one.
        """
        self._sandbox, self._limits, self._recipe = sandbox, limits or Limits(), recipe
        self._budget = checked(budget)
        self._arguments = {"in_shape": in_shape, "out_shape": (classes,), "prm": dict(prm), "recipe": recipe}

    def check(self, source: str, seen: Seen) -> Verdict:
        """How far a file gets. Raises nothing that the file is to blame for."""
        begun = time.monotonic()
        passed: dict[str, Any] = {"stage": "returned"}
        try:
            self._pass(source, seen, passed)
        except _Refused as refused:
            passed |= {"reason": refused.reason, "said": str(refused), "same_as": refused.same_as}
        return Verdict(**passed, seconds=time.monotonic() - begun)

    def _pass(self, source: str, seen: Seen, passed: dict[str, Any]) -> None:
        """Fill in `passed` step by step, until one refuses."""
        try:
            tree = parse(source, recipe=self._recipe)
            passed |= _stage("parsed") | {"keys": keys_of(source)}
            lint(tree, recipe=self._recipe)
        except BadProposal as error:
            raise _Refused(str(error), reason=error.reason) from None
        passed |= _stage("allowed")
        keys: Keys = passed["keys"]
        self._new("tree", keys.tree, keys, seen)
        passed |= _stage("new-tree")
        passed |= _stage("built") | self._built(source)
        self._keep_budget(passed["params"], passed["flops"])
        passed |= _stage("in-budget")
        if passed["graph"]:
            self._new("graph", passed["graph"], keys, seen)
        passed |= _stage("new-graph")

    def _new(self, rung: str, key: str, keys: Keys, seen: Seen) -> None:
        """Refuse what an earlier proposal has been."""
        known = seen(rung, f"{key}+{keys.recipe}" if self._recipe else key)
        if known is not None:
            score = f"no score ({known.reason})" if known.accuracy is None else f"{known.accuracy:.1%} accuracy"
            what = "network and training" if self._recipe else "network"
            when = f"was tried before, as proposal {known.number}" if known.number >= 0 else "is known already"
            said = f"this {what} {when}: {score}; propose one that computes something else"
            raise _Refused(said, reason=f"seen-{rung}", same_as=known)

    def _built(self, source: str) -> dict[str, Any]:
        """params, flops and graph, from the sandbox."""
        result = self._sandbox.run(inspect, source=source, arguments=self._arguments, limits=self._limits)
        if not result.ok:
            raise _Refused(_said(result), reason=FAILED.get(result.reason or "", result.reason or "crash"))
        match dict(result.value):
            case {"params": int(params), "flops": int(flops), "graph": str(graph)} if params >= 0 and flops >= 0:
                return {"params": params, "flops": flops, "graph": graph[:32]}
            case _:
                raise _Refused("the process that built it left an answer of another form", reason="output")

    def _keep_budget(self, params: int, flops: int) -> None:
        if self._budget is None:
            return
        costs = _costs(params, flops)
        broken = [bound for bound in self._budget.bounds if not bound.met(costs[bound.cost])]
        if broken:
            said = "; ".join(f"{human(one.cost, costs[one.cost])} where {one} is asked for" for one in broken)
            raise _Refused(f"over budget: {said}; make the network smaller", reason="budget")


class _Refused(Exception):
    """A step said no."""

    def __init__(self, said: str, *, reason: str, same_as: Known | None = None) -> None:
        super().__init__(said)
        self.reason, self.same_as = reason, same_as


def _stage(stage: Stage) -> dict[str, Any]:
    return {"stage": stage}


def _costs(params: int, flops: int) -> dict[str, float]:
    """All that counts alone tell, by the names that budgets use."""
    return {"params": params, "flops": flops, "macs": flops / 2, "weight_bytes": FLOAT * params}


def checked(budget: Budget | None) -> Budget | None:
    """The budget, if it is kept or broken by what counts alone tell. Raises `BadBudget`."""
    known = _costs(0, 0)
    for bound in budget.bounds if budget else ():
        if bound.cost not in known:
            raise BadBudget(
                f"budget {bound}: not known before a proposal is trained; bound params, macs, flops or weights instead"
            )
        if bound.relative:
            raise BadBudget(f"budget {bound}: there is no parent that it could be relative to; give a number")
    return budget


def _said(result: Result) -> str:
    """Why it was not built, in one line for a model."""
    message = " ".join(result.message.split())
    if result.reason == "invalid":
        return f"the network cannot be built and run: {message}"
    return f"building the network ended with {result.reason}: {message}"
