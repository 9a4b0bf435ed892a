"""The process that runs vLLM: reads one job a line, starts the model, serves the workloads, answers with one line of JSON.

    python -m befit.serve.vllm_worker

A process of its own, because vLLM takes the GPU's memory and torch's settings for itself. Engines follow one another in it, so
that a model costs a start of seconds: imports, CUDA and vLLM's look at the architecture are paid once. vLLM runs inside this
process (no second one), with its own scheduler working ahead of the GPU as it does when it serves.

Nothing here is caught: a job that fails ends the process, and its traceback is in the log.
"""

import gc
import json
import os
import random
import sys
import time
from collections.abc import Mapping
from typing import Any

PROBES = 16
"""Requests of a batch whose first token is watched; the others report only when they are done, which costs the engine less."""
GRAPHS = 4
"""Batch sizes with a CUDA graph for each workload: the batch and shares of it, for its end, when requests finish one by one."""
FREED = 0.9
"""Share of the memory free at the beginning that must be free again after a model; with less the process gives up its place."""


def main() -> None:
    """Answer jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints goes to the log
    begin = _free_bytes()
    for line in sys.stdin:
        told = work(json.loads(line))
        last = _free_bytes() < FREED * begin
        answers.write(json.dumps(told | {"last": last}) + "\n")
        answers.flush()
        if last:
            return


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Start a model, serve each workload, stop it.

    A job has `folder`, `options` (of vLLM's `LLM`), `workloads` (batch, prompt, generate), `repeats`, and `prompts`: token ids to
    continue greedily, or nothing.
    """
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    begin = time.perf_counter()
    options = dict(job["options"])
    free, total = _memory()
    options["gpu_memory_utilization"] = min(options["gpu_memory_utilization"], round(free / total - 0.01, 3))
    llm = LLM(model=job["folder"], **options)
    told: dict[str, Any] = {"start_s": time.perf_counter() - begin, "memory_bytes": total}
    told["memory_share"] = options["gpu_memory_utilization"]
    told["weight_bytes"] = llm.apply_model(lambda model: sum(p.nbytes for p in model.parameters()))[0]
    told["kv_tokens"] = llm.llm_engine.vllm_config.cache_config.kv_cache_size_tokens
    told["runs"] = [_served(llm, workload, job["repeats"], options) for workload in job["workloads"]]
    told["tokens"] = _continued(llm, job["prompts"], job["generate"]) if job["prompts"] else []
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return told


def graph_sizes(workloads: list[Mapping[str, int]]) -> list[int]:
    """Batch sizes to capture."""
    return sorted({-(-w["batch"] * part // GRAPHS) for w in workloads for part in range(1, GRAPHS + 1)})


def _served(llm: Any, workload: Mapping[str, int], repeats: int, options: Mapping[str, Any]) -> list[dict[str, float]]:
    """One warm-up of a few requests, then the whole workload `repeats` times."""
    few = max(1, min(workload["batch"], options["max_num_batched_tokens"] // workload["prompt"]))
    _run(llm, {**workload, "batch": few, "generate": 4})
    return [_run(llm, workload) for _ in range(repeats)]


def _run(llm: Any, workload: Mapping[str, int]) -> dict[str, float]:
    """Milliseconds from the batch's arrival to every first token, to the mean first token, and to the last token of all."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine, batch = llm.llm_engine, workload["batch"]
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    rng = random.Random(0)
    probes = {str(i * (batch - 1) // max(1, min(PROBES, batch) - 1)) for i in range(min(PROBES, batch))}
    for i in range(batch):
        kind = RequestOutputKind.DELTA if str(i) in probes else RequestOutputKind.FINAL_ONLY
        params = SamplingParams(
            temperature=0.0, max_tokens=workload["generate"], ignore_eos=True, detokenize=False, output_kind=kind
        )
        prompt = [rng.randrange(vocabulary) for _ in range(workload["prompt"])]
        engine.add_request(str(i), {"type": "token", "prompt_token_ids": prompt}, params)
    first: dict[str, float] = {}
    gc.disable()  # a collection in the middle of a run is this process's own, not the model's
    begin = time.perf_counter()
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.request_id in probes and output.outputs[0].token_ids:
                first.setdefault(output.request_id, time.perf_counter() - begin)
    total = time.perf_counter() - begin
    gc.enable()
    told = list(first.values())
    return {"first_ms": 1000 * max(told), "mean_first_ms": 1000 * sum(told) / len(told), "total_ms": 1000 * total}


def _continued(llm: Any, prompts: list[list[int]], generate: int) -> list[list[int]]:
    """Greedy continuations of token ids."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=generate, ignore_eos=True, detokenize=False)
    found = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in found]


def _memory() -> tuple[int, int]:
    """Bytes of the GPU: free, and in all."""
    import torch

    return torch.cuda.mem_get_info()


def _free_bytes() -> int:
    return _memory()[0]


if __name__ == "__main__":
    main()
