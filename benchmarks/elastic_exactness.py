"""Is a slice of a nested model the network that is extracted from it? Over random networks and members, the largest difference.

    python benchmarks/elastic_exactness.py [--cases 1500] [--seed 0] [--threads 1] [--out FILE.json]

Every case is a random parent (a hybrid with 1, 2, 4 or 8 SSM groups, or a dense network), a random member of it (all widths
and the layers at once) and random tokens; norms, biases, windows, rotary embeddings and lower limits of time steps all vary.
The truth is transformers' own class with smaller numbers in its configuration, loaded strictly with weights that lists of
indices picked (`tests/members.py`).

whole      the nested forward of the whole parent            = the parent's class
sorted     the parent's class with sorted weights            = with its own; once more in fp64, by the nested forward
member     the nested forward on views of the sorted weights = the class of the member
decode     the same, a few tokens at a time, with a memory   = the class with its cache
gates      zeros and ones over full width                    = the slice; once more in fp64, where rounding hides nothing
reload     the extracted model, saved and loaded again by AutoModelForCausalLM = the nested forward (every eighth case)
nested     a smaller member's weights are, bit by bit, a prefix of a larger one's (a count of tensors that differ)
params     parameters that are counted = numel of the class (the largest difference)
fp32       the class in fp32 against our forward in fp64: what rounding alone does to such networks

Differences are those of logits, of hidden states after the last norm for gates, relative where values exceed 1.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from befit.arch.member import WIDTHS, Member, cut_shape
from befit.cost.count import count
from befit.cost.device import this_device
from befit.cost.workload import Workload
from befit.lm.extract import member_model
from befit.lm.network import Memory, hidden_states, logits
from befit.lm.prefix import prefix
from befit.lm.rank import rank_axes
from befit.lm.sort import sort_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import members

RELOADED = 8
"""One case of this many is saved and loaded again: it takes longer than all the rest."""


def decoded(draw: Random, tokens: Tensor, net: members.Network, weights: dict[str, Tensor], model: object) -> float:
    """The largest difference of a decode, some of it several tokens at once."""
    memory, cache, start, worst = Memory(), None, 0, 0.0
    while start < tokens.shape[1]:
        part = tokens[:, start : start + draw.choice([1, 1, 1, 4])]
        told = model(part, use_cache=True, past_key_values=cache)  # type: ignore[operator]
        worst = max(worst, members.difference(logits(net, weights, part, memory=memory), told.logits))
        cache, start = told.past_key_values, start + part.shape[1]
    return worst


def not_nested(draw: Random, parent: members.Parent, weights: dict[str, Tensor], large: Member) -> int:
    """Tensors of a member inside `large` that are not the prefix of those of `large`."""
    shape, family = parent.net.shape, parent.net.family
    own = cut_shape(shape, large)
    inside = members.member_of(draw, own)
    widths = {axis: getattr(inside, axis) or getattr(large, axis) for axis in WIDTHS}
    small = Member(**widths, layers=tuple(large.layers[layer] for layer in inside.layers))
    again = prefix(prefix(weights, shape, family, large), own, family, inside)
    return sum(not again[name].equal(weight) for name, weight in prefix(weights, shape, family, small).items())


def wide(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.double() for name, weight in weights.items()}


def case(draw: Random, *, reload: bool) -> Iterator[tuple[str, float]]:
    """Every law of one random case, with its difference."""
    config = members.any_config(draw)
    parent = members.parent_of(config, draw.randrange(2**31))
    net, family, own = parent.net, parent.net.family, parent.weights
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    tokens = torch.randint(config.vocab_size, (2, draw.randint(1, 24)), generator=generator)
    theirs = parent.model(tokens, use_cache=False).logits
    yield "whole", members.difference(logits(net, own, tokens), theirs)
    exact = logits(net, wide(own), tokens)
    yield "fp32", members.difference(theirs.double(), exact)

    weights = sort_weights(own, net.shape, family, rank_axes(net, own, tokens))
    tied = {"lm_head.weight": weights[f"{family.embedding}.weight"]} if net.shape.tied else {}
    parent.model.load_state_dict(weights | tied, strict=True)
    yield "sorted", members.difference(parent.model(tokens, use_cache=False).logits, theirs)
    yield "sorted_fp64", members.difference(logits(net, wide(weights), tokens), exact)

    member = members.member_of(draw, net.shape)
    small, views = replace(net, shape=cut_shape(net.shape, member)), prefix(weights, net.shape, family, member)
    model = members.plain(config, member, members.by_index(config, member, weights))
    ours = logits(small, views, tokens)
    yield "member", members.difference(ours, model(tokens, use_cache=False).logits)
    yield "decode", decoded(draw, tokens, small, views, model)
    yield "nested", not_nested(draw, parent, weights, member)
    counted = count(small.shape, small.shape.arch, Workload()).params
    yield "params", abs(counted - sum(weight.numel() for weight in model.parameters()))

    gates = members.gates_of(net, member)
    for name, all_weights, some in (("gates", weights, views), ("gates_fp64", wide(weights), wide(views))):
        gated = hidden_states(net, all_weights, tokens, gates=gates)[..., : member.hidden]
        yield name, members.difference(gated, hidden_states(small, some, tokens))
    if reload:
        with tempfile.TemporaryDirectory() as folder:
            member_model(config, net, weights, member).save_pretrained(folder)
            loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
            yield "reload", members.difference(loaded(tokens, use_cache=False).logits, ours)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "elastic_exactness.json")
    parser.add_argument("--cases", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found, start = defaultdict[str, list[tuple[float, int]]](list), time.perf_counter()
    for number in range(arguments.cases):
        for law, apart in case(Random(f"{arguments.seed} {number}"), reload=number % RELOADED == 0):
            found[law].append((apart, number))
        if (number + 1) % 250 == 0:
            print(f"{number + 1:6} cases, {time.perf_counter() - start:5.0f} s", flush=True)
    laws = {}
    for law, values in found.items():
        values.sort()
        apart, number = values[-1]
        laws[law] = {
            "cases": len(values),
            "largest": apart,
            "median": values[len(values) // 2][0],
            "worst_case": number,
        }
        print(f"{law:12} {len(values):6} cases   largest {apart:9.2e}   median {laws[law]['median']:9.2e}")
    device = this_device("cpu")
    result = {
        "device": {"name": device.name, "cores": device.cores, "threads": device.threads},
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__},
        "commit": commit(),
        "seed": arguments.seed,
        "cases": arguments.cases,
        "seconds": round(time.perf_counter() - start, 1),
        "laws": laws,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def commit() -> str:
    """The commit that is checked out, empty where git is not."""
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


if __name__ == "__main__":
    main()
