"""The recipe of the embedded parents: documentation in, a small Llama- or NemotronH-architecture model with its tokenizer out.

`pretrain` trains on a `Corpus` (collected here, or packed elsewhere and read from a file), measures the loss on
held-out documents and saves a plain Hugging Face folder with `training.json`, the record of what it was made of. The
schedule follows the clock (`minutes`) or a count (`steps`), whichever the configuration names.

Legend: N rows, B batch rows, T tokens of a row, V vocabulary. Optimizer and schedule are the usual ones for small
language models (AdamW, warm-up, cosine; Brown et al. 2020, arXiv 2005.14165, appendix B).
"""

import argparse
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from torch import LongTensor, Tensor, nn

from befit.cost.device import found_device
from befit.lm.corpus import Corpus, CorpusConfig, load_corpus, token_bytes
from befit.lm.data import digest
from befit.lm.documentation import PYTHON
from befit.lm.nemotron_h import FAMILY as NEMOTRON_H
from befit.lm.network import logits, network_of
from befit.lm.shapes import HybridShape, ModelShape, build

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What `pretrain` does; a recipe is a function returning one of these."""

    out: Path
    """Folder to write: model, tokenizer, training.json."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """The text, or the token file, to train on."""
    model: ModelShape = field(default_factory=ModelShape)
    """Sizes of the model."""
    hybrid: HybridShape | None = None
    """Sizes of a hybrid to train instead."""
    batch: int = 256
    """Rows of a step."""
    minutes: float = 5.0
    """Minutes to train; the schedule follows the clock. Unused when `steps` is given."""
    steps: int | None = None
    """Steps to train, for a run that can be repeated exactly; None trains by the clock."""
    peak_lr: float = 3e-3
    """Highest learning rate."""
    final_lr: float = 0.1
    """Learning rate of the last step, as a share of the highest."""
    warmup: float = 0.02
    """Share of the run in which the learning rate rises."""
    weight_decay: float = 0.1
    """Decay of matrices; norms have none."""
    seed: int = 0
    """Seed of initial weights and of the order of rows."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is the GPU when there is one; there, matrix products run in bf16."""
    compile: bool = True
    """Whether to compile the step on a GPU; a minute of waiting, then about twice as fast."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if min(self.batch, self.minutes, self.steps or 1, self.peak_lr) <= 0:
            raise ValueError(f"batch, minutes, steps and peak_lr must be positive; got {self}")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one training run did."""

    steps: int
    """Optimizer steps taken."""
    tokens: int
    """Tokens seen, repetitions counted."""
    seconds: float
    """Wall-clock seconds of the loop, compilation included."""
    losses: tuple[float, ...]
    """Training losses, nats per token, at every tenth step and the last."""
    interrupted: bool
    """Whether Ctrl-C ended the run early."""


def embedded(out: Path) -> PretrainConfig:
    """The configuration of the dense parent that befit carries."""
    return PretrainConfig(out=out)


def embedded_hybrid(out: Path) -> PretrainConfig:
    """The configuration of the hybrid parent that befit carries."""
    return PretrainConfig(out=out, hybrid=HybridShape())


def tiny(out: Path) -> PretrainConfig:
    """A configuration that runs in seconds on one CPU core, for tests and for a first look."""
    return PretrainConfig(
        out=out,
        corpus=CorpusConfig(packages=(PYTHON,), limit_characters=300_000, vocab=512, context=64),
        model=ModelShape(hidden=48, layers=2, heads=4, kv_heads=2, ffn=96, positions=128),
        batch=16,
        steps=20,
        peak_lr=1e-2,
        device="cpu",
    )


