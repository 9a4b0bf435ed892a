"""Whether a few passes over parts of a long prompt tell how long its prefill takes.

    python benchmarks/prefill_passes.py --json benchmarks/results/prefill_passes.json

The parent that ships with befit on a CPU, prompts short enough to be measured whole, and passes as much shorter than the real
ones (`befit.cost.passes`), so that prompts have 4, 8 and 16 of them. Three numbers are taken in turns: the whole prompt at once,
the sum of every pass, and what befit does with longer prompts: the sum of three measured passes. The second against the first
is what going through in parts changes; the third against the second is the error of the line between. Processor time of one
thread is taken, the least of some calls, so that other programs matter little.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from befit.cost.device import this_device
from befit.cost.passes import Pass, passes
from befit.cost.workload import Workload
from befit.lm import timing
from befit.lm.child import build, config_for
from befit.lm.families import family_of
from befit.lm.parent import EMBEDDED, read_config
from befit.lm.timing import model_steps

LENGTHS, SIZE = (1024, 2048, 4096), 256
"""Of prompts, and of a pass."""


def whole(work: Workload) -> tuple[Pass, ...]:
    return (Pass(requests=1, tokens=work.prompt),)


def every(work: Workload) -> tuple[Pass, ...]:
    return tuple(Pass(requests=1, tokens=SIZE, past=past) for past in range(0, work.prompt, SIZE))


def some(work: Workload) -> tuple[Pass, ...]:
    with patch("befit.cost.passes.WHOLE", SIZE), patch("befit.cost.passes.PASS", SIZE):
        return passes(work)


SPLITS: dict[str, Callable[[Workload], tuple[Pass, ...]]] = {"whole_ms": whole, "every_ms": every, "passes_ms": some}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(EMBEDDED)
    config.max_position_embeddings = max(LENGTHS) + 1
    torch.manual_seed(0)
    arch = family_of(config).describe(config).arch
    model = build(config_for(config, arch), device="cpu", dtype=torch.float32)
    rows = []
    for length in LENGTHS:
        work = Workload(batch=1, prompt=length, generate=1, weights="fp32", cache="fp32")
        rows.append({"prompt": length} | measured(model, work, asked.repeats))
        print(rows[-1])
    device = this_device("cpu")
    told = {"device": device.name, "engine": device.engine, "tokens": SIZE, "rows": rows}
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


def measured(model: object, work: Workload, repeats: int) -> dict[str, float]:
    """Milliseconds of one prefill: at once, by every pass, by three passes."""
    steps, least = {}, {}
    for name, split in SPLITS.items():
        with patch.object(timing, "passes", split):
            steps |= {(name, number): step for number, step in enumerate(model_steps(model, work)[:-1])}
    for _ in range(repeats + 1):  # the first warms up
        for key, step in steps.items():
            begin = time.process_time()
            step()
            took = 1000 * (time.process_time() - begin)
            least[key] = min(took, least.get(key, took))
    return {
        name: sum(part.times * least[name, number] for number, part in enumerate(split(work)))
        for name, split in SPLITS.items()
    }


if __name__ == "__main__":
    main()
