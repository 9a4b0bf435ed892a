"""Checkpoints of every kind are opened as what they are, and what cannot be opened is said to be so."""

import shutil
from pathlib import Path

import pytest
import torch
from tests import tiny_run
from transformers import AutoModelForCausalLM

from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, NoOp
from befit.errors import UnsupportedModel
from befit.lm.child import build, config_for, save
from befit.lm.contender import Place, checkpoint, tokenizer


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_parent(tmp_path_factory.mktemp("models") / "parent")


def test_a_child_and_a_plain_checkpoint_give_their_own_logits(parent: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(parent)
    kept = Block(attention=Attention(kv_heads=2), ffn=Ffn(width=96))
    arch = DecoderArch(blocks=(kept, Block(attention=NoOp(), ffn=Ffn(width=96)), kept))
    child = build(config_for(plain.config, arch), device="cpu")
    save(child, tmp_path / "child", tokenizer(parent))
    ids = torch.tensor([[5, 6, 7, 8]])
    for folder, model in ((parent, plain), (tmp_path / "child", child)):
        speaker = Place(batch=3).speaker(checkpoint(str(folder), Place()))
        assert speaker.batch == 3 and speaker.encode("river")
        with torch.no_grad():
            torch.testing.assert_close(speaker.model(ids).logits, model(ids).logits)
    half = Place(dtype=torch.bfloat16)
    assert half.speaker(checkpoint(str(parent), half)).model.dtype == torch.bfloat16


def test_what_cannot_be_opened(parent: Path, tmp_path: Path) -> None:
    place = Place()
    with pytest.raises(UnsupportedModel, match="give a checkpoint folder or a run directory"):
        checkpoint(str(tmp_path), place)
    for lost, words in (("tokenizer.json", "has no tokenizer"), ("model.safetensors", "cannot be loaded")):
        shutil.copytree(parent, tmp_path / lost)
        (tmp_path / lost / lost).unlink()
        with pytest.raises(UnsupportedModel, match=words):
            place.speaker(checkpoint(str(tmp_path / lost), place))
    shutil.copytree(parent, tmp_path / "code")
    told = (tmp_path / "code" / "config.json").read_text().replace('"llama"', '"unheard_of"')
    (tmp_path / "code" / "config.json").write_text(told)
    with pytest.raises(UnsupportedModel, match="--trust-remote-code"):
        checkpoint(str(tmp_path / "code"), place)  # before anything is asked of other models
