"""The end of a run: the best network of each dataset is trained once more, for good, and only then is the test split opened.

`best/` holds plain files: the network's source, its weights, and what is needed to use both.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from befit.errors import TrialFailed
from befit.propose.funnel import ranked
from befit.propose.job import ProposeJob, in_shape
from befit.propose.judge import Training, judge_best
from befit.propose.proposal import Proposal
from befit.propose.sandbox.box import Sandbox
from befit.rundir import digest, read_json, replacing_folder, write_json, write_tensors, write_text

BEST = "best"
"""Folder of the network that a run leaves; with several datasets, of one folder for each."""

TRIED = 3
"""Networks that are tried for the last training, the best first."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """What a run leaves for one dataset."""

    row: Proposal
    """The proposal with the highest validation accuracy."""
    validation: float
    """0 .. 1, after the last training."""
    test: float
    """0 .. 1, on images that nothing was chosen by."""
    seconds: float
    """Of the last training."""
    prm: Mapping[str, Any]
    """The hyper-parameters that it is made with."""
    folder: Path
    """Where the network lies."""


def keep_best(job: ProposeJob, sandbox: Sandbox) -> dict[str, Best]:
    """The best network of each dataset that has one."""
    found = dict[str, Best]()
    for name in job.progress(list(job.images), "best"):
        best = _best(job, name, sandbox)
        if best is not None:
            found[name] = best
    return found


def _best(job: ProposeJob, dataset: str, sandbox: Sandbox) -> Best | None:
    images, training = job.images[dataset], _final(job)
    candidates = ranked(row for lane in job.lanes if lane.dataset == dataset for row in lane.rows)[:TRIED]
    told = [
        job.config.size,
        asdict(training),
        dict(job.training.prm),
        [(row.key, row.tree, row.recipe) for row in candidates],
    ]

    def make(folder: Path) -> None:
        test = images.test.open()
        for place, row in enumerate(candidates):
            try:
                kept = judge_best(sandbox, row.source, images, test, training, seed=row.seed)
            except TrialFailed as failure:
                job.say(f"proposal {row.number} could not be trained for good ({failure.reason}): {failure}")
                continue
            write_tensors(folder / "model.safetensors", kept.weights)
            facts = {"validation": kept.validation, "test": kept.test, "seconds": kept.seconds, "prm": dict(kept.prm)}
            write_json(folder / "trained.json", {"place": place, **facts})
            return

    if not candidates:
        return None
    stage = job.run.stage("best", digest("best", dataset, told), make)
    if not (stage / "trained.json").exists():
        return None
    facts = read_json(stage / "trained.json")
    folder = job.run.folder / BEST / (dataset if len(job.images) > 1 else "")
    best = Best(row=candidates[facts.pop("place")], folder=folder, **facts)
    _write(job, dataset, best, stage / "model.safetensors")
    return best


def _final(job: ProposeJob) -> Training:
    config = job.config
    longer = max(1.0, config.final.epochs / config.train.epochs)
    return replace(job.training, config=config.final, seconds=config.seconds * longer)


def _write(job: ProposeJob, dataset: str, best: Best, weights: Path) -> None:
    images = job.images[dataset]
    facts = {
        "in_shape": list(in_shape(job.config, images)),
        "out_shape": [len(images.classes)],
        "prm": dict(best.prm),
        "classes": list(images.classes),
        "mean": list(images.mean),
        "std": list(images.std),
        "bytes": str(images.train.images.dtype) == "torch.uint8",
        "accuracy": {"validation": best.validation, "test": best.test},
        "params": best.row.params,
        "flops": best.row.flops,
        "proposal": {"arm": best.row.arm, "seed": best.row.seed, "number": best.row.number},
        "data": {"source": images.source, "notes": list(images.notes)},
    }
    with replacing_folder(best.folder) as folder:
        write_text(folder / "net.py", best.row.source)
        shutil.copyfile(weights, folder / "model.safetensors")
        write_json(folder / "card.json", facts)
        write_text(folder / "README.md", card(dataset, facts))


def card(dataset: str, facts: Mapping[str, Any]) -> str:
    """What the network is, and how to use it without befit."""
    size = "" if facts["params"] is None else f", {facts['params']:,} parameters"
    scale = " / 255" if facts["bytes"] else ""
    return f"""# A network for {dataset}

Written by a model, chosen by its accuracy on validation images: {facts["accuracy"]["validation"]:.2%} there,
{facts["accuracy"]["test"]:.2%} on test images that nothing was chosen by{size}.

`net.py` was run in a sandbox only. Read it before you run it yourself:

```python
import json

import torch
from safetensors.torch import load_file

from net import Net

facts = json.load(open("card.json"))
net = Net(tuple(facts["in_shape"]), tuple(facts["out_shape"]), facts["prm"], torch.device("cpu"))
net.load_state_dict(load_file("model.safetensors"))
net.eval()

mean, std = (torch.tensor(facts[name]).view(-1, 1, 1) for name in ("mean", "std"))
images = torch.zeros({", ".join(map(str, [1, *facts["in_shape"][1:]]))})  # pixels as they are in the file
logits = net((images{scale} - mean) / std)
print([facts["classes"][place] for place in logits.argmax(1)])
```
"""