def pretrain(config: PretrainConfig) -> Path:
    """Train a parent and save it to `config.out`; Ctrl-C ends training early and saves what there is.

    Raises `BadData` for packages that are not installed, too little text, or a token file of another kind.
    """
    device = torch.device(found_device(config.device))
    corpus = load_corpus(config.corpus)
    torch.manual_seed(config.seed)
    model = build(config.hybrid or config.model, len(corpus.tokenizer))
    model.to(device)  # type: ignore[arg-type]  # transformers wraps `to` so that checkers lose its types
    trained = train(model, corpus.train, config)
    model.to(torch.bfloat16)  # type: ignore[arg-type]  # the loss reported is that of the weights saved
    model.save_pretrained(config.out)
    corpus.tokenizer.save_pretrained(config.out)
    _LOGGER.info("saved to %s; measuring the held-out loss of %d rows", config.out, len(corpus.held_out))
    loss = evaluate(model, corpus.held_out)
    record = _record(config, corpus, trained, loss, model)
    (config.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return config.out


def train(model: Any, rows: LongTensor, config: PretrainConfig) -> Trained:
    """Train in place on shuffled rows (N, T), again and again, until the schedule ends or Ctrl-C."""
    device = model.device
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), lr=0.0, betas=(0.9, 0.95), fused=on_gpu)
    plain = _loss(model)
    step_loss = torch.compile(plain) if on_gpu and config.compile else plain
    losses, step, interrupted, start = list[float](), 0, False, time.monotonic()
    clock = start
    model.train()
    try:
        for batch in _batches(rows.to(device), config):
            done = step / config.steps if config.steps else (time.monotonic() - clock) / (60 * config.minutes)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(done, config)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                loss = step_loss(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step == 0:
                loss.item()
                clock = time.monotonic()  # compilation is not training time
            if step % 10 == 0:
                losses.append(loss.item())
                _LOGGER.info("step %d, %.1f %% done, loss %.4f", step, 100 * done, losses[-1])
            step += 1
        losses.append(loss.item())
    except KeyboardInterrupt:
        interrupted = True
        _LOGGER.warning("interrupted after %d steps; saving what there is", step)
    seconds = time.monotonic() - start
    tokens = step * min(config.batch, len(rows)) * rows.shape[1]
    return Trained(steps=step, tokens=tokens, seconds=seconds, losses=tuple(losses), interrupted=interrupted)


def learning_rate(done: float, config: PretrainConfig) -> float:
    """Linear warm-up, then a cosine from `peak_lr` down to `final_lr` of it; `done` is the share of the run, 0 to 1."""
    if done < config.warmup:
        return config.peak_lr * max(done / config.warmup, 0.01)
    falling = 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup)))
    return config.peak_lr * (config.final_lr + (1 - config.final_lr) * falling)


@torch.no_grad()
def evaluate(model: Any, rows: LongTensor, *, batch: int = 32) -> float:
    """Mean loss in nats over the T - 1 predicted tokens of each row (N, T)."""
    model.eval()
    parts = rows.to(model.device).split(batch)
    loss = _loss(model)
    return sum(float(loss(part)) * len(part) for part in parts) / len(rows)


def _loss(model: Any) -> Callable[[Tensor], Tensor]:
    """The mean next-token loss in nats, as a function of rows (B, T)."""
    if model.config.model_type == NEMOTRON_H.model_type:
        # transformers' own scan on plain PyTorch is many times slower than befit's, and equal to it.
        forward: Callable[[Tensor], Tensor] = partial(
            logits, network_of(model.config, NEMOTRON_H), dict(model.named_parameters())
        )
    else:
        forward = lambda rows: model(input_ids=rows, use_cache=False).logits  # noqa: E731

    def loss(rows: Tensor) -> Tensor:
        found = forward(rows)  # (B, T, V)
        return F.cross_entropy(found[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())

    return loss


def _batches(rows: Tensor, config: PretrainConfig) -> Iterator[Tensor]:
    """Batches without end, (B, T) each: a new order for each pass, the last partial batch dropped."""
    generator = torch.Generator().manual_seed(config.seed)
    size = min(config.batch, len(rows))
    while True:
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        yield from (rows[order[i : i + size]] for i in range(0, len(rows) - size + 1, size))


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    weights = list(model.parameters())
    return [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]


def _record(config: PretrainConfig, corpus: Corpus, trained: Trained, loss: float, model: Any) -> dict[str, Any]:
    """The content of training.json."""
    predicted = corpus.held_out[:, 1:].numel()
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "corpus")}
    gpu = torch.cuda.get_device_name() if model.device.type == "cuda" else None
    return {
        "parameters": model.num_parameters(),
        "held_out_loss_per_token": loss,
        "held_out_loss_per_byte": loss * predicted / token_bytes(corpus.tokenizer, corpus.held_out),
        "held_out_tokens": corpus.held_out.numel(),
        "train_tokens": corpus.train.numel(),
        "tokens_sha256": digest(corpus.train, corpus.held_out),
        "trained": asdict(trained),
        "settings": settings,
        "device": gpu or platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
        "packages": corpus.packages,
    }


def _main(arguments: Sequence[str] | None = None) -> None:
    """Train without befit's command line, for machines that have only PyTorch and transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name in ("tokens", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, default=argparse.SUPPRESS)
    for name in ("minutes", "peak-lr"):
        parser.add_argument(f"--{name}", type=float, default=argparse.SUPPRESS)
    for name in ("steps", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=argparse.SUPPRESS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser.add_argument("--hybrid", action="store_const", const=HybridShape(), default=argparse.SUPPRESS)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    given = vars(parser.parse_args(arguments))
    corpus = CorpusConfig(**{name: given.pop(name) for name in ("tokens", "tokenizer") if name in given})
    pretrain(PretrainConfig(corpus=corpus, **given))


if __name__ == "__main__":
    _main()
