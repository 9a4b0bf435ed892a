"""A language model in this process: any causal model of transformers, from a folder or the hub, or one being trained.

    model = load("./some-local-model")
    model.complete(request)

A model with a chat template is talked to by it, one without reads the messages as plain text. Draws depend on the request's
seed alone; the random state of the process is left as it was.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from befit.cost.device import found_device
from befit.errors import UnsupportedModel
from befit.lm.training import sampled_checksum
from befit.propose.models import Completion, Finish, Message, Price, Request, one_line
from befit.rundir import digest


class LocalModel:
    """A causal model and its tokenizer. Threads may share it; their requests are answered one after the other."""

    def __init__(self, model: Any, tokenizer: Any, *, label: str, price: Price | None = None) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.price = price
        self._lock = threading.Lock()
        told = (tokenizer.chat_template, str(model.dtype), sampled_checksum(model.state_dict().items()))
        self.name = f"hf:{label}#{digest(*told)[:8]}"
        """The label and a checksum of weights, number format and chat template: other weights, other name."""

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def complete(self, request: Request) -> Completion:
        """Draw an answer. One that does not fit into the context beside the prompt is cut off there."""
        begin = time.perf_counter()
        prompt = self.prompt(request.messages).to(self.model.device)
        read = prompt.shape[1]
        room = self._context() - read
        if room < 1:
            said = f"the prompt has {read} tokens, the model reads {self._context()}"
            return Completion(finish="too-long", said=said, prompt_tokens=read)
        limit = min(request.max_tokens, room)
        try:
            with self._lock:
                drawn = self._draw(prompt, request, limit)
        except torch.OutOfMemoryError as error:
            return Completion(finish="memory", said=one_line(str(error)), seconds=time.perf_counter() - begin)
        text = _before(self.tokenizer.decode(drawn, skip_special_tokens=True), request.stop)
        stopped = drawn[-1].item() in self._ends() or len(drawn) < limit
        finish: Finish = "length" if not stopped else "stop" if text.strip() else "empty"
        return Completion(
            text=text,
            finish=finish,
            prompt_tokens=read,
            completion_tokens=len(drawn),
            seconds=time.perf_counter() - begin,
            price=self.price.of(read, len(drawn)) if self.price else None,
        )

    def prompt(self, messages: Sequence[Message]) -> Tensor:
        """Token ids (1, T) of a conversation."""
        if not self.tokenizer.chat_template:
            text = "\n\n".join(one.content for one in messages) + "\n\n"
            return self.tokenizer(text, return_tensors="pt")["input_ids"]
        from jinja2 import TemplateError

        try:
            return self._templated(messages)
        except TemplateError:  # some templates have no place for a system's message
            return self._templated(_without_system(messages))

    def _templated(self, messages: Sequence[Message]) -> Tensor:
        told = [{"role": one.role, "content": one.content} for one in messages]
        made = self.tokenizer.apply_chat_template(
            told, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return made["input_ids"]

    def _draw(self, prompt: Tensor, request: Request, limit: int) -> Tensor:
        """Token ids (T,) of an answer, its end included."""
        from transformers import GenerationConfig

        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        ends = sorted(self._ends())
        config = GenerationConfig(
            max_new_tokens=limit,
            stop_strings=list(request.stop) or None,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
            **sampling,
        )
        device = prompt.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(request.seed)
            made = self.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                tokenizer=self.tokenizer if request.stop else None,
            )
        return made[0, prompt.shape[1] :]

    def _ends(self) -> set[int]:
        """Tokens that end an answer."""
        told = self.model.generation_config.eos_token_id
        ends = set(told) if isinstance(told, list) else {told}
        return {one for one in (*ends, self.tokenizer.eos_token_id) if one is not None}

    def _context(self) -> int:
        told = vars(self.model.config).get("max_position_embeddings")
        return told if isinstance(told, int) else 1 << 20


def load(path: str, *, device: str = "auto", price: Price | None = None) -> LocalModel:
    """The model of a folder, or of this name on the hub, on `device`, which is auto (a GPU if there is one), cpu or cuda.

    Code that comes with a model is not run. Raises `UnsupportedModel` if it cannot be loaded, `BefitError` for a GPU that is
    not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if path.startswith((".", "/")) and not Path(path).is_dir():
        raise UnsupportedModel(f"there is no folder {path!r}; give one with config.json, weights and a tokenizer")
    place = found_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(
            f"no causal language model could be loaded from {path!r}: {one_line(str(error))}; give a folder with "
            "config.json, weights and a tokenizer, or a model's name on the hub"
        ) from error
    return LocalModel(model.to(place), tokenizer, label=path.rstrip("/").rpartition("/")[2], price=price)


def _before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of these."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation with what the system says at the head of the user's first message."""
    said = "\n\n".join(one.content for one in messages if one.role == "system")
    others = [one for one in messages if one.role != "system"]
    if not said or not others:
        return [Message(role="user", content=said)] if said else others
    return [Message(role=others[0].role, content=f"{said}\n\n{others[0].content}"), *others[1:]]
