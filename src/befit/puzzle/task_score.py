"""Scores by a task with options: how much less sure of the right option the parent is once a sub-block is replaced.

The score is the rise of `doubt`, -log of the right option's probability among the options (`befit.lm.asking`), mean over items.
It needs the logits of the options' tokens alone, so it is measured as KL is: the parent runs once, a replacement needs its layer
and those after it, and all replacements of a layer go through the rest of the network together.

Shapes: N items, K options, B rows, T tokens, D hidden, R replacements, P tokens of all options of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from befit.errors import BadData
from befit.lm.answers import Speaker
from befit.lm.evaluation import EvalConfig, generated
from befit.lm.parent import Parent
from befit.lm.tasks.item import Item
from befit.lm.tasks.named import BUILT_IN
from befit.puzzle.score import Metric, Reference, ScoreConfig


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Items as token rows, K for each; items with fewer options are filled up with rows that do not count."""

    tokens: Tensor
    """Context and option (N * K, T), filled up with zeros behind their ends, where no causal model looks."""
    spans: Tensor
    """Where each option begins and ends (N * K, 2); both 0 in rows that do not count."""
    right: Tensor
    """The right option of each item (N,)."""

    @property
    def options(self) -> int:
        """K."""
        return len(self.tokens) // len(self.right)

    def config(self, config: ScoreConfig) -> ScoreConfig:
        """The same settings for batches of whole items."""
        return replace(config, batch=self.options * max(1, config.batch // self.options))

    def metrics(self, batch: int) -> list[Metric]:
        """One for each batch of so many rows."""
        items = batch // self.options
        return [_metric(*part) for part in zip(self.spans.split(batch), self.right.split(items), strict=True)]


def choices(items: Sequence[Item], speaker: Speaker) -> Choices:
    """Rows of items; what is longer than the model has positions for loses its oldest tokens."""
    count = max(len(item.options) for item in items)
    rows, spans = list[tuple[int, ...]](), list[tuple[int, int]]()
    for item in items:
        for context, option in (speaker.pair(item.prompt, text) for text in item.options):
            row = (*context, *option)
            rows.append(row if speaker.room is None else row[-speaker.room :])
            spans.append((len(rows[-1]) - len(option), len(rows[-1])))
        rows += [(0,)] * (count - len(item.options))
        spans += [(0, 0)] * (count - len(item.options))
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return Choices(tokens=tokens, spans=torch.tensor(spans), right=torch.tensor([item.right for item in items]))


def asked(name: str, parent: Parent, *, count: int, seed: int) -> Choices:
    """`count` items of a task: a built-in one at its first level, or a multiple-choice task of lm-evaluation-harness.

    Generated items are others than `befit eval` asks. Raises `BadData` for a task that is unknown or has no options.
    """
    speaker = Speaker(model=parent.model, tokenizer=parent.tokenizer)
    if name in BUILT_IN:
        config = EvalConfig(tasks=(name,), items=count, levels=BUILT_IN[name].levels[:1], seed=-1 - seed)
        return choices(generated(config, speaker, [])[name], speaker)
    return choices(harness_items(name, count=count, seed=seed), speaker)


def check_task(name: str) -> None:
    """Raise `BadData` now, and not when the library is made, for a task that cannot score."""
    if name not in BUILT_IN:
        harness_items(name, count=1, seed=0)


def harness_items(name: str, *, count: int, seed: int) -> tuple[Item, ...]:
    """Items of a multiple-choice task of lm-evaluation-harness. Raises `BadData` if there is none of this name, or none in it."""
    from befit.lm.harness import Asked, Harness

    found = Harness(Asked(tasks=(name,), limit=count, seed=seed)).choices()
    if not found:
        raise BadData(f"the task {name!r} has no items to score by")
    return found


def _metric(spans: Tensor, right: Tensor) -> Metric:
    """Doubt above the parent's, for the rows of one batch: each row has its item's."""

    def metric(reference: Reference, head: nn.Module) -> Callable[[Tensor], Tensor]:
        base = _doubt(reference.hidden[None], reference.head, reference.ids, spans, right)
        return lambda states: _doubt(states, head, reference.ids, spans, right) - base

    return metric


def _doubt(states: Tensor, head: nn.Module, ids: Tensor, spans: Tensor, right: Tensor) -> Tensor:
    """Doubt (R, B) from normed final states (R, B, T, D) for tokens (B, T)."""
    places = [(row, at) for row, (begin, end) in enumerate(spans.tolist()) for at in range(begin, end)]
    row, at = torch.tensor(places, device=ids.device).T
    logs = head(states[:, row, at - 1]).float().log_softmax(-1)
    wanted = ids[row, at][None, :, None].expand(len(states), -1, 1)
    totals = torch.zeros(len(states), len(ids), device=ids.device)
    totals.index_add_(1, row, logs.gather(2, wanted)[..., 0])
    absent = (spans[:, 1] == 0).to(ids.device)
    by_item = totals.masked_fill(absent, -torch.inf).unflatten(1, (len(right), -1))
    best = by_item.gather(2, right.to(ids.device)[None, :, None].expand(len(states), -1, 1))
    return (by_item.logsumexp(2, keepdim=True) - best).expand_as(by_item).flatten(1)
