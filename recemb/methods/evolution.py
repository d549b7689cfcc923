"""Evolutionary search over small integers: a width for every field.

Source: Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV
2020, as OptEmbed (CIKM 2022, section 3.3) uses it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

Genes = tuple[int, ...]
Once = Callable[[str, Callable[[], dict[str, Any]]], Mapping[str, Any]]
_TRIES = 100
_OFFICIAL_POOL = 10


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """How to search.

    "paper": the pool are the `top_k` best candidates ever seen; parents are drawn from it;
    mutations are made on copies; a child has each gene from either parent. "official": what the
    authors' code does, where that is no error: parents are the 10 best of the last generation, 11
    for crossover, whatever `top_k` is; no pair has two children of a generation; crossover is at
    one cut point; and mutated genes are at least 2.

    Attributes:
        generations: rounds.
        num_mutation: candidates of a round that are mutated.
        num_crossover: candidates of a round that have two parents; a first generation of as many
            as both is drawn uniformly.
        mutation_probability: of each gene.
        top_k: size of the pool of "paper".
        variant: see above.

    Raises:
        ValueError: on a number out of range.
    """

    generations: int = 30
    num_mutation: int = 10
    num_crossover: int = 10
    mutation_probability: float = 0.1
    top_k: int = 15
    variant: Literal["paper", "official"] = "paper"

    def __post_init__(self) -> None:
        for name in ("generations", "num_mutation", "num_crossover", "top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"Evolution: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.mutation_probability <= 1:
            raise ValueError(
                "Evolution: mutation_probability must be in [0, 1], got "
                f"{self.mutation_probability}"
            )
        if self.variant not in ("paper", "official"):
            raise ValueError(f"Evolution: variant must be paper or official, got '{self.variant}'")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
        best: the candidate with the highest fitness ever seen, exactly as it was scored.
        value: its fitness.
        history: the best fitness so far, after each generation.
        scores: the fitness of every candidate that was scored.
    """

    best: Genes
    value: float
    history: tuple[float, ...]
    scores: Mapping[Genes, float] = field(default_factory=dict)


def evolve(
    fitness: Callable[[Genes], float],
    *,
    limits: Sequence[int],
    evolution: Evolution,
    seed: int,
    is_allowed: Callable[[Genes], bool] = lambda _: True,
    once: Once = lambda _, compute: compute(),
) -> Found:
    """Return the candidate of highest fitness among those that the search met.

    Args:
        fitness: of a candidate, called once for each.
        limits: a candidate has an integer in [1, limit] for each.
        evolution: how to search.
        seed: of all draws.
        is_allowed: whether a candidate may be scored; all genes 1 must be. One that may not is
            drawn again, and in the end made smaller, gene by gene, until it may.
        once: remembers what a generation computed, by name, so that a resumed run does not score
            it again.

    Raises:
        ValueError: if the smallest candidate is not allowed.
    """
    if not is_allowed((1,) * len(limits)):
        raise ValueError("evolve: not even the smallest candidate is allowed; raise the budget")
    draw = _Draw(limits, evolution, seed, is_allowed)
    scores: dict[Genes, float] = {}
    history: list[float] = []
    size = evolution.num_mutation + evolution.num_crossover
    population = draw.distinct(draw.uniform, size)
    for generation in range(evolution.generations):
        fresh = [genes for genes in population if genes not in scores]

        def score(chosen: Sequence[Genes] = fresh) -> dict[str, Any]:
            return {"values": [fitness(genes) for genes in chosen]}

        values = once(f"search-{generation:03d}", score)["values"]
        scores |= dict(zip(fresh, values, strict=True))
        history.append(max(scores.values()))
        if evolution.variant == "paper":
            mutated = crossed = _best(scores, evolution.top_k)
        else:
            crossed = _best({genes: scores[genes] for genes in population}, _OFFICIAL_POOL + 1)
            mutated = crossed[:_OFFICIAL_POOL]
        population = [
            *draw.distinct(partial(draw.mutant, mutated), evolution.num_mutation),
            *draw.distinct(partial(draw.child, crossed, set()), evolution.num_crossover),
        ]
    best = _best(scores, 1)[0]
    return Found(best=best, value=scores[best], history=tuple(history), scores=scores)


