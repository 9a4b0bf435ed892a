"""As much of vLLM's interface as befit uses, without a model: a step reads some prompts, or gives every request a token.

The tokens are those of a rule (each is the one before it, plus one). A step takes a while for every sub-block that the model has
and every token that it reads, on a clock of its own: the same on any machine, and nobody waits. A folder named `broken` fails as
an engine would.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["LLM", "ModelRegistry", "SamplingParams"]

ModelRegistry = SimpleNamespace(register_model=lambda name, kind: None)
LEAST_S = 2e-4
"""A step takes the engine at least this, whatever the model."""


class Clock:
    """Seconds that pass only when the engine works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()
time.perf_counter = CLOCK  # in the worker's process, which asks it


def seconds_of(config: dict[str, Any]) -> float:
    """What a token's way through the model takes: a constant for every sub-block, and a rate for KV heads and FFN neurons."""
    layers, heads = config.get("num_hidden_layers", 1), config.get("num_attention_heads", 1)
    same = {
        "attention": {"no_op": False, "n_heads_in_group": heads // config.get("num_key_value_heads", 1)},
        "ffn": {"no_op": False, "intermediate_size": config.get("intermediate_size", 1)},
    }
    total = 1e-4
    for block in config.get("block_configs", [same] * layers):
        if not block["attention"]["no_op"]:
            total += 5e-5 + 4e-5 * (heads // block["attention"]["n_heads_in_group"])
        if not block["ffn"]["no_op"]:
            total += 4e-5 + 2e-6 * block["ffn"]["intermediate_size"]
    return total


class Engine:
    """Requests in order of their arrival; a prompt must fit in a step together with all decoding requests."""

    def __init__(self, config: dict[str, Any], options: dict[str, Any]) -> None:
        self.model_config = SimpleNamespace(get_vocab_size=lambda: config["vocab_size"])
        self.vllm_config = SimpleNamespace(cache_config=SimpleNamespace(kv_cache_size_tokens=1000))
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self.options = options
        self.token_s = seconds_of(config)
        self.waiting: list[Any] = []
        self.running: list[Any] = []

    def add_request(self, name: str, prompt: dict[str, Any], params: SamplingParams) -> None:
        tokens = prompt["prompt_token_ids"]
        assert prompt["type"] == "token" and params.ignore_eos
        assert len(tokens) + params.max_tokens <= self.options["max_model_len"]
        self.waiting.append(SimpleNamespace(name=name, prompt=tokens, params=params, tokens=[], read=0))
        assert len(self.waiting) + len(self.running) <= self.options["max_num_seqs"]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> list[Any]:
        room = self.options["max_num_batched_tokens"] - len(self.running)
        ready, read = list(self.running), 0
        while self.waiting and room > 0:
            first = self.waiting[0]
            taken = min(room, len(first.prompt) - first.read)
            first.read, room, read = first.read + taken, room - taken, read + taken
            if first.read == len(first.prompt):
                ready.append(self.waiting.pop(0))
        CLOCK.now += max(LEAST_S, self.token_s * (1 + read / 8))
        told = []
        for one in ready:
            one.tokens.append((one.tokens or one.prompt)[-1] + 1)
            done = len(one.tokens) == one.params.max_tokens
            if done or one.params.output_kind == RequestOutputKind.DELTA:
                new = one.tokens if one.params.output_kind == RequestOutputKind.FINAL_ONLY else one.tokens[-1:]
                told.append(SimpleNamespace(request_id=one.name, outputs=[SimpleNamespace(token_ids=tuple(new))]))
        self.running = [one for one in ready if len(one.tokens) < one.params.max_tokens]
        return told


class LLM:
    """A model in the engine."""

    def __init__(self, *, model: str, **options: Any) -> None:
        config = json.loads((Path(model) / "config.json").read_text())
        sys.stdout.write("vLLM says hello on stdout\n")  # which belongs to the answers
        sys.stdout.flush()
        if Path(model).name == "broken":
            raise ValueError("this model cannot be served")
        assert 0 < options["gpu_memory_utilization"] <= 1
        self.llm_engine = Engine(config, options)

    def apply_model(self, ask: Any) -> list[Any]:
        weights = [SimpleNamespace(nbytes=100), SimpleNamespace(nbytes=23)]
        return [ask(SimpleNamespace(parameters=lambda: weights))]

    def generate(self, prompts: list[Any], params: SamplingParams, *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        vocabulary = self.llm_engine.model_config.get_vocab_size()
        last = [prompt["prompt_token_ids"][-1] for prompt in prompts]
        found = [[(token + 1 + i) % vocabulary for i in range(params.max_tokens)] for token in last]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)]) for tokens in found]
