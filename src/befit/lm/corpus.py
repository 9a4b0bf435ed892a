"""Documentation as a training corpus: collected, tokenized with a tokenizer of its own, packed, and kept in a file.

Collecting needs the packages, training needs a GPU, and one machine seldom has both: `prepare` writes the packed rows
as 16-bit integers, two bytes a token, and `load_corpus` reads them back anywhere.

Legend: N train rows, M held-out rows, T tokens of a row. The tokenizer is GPT-2's scheme (Radford et al. 2019, section
2.2): byte-level pair encoding, so that every text can be encoded.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import LongTensor, Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from befit.errors import BadData
from befit.lm.data import Texts, pack
from befit.lm.documentation import PYTHON, documents, versions

END = "<|endoftext|>"
"""The token after each document; also the padding token."""
END_ID = 0
"""Its id: special tokens come first."""

PACKAGES = (
    *(PYTHON, "numpy", "scipy", "scikit-learn", "pandas", "sympy", "matplotlib", "statsmodels", "networkx", "astropy"),
    *("xarray", "dask", "scikit-image", "nltk", "django", "sqlalchemy", "pymc", "jax", "ipython", "twisted", "keras"),
    *("nilearn", "mne", "polars", "pytensor", "pyomo", "tensorflow-probability", "torch", "transformers", "diffusers"),
)
"""Packages whose documentation the embedded parent is trained on: BSD, MIT, Apache or PSF licensed, good prose."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which documentation, and how it becomes tokens."""

    tokens: Path | None = None
    """File that `prepare` wrote; None collects and packs, as the other fields say."""
    tokenizer: Path | None = None
    """The tokenizer folder that belongs to `tokens`; None is `tokenizer/` beside that file."""
    packages: tuple[str, ...] = PACKAGES
    """Distributions whose documentation is collected."""
    folders: tuple[Path, ...] = ()
    """site-packages folders to look in; empty means the running interpreter's."""
    limit_characters: int | None = None
    """Characters of documentation to collect at most; None takes all."""
    vocab: int = 3072
    """Tokens of the vocabulary, the end-of-text token included; 257 to 65,536."""
    context: int = 512
    """Tokens of a row, at least 2."""
    seed: int = 0
    """Seed of the order of documents."""

    def __post_init__(self) -> None:
        """Refuse a vocabulary that bytes or 16 bits cannot hold."""
        if not 257 <= self.vocab <= 65_536 or self.context < 2:
            raise ValueError(f"vocab must be 257 to 65,536 and context at least 2; got {self.vocab}, {self.context}")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Packed documentation with its tokenizer and its origin."""

    tokenizer: PreTrainedTokenizerBase
    """The byte-level BPE tokenizer."""
    train: LongTensor
    """(N, T) token ids."""
    held_out: LongTensor
    """(M, T) token ids of documents that are not in `train`."""
    packages: dict[str, str]
    """Version of each package the documentation came from."""


def prepare(config: CorpusConfig, out: Path) -> Path:
    """Collect, pack and write: `out` (uint16 rows) and, beside it, `tokenizer/`, to be named in `CorpusConfig.tokens`."""
    corpus = collect(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = {"train": corpus.train.to(torch.uint16), "held_out": corpus.held_out.to(torch.uint16)}
    save_file(rows, out, metadata={"packages": json.dumps(corpus.packages)})
    corpus.tokenizer.save_pretrained(out.parent / "tokenizer")
    return out


def collect(config: CorpusConfig) -> Corpus:
    """Documentation of `config.packages`, tokenized with a tokenizer trained on its train part, and packed."""
    found = documents(config.packages, folders=config.folders, limit_characters=config.limit_characters)
    texts = Texts(source="the documentation", documents=tuple(document.text for document in found))
    train_texts, held_out_texts = texts.split()
    _LOGGER.info("%d documents, %d characters", len(texts.documents), sum(map(len, texts.documents)))
    tokenizer = train_tokenizer(train_texts.documents, config.vocab)
    return Corpus(
        tokenizer=tokenizer,
        train=pack(train_texts, tokenizer, config.context, seed=config.seed),
        held_out=pack(held_out_texts, tokenizer, config.context, seed=config.seed),
        packages=versions(config.packages, folders=config.folders),
    )


def load_corpus(config: CorpusConfig) -> Corpus:
    """Read the file `config.tokens`, which `prepare` wrote; collect and pack when none is named.

    Raises `BadData` for a missing file or one of another kind, and as `collect` does.
    """
    if config.tokens is None:
        return collect(config)
    tokens, folder = config.tokens, config.tokenizer or config.tokens.parent / "tokenizer"
    if not (tokens.is_file() and folder.is_dir()):
        raise BadData(f"parent: expected a token file at {tokens} and a tokenizer in {folder}; make both with prepare")
    try:
        with safe_open(tokens, framework="pt") as file:
            names, metadata = set(file.keys()), file.metadata() or {}
            if names != {"train", "held_out"} or "packages" not in metadata:
                raise BadData(f"parent: {tokens} holds {sorted(names)}, not token rows; make the file with prepare")
            train_rows, held_out = (file.get_tensor(name).long() for name in ("train", "held_out"))
    except SafetensorError as error:
        raise BadData(f"parent: {tokens} is not a safetensors file ({error}); make the file with prepare") from error
    return Corpus(
        tokenizer=AutoTokenizer.from_pretrained(folder),
        train=train_rows,
        held_out=held_out,
        packages=json.loads(metadata["packages"]),
    )


def train_tokenizer(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (GPT-2's scheme) of exactly `vocab` tokens. Every text can be encoded."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg]
        vocab_size=vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise BadData(
            f"parent: the text gives only {tokenizer.get_vocab_size()} of {vocab} tokens; "
            f"collect more documentation or ask for a smaller vocabulary"
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def token_bytes(tokenizer: PreTrainedTokenizerBase, rows: Tensor) -> int:
    """UTF-8 bytes of the tokens that rows (N, T) ask a model to predict: all but each row's first."""
    vocabulary = tokenizer.get_vocab()
    sizes = torch.zeros(len(vocabulary), dtype=torch.long)
    for token, index in vocabulary.items():
        sizes[index] = 0 if token == END else len(token)  # a byte-level token has one character for each byte
    return int(sizes[rows[:, 1:]].sum())