class _Draw:
    """Draws candidates."""

    def __init__(
        self,
        limits: Sequence[int],
        evolution: Evolution,
        seed: int,
        is_allowed: Callable[[Genes], bool],
    ) -> None:
        self._limits = limits
        self._num_genes = len(limits)
        self._evolution = evolution
        self._is_allowed = is_allowed
        self._generator = torch.Generator().manual_seed(seed)

    def distinct(self, make: Callable[[], Genes], num: int) -> list[Genes]:
        """Return up to `num` different allowed candidates; fewer where that takes too long."""
        found: dict[Genes, None] = {}
        for _ in range(num * _TRIES):
            genes = make()
            if self._is_allowed(genes):
                found[genes] = None
                if len(found) == num:
                    return list(found)
        while len(found) < num:
            genes = self._shrunk(make())
            if genes in found:
                return list(found)
            found[genes] = None
        return list(found)

    def uniform(self) -> Genes:
        """Return a candidate whose genes are uniform."""
        return tuple(self._integers(1))

    def mutant(self, pool: Sequence[Genes]) -> Genes:
        """Return a copy of a parent in which some genes are drawn anew."""
        parent = pool[self._below(len(pool))]
        drawn = self._integers(1 if self._evolution.variant == "paper" else 2)
        chance = torch.rand(self._num_genes, generator=self._generator)
        is_drawn = (chance < self._evolution.mutation_probability).tolist()
        return tuple(
            new if yes else old for old, new, yes in zip(parent, drawn, is_drawn, strict=True)
        )

    def child(self, pool: Sequence[Genes], pairs: set[tuple[int, int]]) -> Genes:
        """Return a candidate with the genes of two parents.

        Args:
            pool: of parents.
            pairs: the places in it of those that have a child, among which this pair will be.
        """
        first, second = self._below(len(pool)), self._below(len(pool))
        if self._evolution.variant == "official" and len(pairs) < len(pool) * (len(pool) - 1):
            while first == second or (first, second) in pairs:
                first, second = self._below(len(pool)), self._below(len(pool))
            pairs.add((first, second))
        one, other = pool[first], pool[second]
        if self._evolution.variant == "official":
            cut = 1 + self._below(max(1, self._num_genes - 1))
            return one[:cut] + other[cut:]
        sides = torch.rand(self._num_genes, generator=self._generator) < 0.5
        return tuple(
            a if side else b for a, b, side in zip(one, other, sides.tolist(), strict=True)
        )

    def _shrunk(self, genes: Genes) -> Genes:
        """Return the candidate with as many genes made smaller as it takes to be allowed."""
        mine = list(genes)
        while not self._is_allowed(tuple(mine)):
            place = max(range(self._num_genes), key=lambda i: (mine[i] > 1, self._below(1 << 20)))
            mine[place] = 1 + self._below(mine[place] - 1) if mine[place] > 1 else 1
        return tuple(mine)

    def _integers(self, low: int) -> list[int]:
        """Return an integer for each gene, at least `low` where its limit is."""
        if len(set(self._limits)) > 1:
            return [
                min(low, most) + self._below(most - min(low, most) + 1) for most in self._limits
            ]
        most = self._limits[0]
        drawn: list[int] = torch.randint(
            min(low, most), most + 1, (self._num_genes,), generator=self._generator
        ).tolist()
        return drawn

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self._generator))


def _best(scores: Mapping[Genes, float], num: int) -> list[Genes]:
    """Return the candidates of highest fitness, the earlier first among equals."""
    return sorted(scores, key=lambda genes: -scores[genes])[:num]
