"""A given language model, tuned during a run on its own best answers by low-rank adapters.

After every `every` proposals a new adapter is trained on the elites so far: pairs of the prompt that was asked and the answer
that the network came from, of which only the answer is learned. The base model's weights stay as they are; an adapter (LoRA,
Hu et al. 2021, arXiv 2106.09685) adds to each linear layer a product of two thin matrices, the second of which begins as zeros.
Tuning on what did well and asking again is the form of the cross-entropy method that models with a prompt allow.

Each generation starts from the base model and is a function of the seed, the configuration and the elites before it.
"""

import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from befit.errors import BadData, BefitError
from befit.lm.training import adam, learning_rate
from befit.propose.archive import Scored
from befit.propose.elites import pupils
from befit.propose.local import LocalModel
from befit.propose.models import Message, Model
from befit.rundir import digest, read_json, replacing_folder, write_json

RECORD = "tuned.json"
"""What is known of an adapter; the key says from what it was made."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How a given model is tuned."""

    every: int = 20
    """Proposals of a generation, at least 1; those of the first are the base model's."""
    elite: float = 0.25
    """Share of the scored networks that are learned from, above 0, at most 1."""
    rank: int = 8
    """Rank of the adapters, at least 1."""
    scale: float = 2.0
    """What an adapter adds is multiplied by it, above 0."""
    passes: int = 3
    """Passes over the elites, at least 1; each is one step for each network."""
    lr: float = 2e-4
    """Highest learning rate, above 0."""
    tokens: int = 8192
    """Most tokens of a pair, at least 1; what is longer loses the beginning of its prompt, and one whose answer alone is longer
    is left out."""

    def __post_init__(self) -> None:
        if min(self.every, self.rank, self.passes, self.tokens) < 1:
            raise BadData(
                "tuning: every, rank, passes and tokens must be at least 1, got "
                f"{self.every}, {self.rank}, {self.passes} and {self.tokens}"
            )
        if not 0 < self.elite <= 1 or not self.scale > 0 or not self.lr > 0:
            raise BadData(
                f"tuning: elite must be above 0 and at most 1, scale and lr above 0, got {self.elite}, {self.scale}, {self.lr}"
            )


