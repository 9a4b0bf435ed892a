import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from befit.errors import BadData, BefitError
from befit.propose.archive import Scored
from befit.propose.local import LocalModel
from befit.propose.lora import RECORD, TuneConfig, Tuned
from befit.propose.models import Message, Request
from tiny_chat import tiny_chat, tiny_tokenizer

GOOD = "```python\nclass Net: a\n```"
CONFIG = TuneConfig(every=4, elite=0.25, passes=60, lr=2e-2, rank=8)


def request(number: int) -> Request:
    talk = (Message(role="system", content="s"), Message(role="user", content=f"n{number}"))
    return Request(messages=talk, max_tokens=30, seed=number, temperature=0.0)


def tuned(config: TuneConfig = CONFIG, seed: int = 0) -> Tuned:
    weights = tiny_chat()
    with torch.no_grad():
        for one in weights.parameters():
            one.mul_(
                9.0 if one.ndim > 1 else 1.0
            )  # from 0.02 to about 1 / sqrt(32), or an adapter has nothing to work with
    return Tuned(LocalModel(weights, tiny_tokenizer(), label="tiny"), config, seed=seed)


def rows(best: int = 1) -> list[Scored]:
    return [
        Scored(number=number, key=str(number), text="", dataset="d", accuracy=0.9 if number == best else 0.5)
        for number in range(4)
    ]


def asked(proposer: Tuned, folder: Path) -> None:
    """Four proposals, of which the second is the best."""
    for number, said in enumerate(("b", GOOD, "c", "d")):
        proposer.heard(number, request(number).messages, said, folder)


def test_the_elites_answer_to_their_own_prompt_is_learned_and_the_base_stays(tmp_path: Path) -> None:
    proposer = tuned()
    asked(proposer, tmp_path)
    before = {name: weight.clone() for name, weight in proposer.base.model.state_dict().items()}
    plain = proposer.model(0, [], tmp_path).complete(request(1)).text
    model = proposer.model(4, rows(), tmp_path)
    assert model.complete(request(1)).text == GOOD
    told = json.loads((tmp_path / "generation-1" / RECORD).read_text())
    assert told["elites"] == 1 and told["loss"][-1] < 1.0 and told["loss"][0] > 4.0
    proposer.close()
    after = proposer.base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert proposer.model(3, rows(), tmp_path).complete(request(1)).text == plain


def test_a_resumed_run_reads_its_adapter_and_another_row_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = replace(CONFIG, passes=2)
    proposer = tuned(quick)
    asked(proposer, tmp_path)
    first = proposer.model(5, rows(), tmp_path)
    text = first.complete(request(9)).text
    fits, fit = count(), Tuned._fit
    calls = list[int]()

    def counted(self: Tuned, *given: Any) -> list[float]:
        calls.append(next(fits))
        return fit(self, *given)

    monkeypatch.setattr(Tuned, "_fit", counted)
    again = tuned(quick)
    later = [*rows(), Scored(number=4, key="4", text="x", dataset="d", accuracy=1.0)]
    resumed = again.model(7, later, tmp_path)
    assert (resumed.name, resumed.complete(request(9)).text, calls) == (first.name, text, [])
    other = again.model(7, rows(best=2), tmp_path)
    assert calls == [0] and other.name != first.name
    assert again.model(7, rows(best=2), tmp_path).name == other.name and calls == [0]
    assert tuned(quick).model(7, rows(), tmp_path).name == first.name, "made again, it is the same"


def test_the_last_answer_is_kept_with_its_prompt_which_is_no_part_of_what_is_learned(tmp_path: Path) -> None:
    proposer = tuned()
    for answer in ("a", "b"):
        proposer.heard(1, request(1).messages, answer, tmp_path)
    assert proposer._pairs(rows(), tmp_path) == [(list(request(1).messages), "b")]
    row = proposer._encoded(request(3).messages, "xyz")
    assert row is not None
    tokens, begin = row
    words = proposer.base.tokenizer
    assert words.decode(tokens[0, :begin]) == "<|system|>s<|end|><|user|>n3<|end|><|assistant|>"
    assert words.decode(tokens[0, begin:]) == "xyz<|end|>"
    short = tuned(replace(CONFIG, tokens=6))
    cut = short._encoded(request(3).messages, "xyz")
    assert cut is not None and words.decode(cut[0][0]) == "<|end|><|assistant|>xyz<|end|>" and cut[1] == 2
    assert tuned(replace(CONFIG, tokens=4))._encoded(request(3).messages, "xyz") is None


def test_without_a_known_prompt_the_base_model_goes_on(tmp_path: Path) -> None:
    proposer = tuned()
    assert proposer.model(6, rows(), tmp_path).name == proposer.base.name
    assert proposer.model(6, [], tmp_path).name == proposer.base.name
    assert proposer.count("abc") == 3


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(BefitError, match=r"pip install befit\[llm\]"):
        tuned()


def test_settings_are_checked() -> None:
    with pytest.raises(BadData, match="rank"):
        TuneConfig(rank=0)
    with pytest.raises(BadData, match="elite"):
        TuneConfig(elite=0.0)
