"""How much faster several processes score the replacements of a parent and heal a child, and that the results are the same.

    torchrun --nproc_per_node 2 benchmarks/score_processes.py --out runs/shared
    python benchmarks/score_processes.py --out runs/shared     # afterwards: one process; compares, and writes the results

A random Llama (of about 0.9 B parameters on a GPU), a training-free library, random token ids: speed depends on none of them.
The library is built by the first of the two and read by the second. A step of healing is the difference between a long and a
short healing, so that what both do once (gathering the weights, writing them) is not in it.
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from befit.arch.decoder import Block, DecoderArch
from befit.arch.decoder_space import DecoderSpace
from befit.cost.device import this_device
from befit.lm.child import from_parent
from befit.lm.families import family_of
from befit.lm.team import Team
from befit.puzzle.heal import HealConfig, HealResult, heal
from befit.puzzle.library import Library, free
from befit.puzzle.local import LocalConfig, build_library
from befit.puzzle.score import ScoreConfig, Scores, score_batches, scores_of
from befit.rundir import Run, read_json, write_json

HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8}
SIZES: dict[str, dict[str, Any]] = {
    "cuda": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, **HEADS},
    "cpu": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, **HEADS},
}
VOCABULARY = 32_000
STEPS = (2, 4, 24)
"""Steps of three healings: one that warms up, a short and a long one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/shared"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/score_processes.json"))
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--heal-batch", type=int, default=16)
    asked = parser.parse_args()
    team, device = Team.of(asked.device), this_device(asked.device)
    run = Run(folder=asked.out)
    tokens = torch.randint(0, VOCABULARY, (asked.sequences, asked.length), generator=torch.Generator().manual_seed(1))
    library = made(device.kind, asked.out)

    def build(_: Path) -> None:
        build_library(tokens[:2], LocalConfig(epochs=0), library=library, mine=team.mine)

    team.shared_stage(run, "library", "free", build, lambda _: None)
    seconds, stage = scored(library, tokens, team, run)
    step, losses = healed(library, tokens, team, asked.out, asked.heal_batch)
    if team.main:
        own = {"score_s": seconds, "heal_step_s": step, "losses": losses}
        report(asked.out, asked.results, team.size, own, stage, f"{device.name} ({device.kind})")


def made(kind: str, out: Path) -> Library:
    """The same parent and library in every process."""
    config = LlamaConfig(**SIZES[kind], vocab_size=VOCABULARY)
    torch.manual_seed(0)  # every process draws the same weights
    with torch.device(kind):
        drawn: Any = LlamaForCausalLM(config)
        parent = drawn.to(torch.bfloat16 if kind == "cuda" else torch.float32)
    shape = family_of(config).describe(config)
    space = DecoderSpace(shape=shape, attention=("all", "/2", "1", "noop"), ffn=("100", "75", "50", "25", "noop"))
    folder = out / "stages" / "library-free"
    return Library(parent=from_parent(parent), space=space, family=family_of(config), folder=folder)


def scored(library: Library, tokens: Tensor, team: Team, run: Run) -> tuple[float, Path]:
    """Seconds of the scoring stage, and its folder."""
    config = ScoreConfig(batch=4)
    score_batches(library, tokens[:4], config, folder=run.folder / f"warm-{team.size}-{team.rank}")

    def work(to: Path) -> None:
        score_batches(library, tokens, config, folder=to, mine=team.mine)

    def finish(to: Path) -> None:
        write_json(to / "scores.json", scores_of(library, tokens, config, to).to_json())

    begin = together(team)
    stage = team.shared_stage(run, f"score{team.size}", "x", work, finish)
    return time.perf_counter() - begin, stage


def healed(library: Library, tokens: Tensor, team: Team, out: Path, batch: int) -> tuple[float, list[float]]:
    """Seconds of one step of healing, and the losses of the long healing."""
    space = library.space
    arch = DecoderArch(
        blocks=tuple(
            Block(attention=space.attention_variants(layer)[1], ffn=space.ffn_variants(layer)[2])
            for layer in range(space.shape.layers)
        )
    )
    took, results = list[float](), list[HealResult]()
    for steps in STEPS:
        config = HealConfig(tokens=steps * batch * tokens.shape[1], batch=batch, lr=1e-4, checkpoint_seconds=1e9)
        child = free(library.assemble(arch))
        begin = together(team)
        results.append(heal(child, library.parent, tokens, config, out / f"heal-{team.size}-{steps}"))
        took.append(time.perf_counter() - begin)
    return (took[2] - took[1]) / (STEPS[2] - STEPS[1]), list(results[2].losses)


def together(team: Team) -> float:
    """The time at which all processes are here and nothing is under way on their devices."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if team.size > 1:
        torch.distributed.barrier(group=team.group)
    return time.perf_counter()


def report(out: Path, results: Path, size: int, own: dict[str, Any], stage: Path, device: str) -> None:
    print(f"{size} process(es): scores {own['score_s']:.1f} s, a step of healing {own['heal_step_s']:.3f} s")
    write_json(out / f"took-{size}.json", own)
    others = [path for path in out.glob("took-*.json") if path.name != f"took-{size}.json"]
    if size > 1 or not others:
        return
    many = int(others[0].stem.split("-")[1])
    other = read_json(others[0])
    (path,) = out.glob(f"stages/score{many}-*/scores.json")
    one, shared = (Scores.from_json(read_json(file)) for file in (stage / "scores.json", path))
    pairs = [(a[name], b[name]) for a, b in zip(one.layers, shared.layers, strict=True) for name in a]
    told = {
        "processes": many,
        "score": {
            "seconds": {"1": own["score_s"], str(many): other["score_s"]},
            "speedup": own["score_s"] / other["score_s"],
            "replacements": len(pairs),
            "largest_difference": max(abs(a - b) for a, b in pairs),
        },
        "heal": {
            "seconds_a_step": {"1": own["heal_step_s"], str(many): other["heal_step_s"]},
            "speedup": own["heal_step_s"] / other["heal_step_s"],
            "largest_difference": max(abs(a - b) for a, b in zip(own["losses"], other["losses"], strict=True)),
        },
        "device": device,
        "host": platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(results, told)
    for name in ("score", "heal"):
        print(f"{name}: {many} processes are {told[name]['speedup']:.2f} times as fast; ", end="")
        print(f"largest difference {told[name]['largest_difference']:.1e} nats")


if __name__ == "__main__":
    main()
