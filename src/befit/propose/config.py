"""Everything one run of `befit propose` is asked to do. The run directory keeps it as JSON; `resume` reads it back."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from befit.budget import Budget
from befit.errors import BadBudget, BadData
from befit.propose.answer import Form
from befit.propose.archive import ArchiveConfig, Pick, Selection
from befit.propose.learned import LearnConfig
from befit.propose.lora import TuneConfig
from befit.propose.models import Price
from befit.rundir import rebuilt
from befit.vision.training import TrainConfig

PLAIN = ("grammar", "learn")
"""Proposers that need no address and no folder."""


@dataclass(frozen=True, kw_only=True)
class ProposeConfig:
    """Let a model write image classifiers for your data; each is checked, and trained in a sandbox."""

    llm: str = "grammar"
    """`grammar` (befit's own sampler: no model), `learn` (a small one trained on the way), `hf:PATH`, `lora:PATH` (tuned on its
    own best), or the address of a server that speaks OpenAI's protocol, such as http://localhost:8000/v1."""
    model: str | None = None
    """The model's name at that server."""
    data: str | None = None
    """Folders of class folders, parquet files or hub names, by comma; none takes the embedded 8 x 8 digits."""
    budget: str | None = None
    """Bounds on params, flops and macs, such as "params<=2M". Nothing beyond is ever trained."""
    out: Path = Path("runs/propose")
    """Run directory."""
    proposals: int = 24
    """For each arm, dataset and seed."""
    seeds: int = 1
    """Repetitions of each arm on each dataset."""
    arms: str = ""
    """Settings to compare: "shots=0..6", "form=network,unified; shots=1,3" (all combinations), "llm=grammar | llm=learn,
    temperature=1.0" (one or the other)."""
    shots: int = 3
    """Scored networks shown as examples, 0 to 6, beside the one that is to be changed."""
    pick: Pick = "best"
    """Which: the best, the best that are unlike each other (diverse), or any (random)."""
    selection: Selection = "rank"
    """How the network to change is chosen: evenly among the ten best (elite), or by a weight that falls with its rank (rank) or
    its accuracy (softmax)."""
    islands: int = 1
    """Populations that live apart and exchange their best now and then."""
    form: Form = "network"
    """What is asked for: the whole file, changes to a network as search-replace blocks or a unified diff, or a genome."""
    space: Literal["cell", "mobile"] = "cell"
    """Of the genomes."""
    chain_of_thought: bool = False
    """Ask for a reason before the answer."""
    notes: int = 8
    """Lines on what earlier proposals have shown, in each prompt."""
    retries: int = 1
    """Times that a refused proposal is asked for again, with the reason in one line; 0 or 1."""
    temperature: float = 0.8
    """Logits are divided by it."""
    max_tokens: int = 4096
    """Tokens after which an answer is cut off."""
    prompt_tokens: int = 8192
    """Budget of a prompt; examples and notes that do not fit are left out."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key of the server."""
    patience: float = 900.0
    """Seconds over which a call that fails is made again."""
    ahead: int = 0
    """Proposals that each one does not wait for: with 1, a server writes the next network while one trains, not knowing yet
    what that one is worth. Arms, datasets and seeds do not wait for each other in any case."""
    timeout: float = 600.0
    """Seconds without a byte after which a call counts as failed."""
    extra: str = ""
    """A JSON object with further fields of each request, in the server's own words."""
    prices: str | None = None
    """Of a million tokens, read and written, such as "0.15,0.60"."""
    cache: Path | None = None
    """Folder of answers that runs share: the same request to the same model is made once, ever."""
    recipe: bool = False
    """Networks bring their own training (`train_setup` and `learn`) instead of befit's."""
    prm: str = ""
    """Hyper-parameters that networks get, such as "lr=0.05,dropout=0.1"."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=8))
    """Of every network."""
    final: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=30))
    """Of the best network of each dataset, at the end; with --recipe its epochs count."""
    seconds: float = 120.0
    """Longest training of one network; the last one may take as much longer as it has more epochs."""
    memory: float = 4.0
    """GiB that one candidate may use beside its images; with a GPU, as much of its memory again."""
    sandbox: str = "native"
    """What proposed code runs in: native, bwrap, docker:IMAGE, or none (your rights, your files: only for code you trust)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks, and local language models, compute."""
    size: int | None = None
    """Pixels to which images are scaled and cropped."""
    lemur: Path | None = None
    """Folder of networks and results in LEMUR's form, to show from the start; what repeats one of them is not trained."""
    export_lemur: bool = False
    """Write the trained networks in LEMUR's form too, into lemur/ of the run."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """Of --llm learn."""
    tune: TuneConfig = field(default_factory=TuneConfig)
    """Of --llm lora:PATH."""

    def __post_init__(self) -> None:
        for name, least in (
            ("proposals", 1),
            ("seeds", 1),
            ("notes", 0),
            ("ahead", 0),
            ("max_tokens", 1),
            ("prompt_tokens", 1),
        ):
            if (told := self.__dict__[name]) < least:
                raise BadData(f"{name} must be at least {least}, got {told}")
        for name in ("seconds", "memory", "timeout"):
            if not (told := self.__dict__[name]) > 0:
                raise BadData(f"{name} must be above 0, got {told}")
        if self.retries not in (0, 1):
            raise BadData(f"retries must be 0 or 1, got {self.retries}")
        if not self.temperature >= 0 or not self.patience >= 0:
            raise BadData(f"temperature and patience must be 0 or more, got {self.temperature} and {self.patience}")
        if self.form not in get_args(Form):
            raise BadData(f"form must be one of {', '.join(get_args(Form))}, got {self.form!r}")
        if self.llm not in PLAIN and not self.llm.startswith(("http://", "https://", "hf:", "lora:")):
            raise BadData(
                f"llm must be grammar, learn, hf:PATH, lora:PATH or an address such as http://localhost:8000/v1, got {self.llm!r}"
            )
        if self.model is not None and not self.llm.startswith("http") and not self.arms.strip():
            raise BadData(f"model {self.model!r} is a name at a server: give its address, too, as --llm http://…/v1")
        if self.form == "genome" and self.recipe:
            raise BadData("a genome has no training of its own: leave --recipe or --form genome out")
        if self.form == "genome" and self.lemur is not None:
            raise BadData("networks of LEMUR are no genomes: leave --lemur or --form genome out")
        # What cannot be read is said at once.
        _ = self.archive, self.price, self.hyperparameters, self.bounds, self.datasets

    @property
    def archive(self) -> ArchiveConfig:
        """How parents and examples are chosen, but for the accuracy below which a network is never shown."""
        return ArchiveConfig(shots=self.shots, pick=self.pick, selection=self.selection, islands=self.islands)

    @property
    def bounds(self) -> Budget | None:
        """The budget. Raises `BadBudget` for a relative one: there is no parent."""
        budget = None if self.budget is None else Budget.parse(self.budget)
        if budget is not None and any(bound.relative for bound in budget.bounds):
            raise BadBudget(f"budget: {budget} is relative, but there is no parent here; give absolute bounds")
        return budget

    @property
    def price(self) -> Price | None:
        """Both prices, if given. Raises `BadData`."""
        if self.prices is None:
            return None
        try:
            read, written = (float(part) for part in self.prices.split(","))
        except ValueError:
            raise BadData(
                f"prices: expected two numbers per million tokens, read and written, such as 0.15,0.60; got {self.prices!r}"
            ) from None
        return Price(read=read, written=written)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """What `prm` sets. Raises `BadData`."""
        found = dict[str, float]()
        for part in filter(None, (piece.strip() for piece in self.prm.split(","))):
            name, sign, value = part.partition("=")
            try:
                found[name.strip()] = float(value)
            except ValueError:
                sign = ""
            if not sign or not name.strip().isidentifier():
                raise BadData(f"prm: expected name=number, separated by commas, such as lr=0.05; got {part!r}")
        return found

    @property
    def datasets(self) -> dict[str, str | None]:
        """Where the data of each name are; names are short where that is enough to tell them apart. Raises `BadData`."""
        if self.data is None:
            return {"digits": None}
        sources = [part.strip() for part in self.data.split(",") if part.strip()]
        if not sources or len(set(sources)) < len(sources):
            raise BadData(f"data: expected folders, files or hub names by comma, each once; got {self.data!r}")
        short = [source.rstrip("/").rpartition("/")[2] for source in sources]
        return dict(zip(short if len(set(short)) == len(short) else sources, sources, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for config.json; `verb` tells the run from those of other verbs."""
        told = {"verb": "propose", **dataclasses.asdict(self)}
        return json.loads(json.dumps(told, default=str))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "ProposeConfig":
        """Read what `to_json` wrote. Raises `RunConflict` for a key this version does not know."""
        return rebuilt(ProposeConfig, {name: value for name, value in data.items() if name != "verb"})
