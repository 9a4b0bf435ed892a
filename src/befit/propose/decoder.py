"""A small decoder that writes networks: its tokenizer, its weights and its training, all made in place.

A text is one row of tokens: a level, the source, an end. The level says how good the network is among those that have been
scored, from `<|0|>`, the worst tenth, to `<|9|>`, the best; a text without a score has the level `<|?|>`. A decoder trained on
such rows and asked with `<|9|>` draws from what it takes for the best tenth: conditioning on a return, as in Decision
Transformers (Chen et al. 2021, arXiv 2106.01345), here for the code of a network.

The tokens are single digits and pieces of lines, learned from the texts by byte-pair encoding down from bytes: what all networks
say is written in few steps, and yet every file can be written and read back exactly, whether the grammar can make it or not.

Shapes: N texts, B texts of a batch, T tokens.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from befit.errors import BadData
from befit.lm.training import adam, learning_rate
from befit.propose.elites import LEVELS

UNSCORED = LEVELS
"""The level of a text without a score."""
END = "<|end|>"

_PIECES = r"[0-9]|\n* *[^0-9\n]+|\n+"
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a decoder of Llama's form."""

    hidden: int = 96
    """Width, a multiple of twice the heads."""
    layers: int = 2
    """Layers, at least 1."""
    heads: int = 4
    """Attention heads, at least 1."""
    ffn: int = 192
    """Width of the feed-forward part, at least 1."""
    vocab: int = 1024
    """Most tokens, at least 300: the 256 bytes, the levels, the end, and pieces of lines."""
    context: int = 640
    """Most tokens of a row; texts that are longer are not learned from, answers that are longer are cut off."""

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers, self.heads, self.ffn) < 1 or self.hidden % (2 * self.heads):
            raise BadData(
                "decoder: layers, heads and ffn must be at least 1 and hidden a multiple of twice the heads, got "
                f"hidden={self.hidden}, layers={self.layers}, heads={self.heads}, ffn={self.ffn}"
            )
        if self.vocab < 300 or self.context < 16:
            raise BadData(f"decoder: vocab must be at least 300 and context 16, got {self.vocab} and {self.context}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One stretch of training."""

    steps: int
    """Batches, at least 1."""
    batch: int = 16
    """Texts of a batch, at least 1."""
    lr: float = 3e-3
    """Highest learning rate, above 0."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises, 0 .. 1."""
    decay: float = 0.1
    """Weight decay of matrices, 0 or more."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or not self.lr > 0 or not 0 <= self.warmup <= 1 or self.decay < 0:
            raise BadData(f"training of the decoder: impossible numbers in {self}")


def level_token(level: int) -> str:
    """How a level is written."""
    return "<|?|>" if level == UNSCORED else f"<|{level}|>"


def make_tokenizer(texts: Sequence[str], vocab: int) -> Any:
    """A tokenizer (a `PreTrainedTokenizerFast`) whose pieces are those of the texts; any other text is spelled in bytes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [END, *(level_token(level) for level in range(LEVELS + 1))]
    own = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    own.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    own.train_from_iterator(texts, trainer)
    return _wrapped(own)


def _wrapped(own: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def make_model(config: DecoderConfig, vocab: int, seed: int) -> Any:
    """A `LlamaForCausalLM` of random weights, with one matrix for tokens read and written."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab,
                hidden_size=config.hidden,
                intermediate_size=config.ffn,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.context,
                tie_word_embeddings=True,
                initializer_range=config.hidden
                ** -0.5,  # the usual 0.02 is for widths in the thousands: here nothing would pass
                bos_token_id=None,
                eos_token_id=0,
                pad_token_id=0,
            )
        )


def encode(tokenizer: Any, text: str, level: int = UNSCORED) -> list[int]:
    """Token ids of a row: the level (0 .. 9, or `UNSCORED`), the text, the end."""
    return tokenizer(f"{level_token(level)}{text}{END}")["input_ids"]


def train(model: Any, encoded: Sequence[Sequence[int]], weights: Sequence[float], plan: Schedule, seed: int) -> float:
    """Train in place on rows drawn by weight; returns the mean loss of the last tenth of the steps, in nats per token.

    Raises `BadData` if there is nothing to learn from.
    """
    if not encoded:
        raise BadData("training of the decoder: no text fits into its context; raise `context`")
    named = dict(model.named_parameters())
    optimizer = adam(named, lr=plan.lr, weight_decay=plan.decay)
    losses, draws = list[Tensor](), _batches(encoded, weights, plan, seed)
    model.train()
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan.steps, peak=plan.lr, warmup=plan.warmup)
        tokens, targets = (one.to(model.device) for one in padded(next(draws)))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            logits = model(input_ids=tokens, use_cache=False).logits
        # Padding stands behind the end, where a causal model needs no mask: only its targets are left out.
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=_IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    model.eval()
    return float(torch.stack(losses[-math.ceil(plan.steps / 10) :]).mean())


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens and targets (B, T); shorter rows end in zeros, which are no targets."""
    length = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    targets = torch.tensor([[*row, *[_IGNORED] * (length - len(row))] for row in rows])
    return tokens, targets


def _batches(
    encoded: Sequence[Sequence[int]], weights: Sequence[float], plan: Schedule, seed: int
) -> Iterator[list[Sequence[int]]]:
    """Batches without end. Eight at a time are drawn and sorted by length, which saves most of the padding."""
    rng = random.Random(seed)
    while True:
        drawn = sorted(rng.choices(encoded, weights, k=8 * plan.batch), key=len)
        groups = [drawn[place : place + plan.batch] for place in range(0, len(drawn), plan.batch)]
        rng.shuffle(groups)
        yield from groups


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write both as a folder that transformers loads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[Any, Any]:
    """What `save` wrote, on the CPU."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