@contextmanager
def _without_news() -> Iterator[None]:
    """What peft calls and transformers will rename is no news to befit's user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


class Tuned:
    """The proposer: the base model first, then the base model with the adapter of each generation."""

    elsewhere = False
    """It computes here."""

    def __init__(self, base: LocalModel, config: TuneConfig, *, seed: int) -> None:
        """`base` belongs to this proposer from now on: two proposers need two.

        Raises `BefitError` if peft is not installed.
        """
        try:
            import peft  # noqa: F401  # to say it before the first generation
        except ImportError as error:
            raise BefitError("tuning a model needs peft: pip install befit[llm]") from error
        self.base, self.config, self.seed = base, config, seed
        self._weights = base.model
        self._last: tuple[str, LocalModel] | None = None

    def model(self, number: int, scored: Sequence[Scored], folder: Path) -> Model:
        """The model that makes proposal `number`. Adapters, and what was asked and said, are under `folder`."""
        generation = number // self.config.every
        rows = [one for one in scored if one.number < generation * self.config.every]
        return self._generation(generation, rows, folder) if generation and rows else self._plain()

    def heard(self, number: int, prompt: Sequence[Message], answer: str, folder: Path) -> None:
        """Keep the prompt of a proposal with its answer, for the day when that is learned from."""
        write_json(_asked(folder, number), {"prompt": [asdict(one) for one in prompt], "answer": answer})

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return self.base.count(text)

    def close(self) -> None:
        """Take the adapter off."""
        self._plain()

    def _plain(self) -> LocalModel:
        """The base model, without an adapter."""
        if self._last is not None:
            self._last[1].model.unload()
            self._last = None
        return self.base

    def _generation(self, generation: int, rows: Sequence[Scored], folder: Path) -> LocalModel:
        from peft import PeftModel

        pairs = self._pairs(rows, folder)
        told = [(asdict(self.config), self.seed, generation, self.base.name)]
        key = digest("tuned", told, [([asdict(one) for one in messages], answer) for messages, answer in pairs])
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        self._plain()
        if not pairs:
            return self.base
        place = folder / f"generation-{generation}"
        record = place / RECORD
        if not record.exists() or read_json(record)["key"] != key:
            self._tune(pairs, place, key)
        with _without_news():
            adapted: Any = PeftModel.from_pretrained(self._weights, str(place))
        label = f"{self.base.name}+generation-{generation}"
        made = LocalModel(adapted, self.base.tokenizer, label=label, price=self.base.price)
        self._last = key, made
        return made

    def _pairs(self, rows: Sequence[Scored], folder: Path) -> list[tuple[list[Message], str]]:
        """Prompt and answer of each elite that this proposer was asked for, in order of their numbers."""
        found = list[tuple[list[Message], str]]()
        for one in pupils(rows, share=self.config.elite):
            path = _asked(folder, one.scored.number)
            if one.elite and path.exists():
                kept = read_json(path)
                found.append(([Message(**each) for each in kept["prompt"]], kept["answer"]))
        return found

    def _tune(self, pairs: Sequence[tuple[list[Message], str]], place: Path, key: str) -> None:
        """Train an adapter and write it."""
        from peft import LoraConfig, get_peft_model

        begin, config = time.perf_counter(), self.config
        rank = LoraConfig(
            r=config.rank,
            lora_alpha=round(config.scale * config.rank),
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        seed = random.Random(f"{self.seed} {key}").randrange(2**31)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with _without_news():
                adapted: Any = get_peft_model(self._weights, rank)
        encoded = [row for messages, answer in pairs if (row := self._encoded(messages, answer)) is not None]
        losses = self._fit(adapted, encoded, random.Random(seed))
        with replacing_folder(place) as temporary:
            adapted.save_pretrained(str(temporary))
            told = {
                "key": key,
                "elites": len(encoded),
                "loss": losses,
                "seconds": round(time.perf_counter() - begin, 3),
            }
            write_json(temporary / RECORD, told)
        adapted.unload()

    def _encoded(self, messages: Sequence[Message], answer: str) -> tuple[torch.Tensor, int] | None:
        """Token ids (1, T) of a pair, and where in it the answer begins; None if the answer alone is too long."""
        prompt = self.base.prompt(messages)
        end = self.base.tokenizer.eos_token or ""
        own = self.base.tokenizer(answer + end, add_special_tokens=False, return_tensors="pt")["input_ids"]
        room = self.config.tokens - own.shape[1]
        if room < 1:
            return None
        prompt = prompt[:, -room:]
        return torch.cat([prompt, own], dim=1), prompt.shape[1]

    def _fit(self, model: Any, encoded: Sequence[tuple[torch.Tensor, int]], rng: random.Random) -> list[float]:
        """Mean loss of each pass, in nats per token of the answers."""
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        optimizer = adam(named, lr=self.config.lr)
        steps, losses = self.config.passes * len(encoded), list[float]()
        if not encoded:
            return losses
        model.train()
        for done in range(self.config.passes):
            total = 0.0
            for place, (tokens, begin) in enumerate(rng.sample(encoded, len(encoded))):
                for group in optimizer.param_groups:
                    step = done * len(encoded) + place
                    group["lr"] = learning_rate(step, steps, peak=self.config.lr, warmup=0.1)
                given = tokens.to(model.device)
                logits = model(input_ids=given, use_cache=False).logits[0, begin - 1 : -1].float()
                loss = F.cross_entropy(logits, given[0, begin:])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                total += loss.item()
            losses.append(total / len(encoded))
        model.eval()
        return losses


def _asked(folder: Path, number: int) -> Path:
    return folder / "asked" / f"{number}.json"
