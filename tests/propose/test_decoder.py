import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from befit.errors import BadData
from befit.propose import decoder
from befit.propose.decoder import DecoderConfig, Schedule
from befit.propose.elites import LEVELS
from befit.propose.grammar import Bounds, draw
from befit.propose.prompt import stripped
from befit.propose.rendering import render

TINY = DecoderConfig(hidden=32, layers=2, heads=2, ffn=64, vocab=400, context=64)
TEXTS = ["class Net:\n    a = 12\n", "class Net:\n    b = 7\n", "class Other:\n    c = 305\n"]


def test_any_text_is_written_and_read_back_exactly() -> None:
    rng = random.Random(0)
    networks = [stripped(render(draw(rng, Bounds())), recipe=False) for _ in range(20)]
    tokenizer = decoder.make_tokenizer(networks[:10], 1024)
    odd = "x = 'ä — \t'\r\n\n\n        y=007 # <b>\n"
    for text in [*networks, odd, ""]:
        for level in (0, LEVELS - 1, decoder.UNSCORED):
            ids = decoder.encode(tokenizer, text, level)
            assert tokenizer.convert_ids_to_tokens(ids[0]) == decoder.level_token(level)
            assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[1:-1]) == text
    lengths = [len(decoder.encode(tokenizer, text)) for text in networks[:10]]
    assert max(lengths) < 200, "what all networks say takes few tokens"


def test_digits_stand_alone_so_that_a_width_is_written_by_its_figures() -> None:
    tokenizer = decoder.make_tokenizer(TEXTS * 9, 400)
    pieces = [tokenizer.decode(one) for one in decoder.encode(tokenizer, TEXTS[2])]
    assert "".join(pieces[-5:-2]) == "305" and len(pieces) <= 8


def test_it_learns_a_few_texts_by_heart() -> None:
    tokenizer = decoder.make_tokenizer(TEXTS, 400)
    rows = [decoder.encode(tokenizer, text, place) for place, text in enumerate(TEXTS)]
    model = decoder.make_model(TINY, len(tokenizer), 0)
    loss = decoder.train(model, rows, [1.0] * 3, Schedule(steps=60, batch=6, lr=1e-2), 0)
    assert loss < 0.05
    for place, row in enumerate(rows):
        made = model.generate(torch.tensor([row[:1]]), do_sample=False, max_new_tokens=40, pad_token_id=0)
        assert tokenizer.decode(made[0, 1:], skip_special_tokens=True) == TEXTS[place]


def test_padding_changes_nothing() -> None:
    rows = [[3, 5, 2, 0], [4, 6, 7, 8, 9, 0]]
    model = decoder.make_model(TINY, 300, 0)
    tokens, targets = decoder.padded(rows)
    together = F.cross_entropy(
        model(input_ids=tokens).logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100
    )
    terms = list[float]()
    for row in rows:
        found = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        terms += [found[place, token].item() for place, token in enumerate(row[1:])]
    assert together.item() == pytest.approx(-sum(terms) / len(terms), rel=1e-5)


def test_weights_say_how_often_a_text_is_drawn() -> None:
    plan = Schedule(steps=1, batch=8)
    rows = [[1], [2], [3]]
    drawn = decoder._batches(rows, [1.0, 3.0, 0.0], plan, 0)
    taken = [row[0] for _ in range(200) for row in next(drawn)]
    assert taken.count(3) == 0
    assert taken.count(2) / len(taken) == pytest.approx(0.75, abs=0.05)  # 0.011 is one standard deviation


def test_training_depends_on_the_seed_alone() -> None:
    tokenizer = decoder.make_tokenizer(TEXTS, 400)
    rows = [decoder.encode(tokenizer, text) for text in TEXTS]

    def weights(seed: int) -> torch.Tensor:
        model = decoder.make_model(TINY, len(tokenizer), 0)
        decoder.train(model, rows, [1.0] * 3, Schedule(steps=3, batch=2), seed)
        return torch.cat([one.detach().flatten() for one in model.parameters()])

    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(first, weights(0)) and not torch.equal(first, weights(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_saved_whole(tmp_path: Path) -> None:
    tokenizer = decoder.make_tokenizer(TEXTS, 400)
    model = decoder.make_model(TINY, len(tokenizer), 3).eval()
    decoder.save(model, tokenizer, tmp_path)
    again, words = decoder.load(tmp_path)
    ids = decoder.encode(words, TEXTS[0], 4)
    assert ids == decoder.encode(tokenizer, TEXTS[0], 4)
    given = torch.tensor([ids])
    assert torch.equal(model(input_ids=given).logits, again.eval()(input_ids=given).logits)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadData, match="hidden"):
        DecoderConfig(hidden=30, heads=4)
    with pytest.raises(BadData, match="vocab"):
        DecoderConfig(vocab=100)
    with pytest.raises(BadData, match="steps=0"):
        Schedule(steps=0)
    with pytest.raises(BadData, match="context"):
        decoder.train(decoder.make_model(TINY, 300, 0), [], [], Schedule(steps=1), 0)
