"""Made-up rows of a run, as a loop would write them: several arms, datasets and seeds."""

import random
from collections.abc import Iterator

from befit.propose.proposal import STAGES, Proposal, Stage

LOST: dict[Stage, tuple[str, ...]] = {
    "attempted": ("server", "timeout"),
    "returned": ("no-code", "parse"),
    "parsed": ("policy",),
    "allowed": ("seen-tree",),
    "new-tree": ("build", "out-of-memory"),
    "built": ("budget",),
    "in-budget": ("seen-graph",),
    "new-graph": ("nan", "timeout"),
    "trained": ("chance",),
}
"""What stops a proposal after each stage."""


def network(width: int) -> str:
    """A network's file; another width is another network."""
    return f"""import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_shape[1], {width}, 3, padding=1), nn.BatchNorm2d({width}), nn.ReLU())
        self.head = nn.Linear({width}, out_shape[0])

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""


def row(stage: Stage = "above-chance", **more: object) -> Proposal:
    """One finished row."""
    told: dict = {"arm": "", "dataset": "digits", "seed": 0, "number": 0, "stage": stage, "done": True, "calls": 1}
    if stage in ("trained", "above-chance"):
        told["accuracy"] = 0.5
    if stage != STAGES[-1]:
        told["reason"] = LOST[stage][0]
    return Proposal(**{**told, **more})  # type: ignore[arg-type]


def run(
    arm: str,
    dataset: str,
    seed: int,
    attempts: int,
    *,
    chance: float = 0.1,
    skill: float = 0.6,
    price: float | None = None,
) -> Iterator[Proposal]:
    """The rows of a run whose accuracies rise a little; `skill` moves yield and accuracy."""
    rng = random.Random(f"{arm} {dataset} {seed}")
    best = None
    for number in range(attempts):
        place = next((at for at in range(len(STAGES) - 1) if rng.random() > 0.88 + 0.1 * skill), len(STAGES) - 1)
        stage = STAGES[place]
        trained = place >= STAGES.index("trained")
        accuracy = chance + (0.95 - chance) * min(1.0, skill * (0.6 + 0.3 * rng.random() + 0.3 * number / attempts))
        accuracy = round(accuracy if place == len(STAGES) - 1 else chance, 4)
        repeated = stage in ("allowed", "in-budget") and best is not None
        width = 8 + 4 * number + seed
        yield row(
            stage,
            **{"arm": arm, "dataset": dataset, "seed": seed, "number": number},
            reason="" if place == len(STAGES) - 1 else rng.choice(LOST[stage]),
            accuracy=accuracy if trained else best[1] if repeated and best else None,
            same_as=best[0] if repeated and best else None,
            source=network(width) if place >= 2 else "",
            params=28 * width + 10 * width + 10 if place >= STAGES.index("built") else None,
            flops=2 * 64 * 9 * width if place >= STAGES.index("built") else None,
            **{"prompt_tokens": 1500 + rng.randrange(800), "completion_tokens": 300 + rng.randrange(500)},
            price=price,
            call_seconds=3 + 4 * rng.random(),
            gate_seconds=0.04 if place >= 2 else 0.0,
            train_seconds=5 + rng.random() if place >= STAGES.index("new-graph") else 0.0,
        )
        if trained and (best is None or accuracy > best[1]):
            best = number, accuracy
