"""A tiny parent on disk, with a tokenizer and text of its own, and a run of `befit puzzle` on it that takes about a second."""

import json
import random
from pathlib import Path

from tests import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from befit.lm.modeling_befit import BefitForCausalLM

WORDS = ("river", "stone", "model", "layer", "small", "green", "under", "light", "seven", "house")
QUICK = (
    "--workload=batch=1,prompt=8,generate=4",
    "--sequence=16",
    "--rank-tokens=256",
    "--local-tokens=512",
    "--score-sequences=8",
    "--heal.tokens=512",
    "--heal.checkpoint-seconds=0",
    "--measure.fit-runs=1",
    "--measure.held-out-runs=1",
    "--measure.repeats=1",
    "--measure.seconds=0",
    "--polish.evaluations=8",
    "--attention=all,1,noop",
    "--ffn=100,50,noop",
    "--device=cpu",
)
"""Arguments that make a run short."""


def write_parent(folder: Path, family: str = "llama", layers: int = 3) -> Path:
    """A Llama of three layers, or another, with a byte-level tokenizer, as `save_pretrained` writes them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    size = tokenizer.get_vocab_size()
    model = tiny.original(family, layers, vocab_size=size, intermediate_size=96, bos_token_id=None, eos_token_id=0)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder


def write_text(file: Path, documents: int = 400) -> Path:
    """Documents of 40 random words, one JSON object a line."""
    rng = random.Random(0)
    texts = (" ".join(rng.choices(WORDS, k=40)) for _ in range(documents))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def command(folder: Path, out: Path, budget: str, *more: str) -> list[str]:
    """`befit puzzle` on the parent and the text in `folder`, which are written if they are not there."""
    parent, data = folder / "parent", folder / "text.jsonl"
    if not data.exists():
        write_parent(parent)
        write_text(data)
    return ["puzzle", f"--parent={parent}", f"--data={data}", f"--out={out}", f"--budget={budget}", *QUICK, *more]


def weight_sum(model: BefitForCausalLM) -> float:
    """A task: the fewer weights, the worse."""
    return -float(sum(parameter.numel() for parameter in model.parameters()))
