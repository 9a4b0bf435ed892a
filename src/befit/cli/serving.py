"""The verb that measures checkpoints side by side: bench."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from befit.cli.shown import quiet, show_lines, show_rows


def bench_verb(arguments: Sequence[str]) -> None:
    """Measure checkpoints side by side, in PyTorch or in vLLM."""

    @dataclass(frozen=True)
    class Arguments:
        """Measure parent, child and baselines side by side: tokens a second, first token, each token, memory."""

        sources: tyro.conf.Positional[tuple[str, ...]]
        """Checkpoint folders, runs of `befit puzzle` (their child), exports for vLLM; others are compared with the first."""
        engine: Literal["torch", "vllm"] = "torch"
        """What runs them: PyTorch, or vLLM on a GPU."""
        workload: str = ""
        """Such as "batch=256,prompt=128,generate=256": so many requests at once."""
        device: Literal["auto", "cpu", "cuda"] = "auto"
        """Where; auto is a GPU if there is one."""
        dtype: Literal["fp32", "bf16", "fp16"] | None = None
        """Number format; bf16 on a GPU, fp32 on a CPU if not given."""
        compiled: bool = False
        """Let vLLM compile each model, which takes half a minute each."""
        out: Path | None = None
        """JSON file for the numbers."""
        log: Path = Path("vllm.log")
        """Where vLLM's own output goes."""

    asked = tyro.cli(Arguments, args=arguments, prog="befit bench")
    quiet()
    from befit.progress import Bars
    from befit.rundir import check_writable, write_json
    from befit.serve.bench import bench
    from befit.serve.engine import Setting

    if asked.out is not None:
        check_writable(asked.out)
    with Bars() as progress:
        found = bench(
            asked.sources,
            engine=asked.engine,
            workload=asked.workload,
            device=asked.device,
            dtype=asked.dtype,
            setting=Setting(compiled=asked.compiled),
            log=asked.log,
            progress=progress,
        )
    work, place = found.workload, found.device
    show_rows(
        found.table(), f"{work.batch} requests of {work.prompt} + {work.generate} tokens, {place.name}, {place.engine}"
    )
    show_lines(found.notes())
    if asked.out is not None:
        write_json(asked.out, found.to_json())
