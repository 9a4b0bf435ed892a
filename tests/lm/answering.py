"""Models whose answers are known beforehand: one that knows every right answer, and one that has no opinion."""

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from befit.lm.answers import Speaker
from befit.lm.parent import EMBEDDED
from befit.lm.tasks.item import Item

SURE = 50.0


@cache
def tokenizer() -> Any:
    """The embedded parents'."""
    return AutoTokenizer.from_pretrained(EMBEDDED)


class Known:
    """Finds most likely what goes on as in one of `texts` (token ids), everything alike elsewhere."""

    def __init__(self, texts: Sequence[tuple[int, ...]]) -> None:
        self.config, self.device = SimpleNamespace(max_position_embeddings=4096), torch.device("cpu")
        self.next = {text[: i + 1]: text[i + 1] for text in texts for i in range(len(text) - 1)}

    def __call__(self, input_ids: Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        rows, length = input_ids.shape
        logits = torch.zeros(rows, logits_to_keep, len(tokenizer()))
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(logits_to_keep):
                known = self.next.get(tuple(ids[: length - logits_to_keep + place + 1]))
                if known is not None:
                    logits[row, place, known] = SURE
        return SimpleNamespace(logits=logits)

    def generate(self, input_ids: Tensor, generation_config: Any, stopping_criteria: Any, **_: Any) -> Tensor:
        for _step in range(generation_config.max_new_tokens):
            last = self(input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            input_ids = torch.cat([input_ids, last.argmax(-1, keepdim=True)], dim=1)
            if bool(stopping_criteria(input_ids, None).all()):
                break
        return input_ids


def oracle(asked: Sequence[Item]) -> Speaker:
    """Knows the answer to every item, and that a line ends there."""
    speaker = constant()
    return Speaker(model=Known([speaker.encode(f"{i.prompt}{i.answer}\n") for i in asked]), tokenizer=tokenizer())


def constant() -> Speaker:
    """Finds every token as likely as any other."""
    return Speaker(model=Known([]), tokenizer=tokenizer())
