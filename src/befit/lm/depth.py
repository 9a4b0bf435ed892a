"""In which order the layers of a network are best dropped: a layer that goes is bypassed by the residual stream.

The measure is what the logits lose, sum (full - without)^2 / sum full^2, and it is taken anew after every removal, because
what one layer is worth depends on which others are left. Three cheaper measures look at the whole network only, to compare:
the same error without re-scoring, block influence 1 - cos(layer's input, its output), and the rise of the loss.

Logits are linear in the last hidden states: with W the output projection, the squared error of a difference d is
d W^T W d^T. So the error needs one product with a matrix (D, D) instead of one with W, and no logits.

Shapes: N sequences, B batch, T tokens, D hidden, V vocabulary, L layers.

Source: Nemotron Elastic (arXiv 2511.16664, section 3: normalised error, iterative); block influence is ShortGPT's (arXiv
2403.03853, equation 1). That a hybrid keeps one layer of attention and one of Mamba-2 is ours.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from befit.arch.decoder import Attention, DecoderShape, Mamba
from befit.errors import BadData, UnsupportedModel
from befit.lm.distill import chunks
from befit.lm.network import Network, Weights, advance, embed, finish, head
from befit.progress import Progress, silent

Method = Literal["iterative", "single", "cosine", "perplexity"]
"""`iterative`: error of the logits, re-scored after each removal; `single`: the same, scored once; `cosine`: block
influence; `perplexity`: rise of the loss in nats per token. The last two are scored once, too."""
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True)
class DepthRanking:
    """The order in which layers go, by one measure, and what it said. Smaller is less important."""

    method: Method
    """The measure."""
    removal: tuple[int, ...]
    """Layers, least important first: the first k of them are dropped together. Layers that must stay are not in it."""
    steps: tuple[float, ...]
    """For each removal, the score that the layer had when it was chosen; `iterative`: the error of all removals until then."""
    alone: tuple[float, ...]
    """For each layer of the network, the score of dropping it alone."""


def removal_order(
    net: Network,
    weights: Weights,
    tokens: Tensor,
    *,
    method: Method = "iterative",
    keep_at_least: int = 1,
    batch: int = 8,
    progress: Progress = silent,
) -> DepthRanking:
    """Order the layers of a network on token ids (N, T), `batch` sequences at a time, until `keep_at_least` are left.

    The last layer with attention that is left, and the last with Mamba-2, always stay. A round costs half a forward pass for
    each layer that is left; few tokens are enough. Raises `BadData` for token ids of another form and `UnsupportedModel` if
    scores are not finite.
    """
    return _order(_search(net, weights, tokens, batch), method, keep_at_least, progress)


def compare_methods(
    net: Network,
    weights: Weights,
    tokens: Tensor,
    *,
    keep_at_least: int = 1,
    batch: int = 8,
    progress: Progress = silent,
) -> dict[Method, DepthRanking]:
    """The order by every measure, on the same tokens."""
    search = _search(net, weights, tokens, batch)
    return {method: _order(search, method, keep_at_least, progress) for method in METHODS}


def droppable(shape: DecoderShape, kept: Collection[int]) -> tuple[int, ...]:
    """Which of the layers that are left may go: not the last, not the last of attention, not the last of Mamba-2."""
    if len(kept) < 2:
        return ()
    kinds = {layer: type(shape.arch.blocks[layer].attention) for layer in kept}
    left = list(kinds.values())
    only = {kind for kind in (Attention, Mamba) if left.count(kind) == 1}
    return tuple(layer for layer, kind in kinds.items() if kind not in only)


def _search(net: Network, weights: Weights, tokens: Tensor, batch: int) -> "_Search":
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise BadData(f"depth needs token ids (N, T) with N at least 1 and T at least 2, got {tuple(tokens.shape)}")
    return _Search(net, weights, tokens.split(batch))


def _order(search: "_Search", method: Method, keep_at_least: int, progress: Progress) -> DepthRanking:
    shape = search.net.shape
    kept = tuple(range(shape.layers))
    alone = scores = search.alone(method)
    removal, steps = list[int](), list[float]()
    mixers = {type(block.attention) for block in shape.arch.blocks} & {Attention, Mamba}
    rounds = range(len(kept) - max(keep_at_least, len(mixers), 1))
    for _ in progress(rounds, f"depth, {method}", len(rounds)):
        free = droppable(shape, kept)
        if method == "iterative" and removal:
            scores = search.scores(method, kept, free)
        least = min(free, key=lambda layer: (scores[layer], layer))
        removal.append(least)
        steps.append(scores[least])
        kept = tuple(layer for layer in kept if layer != least)
    return DepthRanking(
        method=method,
        removal=tuple(removal),
        steps=tuple(steps),
        alone=tuple(alone[layer] for layer in range(shape.layers)),
    )


class _Search:
    """Scores layers of one network on the same tokens again and again."""

    def __init__(self, net: Network, weights: Weights, batches: Sequence[Tensor]) -> None:
        self.net, self.weights = net, weights
        device = weights[f"{net.family.embedding}.weight"].device
        self.batches = [ids.to(device) for ids in batches]
        self.full: list[Tensor] | None = None
        """The whole network's last hidden states, batch by batch."""
        self.gram = torch.zeros(0)
        """(D, D), the output projection's columns with each other."""
        self.known = dict[str, dict[int, float]]()
        """Scores in the whole network, by measure."""

    def alone(self, method: Method) -> dict[int, float]:
        """The score of every layer in the whole network; `iterative` and `single` begin with the same."""
        measure = "error" if method in ("iterative", "single") else method
        if measure not in self.known:
            every = range(self.net.shape.layers)
            self.known[measure] = self.scores(method, every, every)
        return self.known[measure]

    @torch.no_grad()
    def scores(self, method: Method, kept: Sequence[int], candidates: Collection[int]) -> dict[int, float]:
        """The score of dropping each of the candidates from the layers that are left."""
        match method:
            case "iterative" | "single":
                found = self._errors(kept, candidates)
            case "cosine":
                found = self._influence(kept)
            case "perplexity":
                found = self._rises(kept, candidates)
        if not torch.tensor(list(found.values())).isfinite().all():
            raise UnsupportedModel(
                f"the parent's outputs are not finite, so its layers cannot be compared ({method}: {found}); "
                "load it in another number format, such as fp32"
            )
        return found

    def _errors(self, kept: Sequence[int], candidates: Collection[int]) -> dict[int, float]:
        """sum (full - without)^2 / sum full^2 over all logits."""
        if self.full is None:
            every = range(self.net.shape.layers)
            self.full = [self._final(self._start(ids), every) for ids in self.batches]
            self.gram = _gram(head(self.net, self.weights))
        found, size = dict.fromkeys(candidates, 0.0), 0.0
        for ids, full in zip(self.batches, self.full, strict=True):
            size += self._squares(full.float())
            for layer, final in self._without(ids, kept, candidates):
                found[layer] += self._squares(full.float() - final.float())
        return {layer: error / size for layer, error in found.items()}

    def _influence(self, kept: Sequence[int]) -> dict[int, float]:
        """1 - cos(input, output), the mean over tokens."""
        found, seen = dict.fromkeys(kept, 0.0), sum(ids.numel() for ids in self.batches)
        for ids in self.batches:
            x = self._start(ids)
            for layer in kept:
                after = advance(self.net, self.weights, x, (layer,))
                found[layer] += float((1 - F.cosine_similarity(x.float(), after.float(), dim=-1)).sum()) / seen
                x = after
        return found

    def _rises(self, kept: Sequence[int], candidates: Collection[int]) -> dict[int, float]:
        """The loss without the layer less the loss with it, in nats per token."""
        found, seen = dict.fromkeys(candidates, 0.0), sum(ids[:, 1:].numel() for ids in self.batches)
        for ids in self.batches:
            whole = self._loss(ids, self._final(self._start(ids), kept))
            for layer, final in self._without(ids, kept, candidates):
                found[layer] += (self._loss(ids, final) - whole) / seen
        return found

    def _without(self, ids: Tensor, kept: Sequence[int], candidates: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """Each candidate with the last hidden states (B, T, D) without it; what comes before a layer is computed once."""
        x = self._start(ids)
        for place, layer in enumerate(kept):
            if layer in candidates:
                yield layer, self._final(x, kept[place + 1 :])
            x = advance(self.net, self.weights, x, (layer,))

    def _start(self, ids: Tensor) -> Tensor:
        return embed(self.net, self.weights, ids)

    def _final(self, x: Tensor, layers: Sequence[int]) -> Tensor:
        return finish(self.net, self.weights, advance(self.net, self.weights, x, layers))

    def _squares(self, hidden: Tensor) -> float:
        """The sum of the squares of the logits that hidden states (B, T, D) give."""
        rows = hidden.flatten(0, 1)
        return float(((rows @ self.gram) * rows).sum(dtype=torch.float64))

    def _loss(self, ids: Tensor, final: Tensor) -> float:
        """Cross-entropy of the next token, the sum over a batch (B, T), a few rows of logits at a time."""
        rows, labels = final[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        output, total = head(self.net, self.weights), 0.0
        for part in chunks(len(rows), len(output), rows.device):
            total += float(F.cross_entropy(F.linear(rows[part], output).float(), labels[part], reduction="sum"))
        return total


def _gram(weight: Tensor) -> Tensor:
    """W^T W (D, D) in fp32 of an output projection W (V, D), a few rows at a time."""
    total = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
    for part in chunks(len(weight), weight.shape[1], weight.device):
        rows = weight[part].float()
        total += rows.T @ rows
    return total.float()
