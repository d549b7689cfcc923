"""The search over widths: bookkeeping, draws, budgets, resuming."""

import itertools

import pytest

from recemb.methods.evolution import Evolution, evolve

SMALL = Evolution(generations=6, num_mutation=6, num_crossover=6, top_k=5)
OFFICIAL = Evolution(generations=6, num_mutation=6, num_crossover=6, top_k=5, variant="official")


def far_from(target):
    """Return a fitness that is highest at `target`, and a list of the candidates it was asked."""
    asked = []

    def fitness(genes):
        asked.append(genes)
        return -sum((g - t) ** 2 for g, t in zip(genes, target, strict=True))

    return fitness, asked


def search(target=(3, 9, 1, 16), evolution=SMALL, seed=1, **changes):
    fitness, asked = far_from(target)
    found = evolve(
        fitness,
        **{"limits": [16] * len(target), "evolution": evolution, "seed": seed, **changes},
    )
    return found, asked, fitness


@pytest.mark.parametrize("evolution", [SMALL, OFFICIAL], ids=["paper", "official"])
def test_the_best_is_exactly_a_candidate_that_was_scored(evolution):
    found, asked, fitness = search(evolution=evolution)
    assert found.best in asked
    assert found.value == fitness(found.best) == max(fitness(genes) for genes in list(asked))


def test_no_candidate_is_scored_twice():
    _, asked, _ = search()
    assert len(asked) == len(set(asked))


def test_the_best_so_far_never_falls_and_evolution_improves_on_chance():
    found, _, _ = search(evolution=Evolution(generations=20))
    assert all(a <= b for a, b in itertools.pairwise(found.history))
    assert found.history[-1] > found.history[0]


@pytest.mark.parametrize("evolution", [SMALL, OFFICIAL], ids=["paper", "official"])
def test_every_gene_has_a_limit_of_its_own(evolution):
    _, asked, _ = search(evolution=evolution, limits=[2, 16, 1, 4])
    most = [max(genes[place] for genes in asked) for place in range(4)]
    assert most[0] == 2
    assert most[2] == 1
    assert most[3] == 4
    assert 4 < most[1] <= 16


def test_official_parents_are_two_of_the_eleven_best():
    """Of two genes a child has the first of one parent and the second of the other."""
    asked = []
    wide = Evolution(generations=2, num_mutation=1, num_crossover=50, variant="official")
    evolve(
        lambda genes: asked.append(genes) or -genes[0],
        limits=[1000, 1000],
        evolution=wide,
        seed=1,
    )
    parents = sorted(asked[:51])[:11]
    children = asked[51 + 1 :]
    assert len(children) == 50
    assert {genes[0] for genes in children} <= {genes[0] for genes in parents}
    assert {genes[1] for genes in children} <= {genes[1] for genes in parents}
    assert not set(children) & set(parents)


@pytest.mark.parametrize("evolution", [SMALL, OFFICIAL], ids=["paper", "official"])
def test_genes_are_widths(evolution):
    _, asked, _ = search(evolution=evolution)
    assert {g for genes in asked for g in genes} <= set(range(1, 17))


def test_the_seed_decides_the_search():
    assert search()[1] == search()[1]
    assert search()[1] != search(seed=2)[1]


def test_candidates_keep_the_budget():
    found, asked, _ = search(is_allowed=lambda genes: sum(genes) <= 8)
    assert all(sum(genes) <= 8 for genes in asked)
    assert sum(found.best) <= 8


def test_a_budget_that_few_keep_is_met_by_smaller_candidates():
    found, _, _ = search(is_allowed=lambda genes: sum(genes) <= 5)
    assert sum(found.best) <= 5


def test_an_impossible_budget_is_refused():
    with pytest.raises(ValueError, match="not even the smallest"):
        search(is_allowed=lambda genes: sum(genes) < 4)


def test_a_search_that_was_interrupted_goes_on_where_it_was():
    remembered = {}

    def once(name, compute):
        if name not in remembered:
            remembered[name] = compute()
        return remembered[name]

    whole, asked, _ = search(once=once)
    for name in list(remembered)[3:]:
        remembered.pop(name)
    again, asked_again, _ = search(once=once)
    assert again.best == whole.best
    assert asked_again == asked[-len(asked_again) :]
    assert 0 < len(asked_again) < len(asked)


@pytest.mark.parametrize(
    "wrong", [{"generations": 0}, {"mutation_probability": 1.5}, {"variant": "other"}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Evolution(**wrong)
