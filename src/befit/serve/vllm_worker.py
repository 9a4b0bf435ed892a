"""The process that runs vLLM: reads one job a line, starts the model, serves the workloads, answers with one line of JSON.

    python -m befit.serve.vllm_worker

A process of its own, which has imported all that vLLM's engine needs and has left the GPU alone: so vLLM can fork every engine
from it. An engine then starts in seconds instead of half a minute, works beside the process that hands it requests, as in
`vllm serve`, and leaves nothing behind on the GPU.

Nothing here is caught: a job that fails ends the process, and its traceback is in the log.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

PROBES = 16
"""Requests of a batch whose first token is watched; the others report only when they are done, which costs the engine less."""
GRAPHS = 4
"""Batch sizes with a CUDA graph for each workload: the batch and shares of it, for its end, when requests finish one by one."""
ENGINE = (
    "vllm.v1.engine.core",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.model_executor.model_loader.dummy_loader",
)
"""What an engine imports when it starts; a version of vLLM without one of them only starts a little later."""
MODELS = {
    "LlamaForCausalLM": "vllm.model_executor.models.llama",
    "DeciLMForCausalLM": "vllm.model_executor.models.nemotron_nas",
}
"""Classes that are registered as they are: vLLM would start a process to look at each, for half a minute."""


def main() -> None:
    """Answer jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints goes to the log
    for name in ENGINE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _register()
    for line in sys.stdin:
        answers.write(json.dumps(work(json.loads(line))) + "\n")
        answers.flush()


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Start a model, serve each workload, stop it.

    A job has `folder`, `options` (of vLLM's `LLM`), `workloads` (batch, prompt, generate), `repeats`, and `prompts`: token ids to
    continue greedily by `generate` tokens each, or nothing.
    """
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    begin = time.perf_counter()
    options = job["options"]
    llm = LLM(model=job["folder"], **options)
    told: dict[str, Any] = {"start_s": time.perf_counter() - begin}
    told["weight_bytes"], told["memory_bytes"] = llm.apply_model(_sizes)[0]
    told["kv_tokens"] = llm.llm_engine.vllm_config.cache_config.kv_cache_size_tokens
    told["runs"] = [_served(llm, workload, job["repeats"], options) for workload in job["workloads"]]
    told["tokens"] = _continued(llm, job["prompts"], job["generate"]) if job["prompts"] else []
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    return told


def _register() -> None:
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    for name, module in MODELS.items():
        ModelRegistry.register_model(name, vars(importlib.import_module(module))[name])


def graph_sizes(workloads: Sequence[Mapping[str, int]]) -> list[int]:
    """Batch sizes to capture."""
    return sorted({-(-w["batch"] * part // GRAPHS) for w in workloads for part in range(1, GRAPHS + 1)})


def _served(llm: Any, workload: Mapping[str, int], repeats: int, options: Mapping[str, Any]) -> list[dict[str, float]]:
    """One warm-up of a few requests, then the whole workload `repeats` times."""
    few = max(1, min(workload["batch"], options["max_num_batched_tokens"] // workload["prompt"]))
    _run(llm, {**workload, "batch": few, "generate": min(4, workload["generate"])})
    return [_run(llm, workload) for _ in range(repeats)]


def _run(llm: Any, workload: Mapping[str, int]) -> dict[str, float]:
    """Milliseconds from the batch's arrival to every first token, to the mean first token, and to the last token of all."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    engine, batch = llm.llm_engine, workload["batch"]
    vocabulary, rng = engine.model_config.get_vocab_size(), random.Random(0)
    probes = {str(i * (batch - 1) // max(1, min(PROBES, batch) - 1)) for i in range(min(PROBES, batch))}
    requests = []
    for name in map(str, range(batch)):
        params = SamplingParams(
            temperature=0.0,
            max_tokens=workload["generate"],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if name in probes else RequestOutputKind.FINAL_ONLY,
        )
        prompt = [rng.randrange(vocabulary) for _ in range(workload["prompt"])]
        requests.append((name, {"type": "token", "prompt_token_ids": prompt}, params))
    first: dict[str, float] = {}
    gc.disable()  # a collection in the middle of a run is this process's own, not the model's
    begin = time.perf_counter()
    for request in requests:
        engine.add_request(*request)
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
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    params = SamplingParams(temperature=0.0, max_tokens=generate, ignore_eos=True, detokenize=False)
    found = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in found]


def _sizes(model: Any) -> tuple[int, int]:
    """Bytes of a model's weights, and of the memory of the GPU it is on; asked of the engine, where both are."""
    import torch

    return sum(weight.nbytes for weight in model.parameters()), torch.cuda.mem_get_info()[1]


if __name__ == "__main__":
    main()
