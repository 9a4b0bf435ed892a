from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from befit.errors import UnsupportedModel
from befit.propose.local import LocalModel, load
from befit.propose.models import Message, Price, Request
from tiny_chat import NO_SYSTEM, save_tiny_chat, tiny_chat, tiny_tokenizer

TALK = (Message(role="system", content="be brief"), Message(role="user", content="a net"))
ASK = Request(messages=TALK, max_tokens=12, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel(tiny_chat(), tiny_tokenizer(), label="tiny", price=Price(read=1e6, written=2e6))


def by_hand(weights: nn.Module, text: str, tokens: int) -> str:
    """The likeliest continuation, token by token, without generate()."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.inference_mode():
        for _ in range(tokens):
            ids = torch.cat([ids, weights(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


def test_the_likeliest_answer_is_the_one_computed_by_hand(model: LocalModel) -> None:
    found = model.complete(replace(ASK, temperature=0.0))
    text = "<|system|>be brief<|end|><|user|>a net<|end|><|assistant|>"
    assert found.text == by_hand(model.model, text, 12)
    read = len("be brief") + len("a net") + 5
    assert (found.finish, found.prompt_tokens, found.completion_tokens) == ("length", read, 12)
    assert found.price == read + 2 * 12 and found.seconds > 0
    assert model.count("a net") == 5


def test_without_a_chat_template_the_messages_are_plain_text(model: LocalModel) -> None:
    plain = LocalModel(model.model, tiny_tokenizer(None), label="tiny")
    found = plain.complete(replace(ASK, temperature=0.0))
    assert found.text == by_hand(model.model, "be brief\n\na net\n\n", 12)
    assert plain.name != model.name and found.price is None


def test_a_template_without_a_system_gets_one_message(model: LocalModel) -> None:
    strict = LocalModel(model.model, tiny_tokenizer(NO_SYSTEM), label="tiny")
    found = strict.complete(replace(ASK, temperature=0.0))
    assert found.text == by_hand(model.model, "<|user|>be brief\n\na net<|end|><|assistant|>", 12)


def test_draws_depend_on_the_seed_alone_and_leave_the_process_as_it_was(model: LocalModel) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = model.complete(ASK)
    assert torch.rand(1) == expected
    assert model.complete(ASK).text == first.text
    assert len({model.complete(replace(ASK, seed=seed)).text for seed in range(5)}) == 5


def test_the_models_own_sampling_settings_do_not_interfere() -> None:
    weights = tiny_chat()
    bare = LocalModel(weights, tiny_tokenizer(), label="tiny").complete(ASK).text
    weights.generation_config.top_k = 1
    weights.generation_config.temperature = 0.01
    weights.generation_config.max_new_tokens = 3
    assert LocalModel(weights, tiny_tokenizer(), label="tiny").complete(ASK).text == bare


def test_an_answer_ends_at_the_end_token_or_a_stop_text_which_is_no_part_of_it(model: LocalModel) -> None:
    whole = model.complete(ASK).text
    mark = next(one for one in whole if one.isascii())
    found = model.complete(replace(ASK, stop=(mark,)))
    assert found.text == whole[: whole.index(mark)]
    assert found.finish in ("stop", "empty") and (found.completion_tokens or 0) <= 12

    weights = tiny_chat()
    nn.init.zeros_(weights.lm_head.weight)
    weights.lm_head.bias = nn.Parameter(torch.zeros(260).index_fill(0, torch.tensor([256]), 50.0))
    silent = LocalModel(weights, tiny_tokenizer(), label="silent").complete(ASK)
    assert (silent.text, silent.finish, silent.completion_tokens) == ("", "empty", 1)


def test_a_prompt_beyond_the_context_is_too_long_and_an_answer_ends_with_it() -> None:
    model = LocalModel(tiny_chat(context=64), tiny_tokenizer(), label="tiny")
    long = replace(ASK, messages=(Message(role="user", content="x" * 62),))
    assert model.complete(long).finish == "too-long" and "65 tokens" in model.complete(long).said
    near = replace(ASK, messages=(Message(role="user", content="x" * 55),))
    assert (model.complete(near).finish, model.complete(near).completion_tokens) == ("length", 6)


def test_no_memory_is_an_outcome(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(model.model, "generate", full)
    assert model.complete(ASK).finish == "memory"


def test_other_weights_have_another_name(model: LocalModel) -> None:
    assert LocalModel(tiny_chat(), tiny_tokenizer(), label="tiny").name == model.name
    assert LocalModel(tiny_chat(1), tiny_tokenizer(), label="tiny").name != model.name
    assert LocalModel(tiny_chat().bfloat16(), tiny_tokenizer(), label="tiny").name != model.name


def test_a_folder_is_loaded_and_anything_else_refused(model: LocalModel, tmp_path: Path) -> None:
    loaded = load(str(save_tiny_chat(tmp_path / "tiny")), device="cpu")
    assert loaded.complete(ASK).text == model.complete(ASK).text
    assert loaded.name == model.name
    with pytest.raises(UnsupportedModel, match="there is no folder"):
        load(str(tmp_path / "absent"))
    (tmp_path / "absent").mkdir()
    with pytest.raises(UnsupportedModel, match="no causal language model"):
        load(str(tmp_path / "absent"))
