"""llama.cpp itself, as PyPI's `xllamacpp` brings it: what it says to a GGUF file, with a cache in fp32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from torch import Tensor

llama: Any = xllamacpp  # a compiled module, of which a type checker sees nothing


END = (0,)
"""The token that ends a sequence, in befit's tokenizers."""


def greedy(
    file: Path, prompt: list[int], count: int, vocab: int, banned: Sequence[int] = END
) -> tuple[list[int], Tensor]:
    """The `count` tokens, none of `banned`, that llama.cpp adds to the prompt, and its log-probabilities (count, vocab)."""
    without = {"logit_bias": [[token, False] for token in banned]}
    made = complete(file, prompt, count, n_probs=vocab, **without)["choices"][0]["logprobs"]["content"]
    logs = torch.full((count, vocab), float("nan"))
    for row, step in enumerate(made):
        for entry in step["top_logprobs"]:
            logs[row, entry["id"]] = entry["logprob"]
    return [step["id"] for step in made], logs


def complete(file: Path, prompt: list[int] | str, count: int, **more: Any) -> dict[str, Any]:
    """One greedy completion, as llama.cpp's server answers it; it never ends before `count` tokens."""
    settings: Any = llama.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers, settings.warmup = 256, 1, 0, False
    settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.verbosity, settings.fit_params = -1, False
    server: Any = llama.Server(settings)
    return server.handle_completions(
        {"prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False, "ignore_eos": True} | more
    )


def expected(model: Any, prompt: list[int], tokens: list[int], banned: Sequence[int] = END) -> tuple[list[int], Tensor]:
    """What transformers says at the same places: the greedy tokens, none of `banned`, and log-probabilities (count, vocab)."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    logs = logits.double().log_softmax(-1)
    return logs.index_fill(1, torch.tensor(banned), -torch.inf).argmax(-1).tolist(), logs
