"""How much faster scoring is when it reuses the parent's work, on the embedded parent, and that the numbers are the same.

    python benchmarks/score_reuse.py [--threads 1] [--sequences 8] [--rounds 3] [--out benchmarks/results/score_reuse.json]

reuse     `befit.puzzle.score.score`: the parent once, its layer inputs kept, only the layers after a replacement, in batches
naive     for every replacement, the parent and the child assembled and run whole, and their KL
cached    as naive, but the parent's log-probabilities are computed once and kept

The weights are training-free (speed does not depend on them), the text is held-out documentation. The three take turns in
every round and the fastest round of each counts, so that other processes on the machine disturb the ratios little.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from befit.arch.decoder import DecoderArch
from befit.arch.decoder_space import DecoderSpace
from befit.cost.device import this_device
from befit.lm.data import load_blocks
from befit.lm.parent import load_parent
from befit.puzzle.library import Library
from befit.puzzle.local import LocalConfig, build_library
from befit.puzzle.score import ScoreConfig, Scores, score

Found = dict[tuple[int, str], float]


def children(library: Library, scores: Scores) -> dict[tuple[int, str], Any]:
    """Every child that was scored, assembled: layer and block name -> model."""
    space, own = library.space, library.space.shape.arch.blocks
    blocks = {(i, b.name): b for i in range(space.shape.layers) for b in space.blocks(i) if b.name in scores.layers[i]}
    return {
        (i, name): library.compose(DecoderArch(blocks=(*own[:i], block, *own[i + 1 :])))
        for (i, name), block in blocks.items()
    }


@torch.inference_mode()
def whole(parent: Any, models: dict[tuple[int, str], Any], tokens: Tensor, batch: int, *, cached: bool) -> Found:
    """The same scores from whole models."""
    total = dict.fromkeys(models, 0.0)
    for ids in tokens.split(batch):
        known = parent(ids, use_cache=False).logits.log_softmax(-1) if cached else None
        for key, child in models.items():
            wanted = parent(ids, use_cache=False).logits.log_softmax(-1) if known is None else known
            logs = child(ids, use_cache=False).logits.log_softmax(-1)
            kl = F.kl_div(logs, wanted, log_target=True, reduction="none").sum(-1).mean(1)
            total[key] += float(kl.sum()) / len(tokens)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "score_reuse.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parent = load_parent(None, device="cpu", dtype=torch.float32)
    blocks = load_blocks(None, parent.tokenizer, length=128, train_rows=1, held_out_rows=arguments.sequences)
    config, tokens = ScoreConfig(batch=8), blocks.held_out
    with tempfile.TemporaryDirectory() as made:
        folder, space = Path(made), DecoderSpace(shape=parent.shape)
        library = Library(parent=parent.model, space=space, family=parent.family, folder=folder / "library")
        build_library(blocks.train, LocalConfig(epochs=0), library=library)
        scores = score(library, tokens, config, folder=folder / "scores")
        models = children(library, scores)
        ways: dict[str, Callable[[int], Any]] = {
            "reuse": lambda n: score(library, tokens, config, folder=folder / f"scores-{n}"),
            "cached": lambda _: whole(parent.model, models, tokens, config.batch, cached=True),
            "naive": lambda _: whole(parent.model, models, tokens, config.batch, cached=False),
        }
        seconds, found = {name: list[float]() for name in ways}, dict[str, Any]()
        for number in range(arguments.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                found[name] = way(number)
                seconds[name].append(round(time.perf_counter() - start, 3))
                print(f"{name:8} {seconds[name][-1]:7.2f} s", flush=True)
    reused = {key: found["reuse"].layers[key[0]][key[1]] for key in models}
    apart = {name: max(abs(found[name][key] - value) for key, value in reused.items()) for name in ("cached", "naive")}
    best = {name: min(times) for name, times in seconds.items()}
    ratios = {name: round(best[name] / best["reuse"], 3) for name in ("naive", "cached")}
    for name, ratio in ratios.items():
        print(f"reuse is {ratio:.2f} times as fast as {name}; largest difference {apart[name]:.2g} nats")
    device = this_device("cpu")
    result = {
        "device": {"name": device.name, "cores": device.cores, "threads": device.threads},
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__},
        "replacements": len(models),
        "tokens": tokens.numel(),
        "seconds": seconds,
        "times_as_fast": ratios,
        "largest_difference_nats": apart,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
