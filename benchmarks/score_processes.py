"""How much faster several processes score the replacements of a parent, and that the scores are the same.

    torchrun --nproc_per_node 2 benchmarks/score_processes.py --out runs/shared
    python benchmarks/score_processes.py --out runs/shared     # afterwards: one process; compares, and writes the results

A random Llama (of about 0.9 B parameters on a GPU), a training-free library, random token ids: speed depends on none of them.
The library is built by the first of the two and read by the second.
"""

import argparse
import platform
import time
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from befit.arch.decoder_space import DecoderSpace
from befit.cost.device import this_device
from befit.lm.child import from_parent
from befit.lm.families import family_of
from befit.lm.team import Team
from befit.puzzle.library import Library
from befit.puzzle.local import LocalConfig, build_library
from befit.puzzle.score import ScoreConfig, Scores, score_batches, scores_of
from befit.rundir import Run, read_json, write_json

HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8}
SIZES = {
    "cuda": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, **HEADS},
    "cpu": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, **HEADS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/shared"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/score_processes.json"))
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    asked = parser.parse_args()
    team, device = Team.of(asked.device), this_device(asked.device)
    run, config = Run(folder=asked.out), LlamaConfig(**SIZES[device.kind], vocab_size=32_000)
    torch.manual_seed(0)  # every process draws the same weights
    with torch.device(device.kind):
        parent = LlamaForCausalLM(config).to(torch.bfloat16 if device.kind == "cuda" else torch.float32)
    shape = family_of(config).describe(config)
    space = DecoderSpace(shape=shape, attention=("all", "/2", "1", "noop"), ffn=("100", "75", "50", "25", "noop"))
    library = Library(
        parent=from_parent(parent), space=space, family=family_of(config), folder=asked.out / "stages" / "library-free"
    )
    tokens = torch.randint(0, 32_000, (asked.sequences, asked.length), generator=torch.Generator().manual_seed(1))
    team.shared_stage(
        run,
        "library",
        "free",
        lambda _: _built(tokens, library, team),
        lambda _: None,
    )
    config = ScoreConfig(batch=4)
    warm = asked.out / f"warm-{team.size}-{team.rank}"
    score_batches(library, tokens[:4], config, folder=warm)
    begin = time.perf_counter()
    stage = team.shared_stage(
        run,
        f"score{team.size}",
        "x",
        lambda to: score_batches(library, tokens, config, folder=to, mine=team.mine),
        lambda to: write_json(to / "scores.json", scores_of(library, tokens, config, to).to_json()),
    )
    seconds = time.perf_counter() - begin
    if team.main:
        report(asked.out, asked.results, team.size, seconds, stage, device.name)


def _built(tokens: Tensor, library: Library, team: Team) -> None:
    build_library(tokens[:2], LocalConfig(epochs=0), library=library, mine=team.mine)


def report(out: Path, results: Path, size: int, seconds: float, stage: Path, device: str) -> None:
    print(f"{size} process(es): {seconds:.1f} s")
    write_json(out / f"seconds-{size}.json", seconds)
    others = [path for path in out.glob("seconds-*.json") if path.name != f"seconds-{size}.json"]
    if size > 1 or not others:
        return
    many = int(others[0].stem.split("-")[1])
    (path,) = out.glob(f"stages/score{many}-*/scores.json")
    one, shared = (Scores.from_json(read_json(file)) for file in (stage / "scores.json", path))
    pairs = [(a[name], b[name]) for a, b in zip(one.layers, shared.layers, strict=True) for name in a]
    told = {
        "seconds": {"1": seconds, str(many): read_json(others[0])},
        "speedup": seconds / read_json(others[0]),
        "replacements": len(pairs),
        "largest_difference": max(abs(a - b) for a, b in pairs),
        "device": device,
        "host": platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(results, told)
    print(
        f"{many} processes are {told['speedup']:.2f} times as fast; largest difference {told['largest_difference']:.1e} nats"
    )


if __name__ == "__main__":
    main()
