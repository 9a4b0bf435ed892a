"""What is known of one proposal: how far it came, why no further, what it is and what it cost.

Values only. The stages are those of the funnel, in the order of the gate; a proposal's stage is the last one that it passed:

    attempted ─ returned ─ parsed ─ allowed ─ new by tree ─ built ─ in budget ─ new by graph ─ trained ─ above chance
"""

from dataclasses import dataclass
from typing import Literal, get_args

from befit.propose.fingerprint import Keys

Stage = Literal[
    "attempted", "returned", "parsed", "allowed", "new-tree", "built", "in-budget", "new-graph", "trained", "above-chance",
]  # fmt: skip

STAGES: tuple[Stage, ...] = get_args(Stage)
"""In order: a request was made; an answer came; it holds a network; the policy allows it; no earlier proposal has its tree; it
can be built, run and trained; it keeps the budget; no earlier one has its operations; it was trained; it beats guessing."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """An earlier proposal, or a network known from the start, that is the same network."""

    number: int
    """Its number; below 0 for one that was known from the start."""
    accuracy: float | None
    """Its accuracy, 0 .. 1, on the validation data if it is a proposal's; None if it has none."""
    reason: str = ""
    """Why it has none."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says of a source text."""

    stage: Stage
    """The last stage that it passed: new-graph if it may be trained."""
    reason: str = ""
    """Why no further: a short code that is counted; empty if it may be trained."""
    said: str = ""
    """That in one line, for the model's next try."""
    keys: Keys | None = None
    """Its fingerprint without the graph; None if it is not Python."""
    graph: str = ""
    """Key of its operations; empty if it was not built, or has none because it looks at numbers."""
    params: int | None = None
    """Parameters, exactly; None if it was not built."""
    flops: int | None = None
    """Of one image's forward, 2 for a multiply-add; None if it was not built."""
    same_as: Known | None = None
    """The earlier proposal that it repeats."""
    seconds: float = 0.0
    """Spent in the gate."""

    @property
    def passed(self) -> bool:
        """Whether it may be trained."""
        return self.stage == "new-graph"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One row of a run."""

    arm: str
    """Name of the settings that are compared, such as "shots=3"; the empty name if there is one only."""
    dataset: str
    """What it is for."""
    seed: int
    """Of the repetition, 0 or more."""
    number: int
    """Within arm, dataset and seed, from 0: equal attempts for each."""
    stage: Stage = "attempted"
    """The last stage that it passed."""
    reason: str = ""
    """Why it went no further: a code of the answer, the gate or the trial; empty for one above chance, or under way."""
    said: str = ""
    """That in one line."""
    form: str = "network"
    """network, search-replace, unified or genome."""
    source: str = ""
    """The network's file; empty if none was found in the answer."""
    whitespace: str = ""
    tree: str = ""
    recipe: str = ""
    graph: str = ""
    """Keys, empty where not known."""
    lemur: str = ""
    """LEMUR's MD5."""
    params: int | None = None
    """Parameters."""
    flops: int | None = None
    """Of one image's forward, 2 for a multiply-add."""
    accuracy: float | None = None
    """On the validation data, 0 .. 1; of a repeated proposal, the known one."""
    same_as: int | None = None
    """Number of the earlier proposal, or below 0 of the network known from the start, that is the same network."""
    parent: int | None = None
    """Number of the network that it was to change."""
    examples: tuple[int, ...] = ()
    """Numbers of the networks that it was shown beside."""
    dropped: int = 0
    """Examples and notes that did not fit into the prompt."""
    calls: int = 0
    """Requests, the retry included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Of all its calls, as far as the server said."""
    price: float | None = None
    """Of all its calls; None where it is not known."""
    call_seconds: float = 0.0
    """In calls, rests included, and in what a proposer that learns did before them."""
    gate_seconds: float = 0.0
    """In the gate."""
    train_seconds: float = 0.0
    """In training."""
    done: bool = False
    """Whether nothing is left to be done for it; rows that are not done are taken up again by a resumed run."""

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells it apart: asked again, it is the same proposal."""
        return self.arm, self.dataset, self.seed, self.number
