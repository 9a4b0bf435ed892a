"""What a causal language model says: how likely it finds a continuation, and what it writes by itself.

Works for any transformers model. Rows are padded on the right for log-likelihoods, where a causal model can't see the padding;
prompts of different lengths never share a batch when text is written, so no family needs to know about padding on the left.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from befit.lm.tasks.item import cut
from befit.progress import Progress, silent

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a context and of its continuation, neither empty."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How likely a continuation is after its context."""

    total: float
    """Its log-probability in nats, the sum over its tokens."""
    tokens: int
    """Its tokens."""
    greedy: bool
    """Whether each of its tokens was the most likely one."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A model with its tokenizer."""

    model: Any
    """A transformers causal language model."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    batch: int = 8
    """Rows that go through the model at once."""

    @property
    def room(self) -> int | None:
        """Tokens that the model has positions for, if its configuration says so."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids, with what the tokenizer itself puts in front of a text."""
        return tuple(self.tokenizer(text, verbose=False)["input_ids"])  # type: ignore[arg-type]

    def count(self, text: str) -> int:
        """Tokens of a text that stands within another."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]

    def pair(self, context: str, continuation: str) -> Pair:
        """Both tokenised together, split where the context alone ends; a context without tokens becomes the end-of-text token."""
        blanks = len(context) - len(context.rstrip())
        if blanks:  # Spaces belong to the word that follows.
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        if not context:
            start = (
                self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
            )
            own = self.tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
            return (int(start),), tuple(own)  # type: ignore[arg-type]
        before, whole = self.encode(context), self.encode(context + continuation)
        return before, whole[len(before) :]

    def likelihoods(self, pairs: Sequence[Pair], *, progress: Progress = silent) -> list[Likelihood]:
        """One for each pair, in their order. What has no room loses its oldest tokens."""
        rows = [(*context, *continuation) for context, continuation in pairs]
        order = sorted(range(len(pairs)), key=lambda i: (-len(rows[i]), rows[i]))
        found = dict[int, Likelihood]()
        parts = list(_parts(order, self.batch))
        for part in progress(parts, "likelihoods", len(parts)):
            ends = [len(pairs[i][1]) for i in part]
            told = self._batch([rows[i] if self.room is None else rows[i][-self.room - 1 :] for i in part], ends)
            found |= dict(zip(part, told, strict=True))
        return [found[i] for i in range(len(pairs))]

    def whole(self, texts: Sequence[str], *, progress: Progress = silent) -> list[Likelihood]:
        """Of whole texts after the end-of-text token, in windows as long as the model has positions, each token once."""
        pairs, owner = list[Pair](), list[int]()
        for number, text in enumerate(texts):
            before, ids = self.pair("", text)
            size = self.room or len(ids)
            for start in range(0, len(ids), size):
                stop = min(start + size, len(ids))
                # The last window begins early enough to be full, so that its tokens have a context as long as others have.
                context = (*before, *ids[:start])[-max(1, size - (stop - start) + 1) :]
                pairs.append((context, ids[start:stop]))
                owner.append(number)
        found = [Likelihood(total=0.0, tokens=0, greedy=True) for _ in texts]
        for number, one in zip(owner, self.likelihoods(pairs, progress=progress), strict=True):
            own = found[number]
            found[number] = Likelihood(
                total=own.total + one.total, tokens=own.tokens + one.tokens, greedy=own.greedy and one.greedy
            )
        return found

    @torch.inference_mode()
    def _batch(self, rows: Sequence[tuple[int, ...]], ends: Sequence[int]) -> list[Likelihood]:
        """Of the last `ends` tokens of each row, given those before them."""
        length = max(map(len, rows)) - 1
        kept = length - min(len(row) - 1 - end for row, end in zip(rows, ends, strict=True))
        ids = _padded([row[:-1] for row in rows], length).to(self.model.device)
        # The head runs on the positions that are asked for only: a long context has many others.
        logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
        told = []
        for row, end, own in zip(rows, ends, logits, strict=True):
            stop = len(row) - 1 - (length - kept)
            logs = own[stop - end : stop].float().log_softmax(-1)
            wanted = torch.tensor(row[-end:], device=logs.device)
            total = logs.gather(1, wanted[:, None]).sum()
            greedy = bool((logs.argmax(-1) == wanted).all())
            told.append(Likelihood(total=float(total), tokens=end, greedy=greedy))
        return told

    def write(
        self,
        prompts: Sequence[str],
        limits: Sequence[int],
        stops: Sequence[tuple[str, ...]],
        *,
        progress: Progress = silent,
    ) -> list[str]:
        """What the model writes after each prompt, the most likely token each time, up to a stop or a limit of tokens."""
        rows = [self.encode(prompt) for prompt in prompts]
        if self.room is not None:
            rows = [row[-(self.room - limit) :] for row, limit in zip(rows, limits, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), limits[i], stops[i]))
        parts = [
            part
            for same in _runs(order, lambda i: (len(rows[i]), limits[i], stops[i]))
            for part in _parts(same, self.batch)
        ]
        found = dict[int, str]()
        for part in progress(parts, "answers", len(parts)):
            texts = self._written([rows[i] for i in part], limits[part[0]], stops[part[0]])
            found |= dict(zip(part, texts, strict=True))
        return [found[i] for i in range(len(rows))]

    @torch.inference_mode()
    def _written(self, rows: Sequence[tuple[int, ...]], limit: int, stops: tuple[str, ...]) -> list[str]:
        """For prompts of one length."""
        ids, end = torch.tensor(rows, device=self.model.device), self.tokenizer.eos_token_id
        config = GenerationConfig(
            max_new_tokens=limit, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=end, use_cache=True
        )
        halt = StoppingCriteriaList([_Stopped(self.tokenizer, ids.shape[1], stops)])
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, stopping_criteria=halt
        )
        texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [cut(text, stops) for text in texts]


class _Stopped(StoppingCriteria):
    """Whether each row has written one of the stops."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, begin: int, stops: tuple[str, ...]) -> None:
        self.tokenizer, self.begin, self.stops = tokenizer, begin, stops

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        del scores, kwargs
        texts = self.tokenizer.batch_decode(input_ids[:, self.begin :])
        done = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _padded(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """(B, T) ids; what is behind a row's end is never looked at."""
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])


def _parts(order: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield list(order[start : start + size])


def _runs(order: Iterable[int], key: Any) -> Iterator[list[int]]:
    """Neighbours of equal key."""
    run = list[int]()
    for i in order:
        if run and key(run[-1]) != key(i):
            yield run
            run = []
        run.append(i)
    if run:
        yield run
