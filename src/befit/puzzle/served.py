"""The cost tables and measured times of a run whose device is vLLM (`--engine vllm`): same values, another clock.

Every model is built by vLLM from its architecture, with made-up weights, so what is timed is the shape that the child will have
there. All batch sizes of a run are served by one start of each model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from befit.arch.decoder import DecoderArch
from befit.cost.latency import Latency, LatencyTable
from befit.cost.workload import Workload
from befit.puzzle.job import Job
from befit.puzzle.prices import Prices
from befit.rundir import read_json, write_json
from befit.serve.engine import Setting, Vllm
from befit.serve.table import measure_served, serve_arch, served_key

LOG = "vllm.log"
"""What vLLM prints, in the run directory."""
SETTING = Setting()
"""How vLLM is run for a table."""


def served_stage(job: Job, parent: Any, batches: Sequence[int]) -> dict[int, Prices]:
    """What every option costs in vLLM at each batch size; `parent` is its transformers configuration."""
    workloads = [computed(job, replace(job.workload, batch=batch)) for batch in batches]

    def make(folder: Path) -> None:
        with Vllm(SETTING, job.run.folder / LOG) as engine:
            priced = measure_served(
                parent, job.space, workloads, job.device, engine, effort=job.config.measure, progress=job.progress
            )
        write_json(folder / "room.json", asdict(priced.room))
        for table in priced.tables:
            write_json(folder / f"latency-{table.workload.batch}.json", table.to_json())

    key = served_key(job.space, workloads, job.device, SETTING, job.config.measure)
    folder = job.stage("measure", key, make)
    tables = {batch: LatencyTable.from_json(read_json(folder / f"latency-{batch}.json")) for batch in batches}
    return {
        batch: Prices(space=job.space, workload=replace(job.workload, batch=batch), latency=table)
        for batch, table in tables.items()
    }


def served_times(job: Job, parent: Any, archs: Mapping[str, DecoderArch], workload: Workload) -> dict[str, Latency]:
    """Serve some models, one after the other, and tell their times; equal architectures are served once."""
    work = computed(job, workload)
    with Vllm(SETTING, job.run.folder / LOG) as engine:
        answers = {
            arch: serve_arch(engine, arch, job.space.shape, parent, [work])
            for arch in job.progress(list(dict.fromkeys(archs.values())), "serve in vLLM", len(set(archs.values())))
        }
    return {name: answers[arch].runs[0].latency(work) for name, arch in archs.items()}


def computed(job: Job, workload: Workload) -> Workload:
    """The workload in the run's own number format."""
    return replace(workload, weights=job.dtype, cache=job.dtype)
