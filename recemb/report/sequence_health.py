"""What a trained model of behaviour sequences attends to, and what its features are worth.

Source: the analyses of Feng et al., "Long-Sequence Recommendation Models Need Decoupled
Embeddings", ICLR 2025, sections 3 and 5. There scores of the item are left out of the ranking; here
it is the model's own attention that is ranked.

Shapes: `B` examples, `L` places in a history, `n` examples in all, `W` width of the features.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.models.sequence.attention import weighted_sums
from recemb.models.sequence.inputs import Padding
from recemb.models.sequence.part import Part
from recemb.models.sequence.sequence_model import SequenceModel
from recemb.report.relevance import CategoryBatch, MutualInformation, retrieval_ndcg
from recemb.report.representation import discriminability, rank_me
from recemb.report.role_gradients import role_gradients
from recemb.tables.tables import Tables

CLUSTERS = (2, 5, 10, 20, 50, 100)
RANKS = (1, 5, 10, 20)


@dataclass(frozen=True, kw_only=True)
class RoleReport:
    """The gradients of both roles of one column, over some batches.

    Attributes:
        column: the column.
        attention_norm: mean over batches of the mean L2 norm of rows, through the scores.
        representation_norm: likewise, through what is summed.
        conflicting_batches: share of batches whose rows have a negative mean cosine; None where the
            roles have rows of their own.
        conflicting_rows: share of rows with a negative cosine; likewise.
    """

    column: str
    attention_norm: float
    representation_norm: float
    conflicting_batches: float | None
    conflicting_rows: float | None

    @property
    def domination(self) -> float:
        """Return how many times the norm of attention that of representation is."""
        if not self.attention_norm:
            return math.inf if self.representation_norm else math.nan
        return self.representation_norm / self.attention_norm


def role_report(
    model: SequenceModel, tables: Tables, batches: Iterable[Batch], *, column: str
) -> RoleReport:
    """Return the gradients of a column's two roles; nothing is changed.

    Args:
        model: put into training mode meanwhile, for these are gradients of training.
        tables: the model's.
        batches: of the training split.
        column: the target column.

    Raises:
        ValueError: if there is no such column.
    """
    was_training = model.training
    model.train()
    norms, means, rows = [], [], []
    for batch in batches:
        found = role_gradients(model, batch, tables, column=column)
        norms.append(found.norms)
        if found.is_shared and len(found.cosines):
            means.append(float(found.cosines.mean()))
            rows.append(found.cosines)
    model.train(was_training)
    attention, representation = (
        sum(its) / max(1, len(its)) for its in (zip(*norms, strict=True) if norms else ((), ()))
    )
    return RoleReport(
        column=column,
        attention_norm=attention,
        representation_norm=representation,
        conflicting_batches=sum(m < 0 for m in means) / len(means) if means else None,
        conflicting_rows=float((torch.cat(rows) < 0).double().mean()) if rows else None,
    )


@dataclass(frozen=True, kw_only=True)
class AttentionReport:
    """How well attention ranks behaviours by mutual information.

    Attributes:
        num_targets: target categories that are frequent enough.
        num_categories: target categories of the training split, frequent or not.
        num_examples: of the test split, those that were ranked.
        ndcg: mean NDCG by number of ranks; empty if no example could be ranked.
        most_recent: of the ranking by recency alone, which knows nothing of categories.
    """

    num_targets: int
    num_categories: int
    num_examples: int
    ndcg: dict[int, float]
    most_recent: dict[int, float]


def attention_report(
    model: SequenceModel,
    tables: Tables,
    batches: Iterable[Batch],
    truth: MutualInformation,
    category: Part,
    *,
    min_joint: int = 50,
    max_rare: int = 20,
    ranks: Sequence[int] = RANKS,
) -> AttentionReport:
    """Return how the model's attention ranks behaviours.

    Args:
        model: in eval mode.
        tables: the model's.
        batches: of the test split.
        truth: what behaviours are worth, see `mutual_information`.
        category: the part whose ids are the categories.
        min_joint: see `MutualInformation.is_reliable`.
        max_rare: likewise.
        ranks: the numbers of ranks that count; the ideal is always that of the greatest, as in the
            released code.
    """
    rows: dict[str, list[Tensor]] = {"model": [], "recent": []}
    for batch in batches:
        its = category_batch(batch, category)
        keep = truth.is_reliable(its, min_joint=min_joint, max_rare=max_rare)
        relevance = truth.relevance(its)
        places = torch.arange(relevance.shape[1])
        is_valid = places < its.lengths.unsqueeze(1)
        scores = {
            "model": attention_of(model, batch, tables),
            "recent": places.double().expand_as(relevance),
        }
        for name, values in scores.items():
            found = [
                retrieval_ndcg(values, relevance, is_valid, k, ideal_k=max(ranks)) for k in ranks
            ]
            rows[name].append(torch.stack(found, dim=1)[keep])
    kept = {name: _without_nan(its, len(ranks)) for name, its in rows.items()}
    means = {
        name: dict(zip(ranks, its.mean(0).tolist(), strict=True)) if len(its) else {}
        for name, its in kept.items()
    }
    return AttentionReport(
        num_targets=len(truth.targets),
        num_categories=truth.num_categories,
        num_examples=len(kept["model"]),
        ndcg=means["model"],
        most_recent=means["recent"],
    )


def mutual_information(
    batches: Callable[[], Iterable[Batch]],
    category: Part,
    *,
    num_categories: int,
    max_history: int,
    min_rows: int = 700,
    max_targets: int | None = None,
) -> MutualInformation:
    """Return what behaviours are worth in some examples; see `MutualInformation.of`.

    Args:
        batches: yields the training split, twice.
        category: the part whose ids are the categories.
        num_categories: their number.
        max_history: the longest history.
        min_rows: examples that a target category must have.
        max_targets: so many of the most frequent of those at most; None for all.
    """
    return MutualInformation.of(
        lambda: (category_batch(batch, category) for batch in batches()),
        num_categories=num_categories,
        max_history=max_history,
        min_rows=min_rows,
        max_targets=max_targets,
    )


def category_batch(batch: Batch, category: Part) -> CategoryBatch:
    """Return the categories of a batch."""
    lists = batch.features[category.history]
    return CategoryBatch(
        history=Padding(lists.lengths()).pad(lists.values()),
        lengths=lists.lengths(),
        target=batch.features[category.target].values(),
        label=batch.labels,
    )


def attention_of(model: SequenceModel, batch: Batch, tables: Tables) -> Tensor:
    """Return what a model in eval mode attends to in whole histories, (B, L).

    Of several weights for a behaviour it is their mean. Of a search that does not rank all
    behaviours it is what it found that counts.
    """
    with torch.no_grad():
        weights = model.weights(model.inputs(batch, tables))
    its = (weights.full if model.ranks_all else weights.retrieved).float()
    return its.mean(1) if its.dim() == 3 else its


@dataclass(frozen=True, kw_only=True)
class FeatureReport:
    """What the features of the head are worth.

    Attributes:
        rank: their effective rank, RankMe.
        width: W.
        discriminability: by number of clusters, see `recemb.report.representation`.
    """

    rank: float
    width: int
    discriminability: dict[int, float]


def feature_report(
    model: SequenceModel,
    tables: Tables,
    batches: Iterable[Batch],
    *,
    max_examples: int = 20_000,
    clusters: Sequence[int] = CLUSTERS,
) -> FeatureReport:
    """Return how well the head's features tell labels apart.

    Args:
        model: in eval mode.
        tables: the model's.
        batches: of the test split.
        max_examples: the first so many are looked at.
        clusters: numbers of clusters; those above the number of examples are left out.
    """
    vectors, labels, num = [], [], 0
    for batch in _until(batches, max_examples):
        vectors.append(features_of(model, batch, tables))
        labels.append(batch.labels)
        num += len(batch)
    features, truth = torch.cat(vectors)[:max_examples], torch.cat(labels)[:max_examples]
    return FeatureReport(
        rank=rank_me(features),
        width=features.shape[1],
        discriminability={
            k: discriminability(features, truth, k) for k in clusters if k <= len(features)
        },
    )


def features_of(model: SequenceModel, batch: Batch, tables: Tables) -> Tensor:
    """Return what the head of a model in eval mode reads, (B, W)."""
    with torch.no_grad():
        inputs = model.inputs(batch, tables)
        history, target = model.representations(inputs)
        (sums,) = weighted_sums([model.weights(inputs).retrieved], history)
        return model.features(sums, target, inputs.context)


def _until(batches: Iterable[Batch], num: int) -> Iterator[Batch]:
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch)
        if seen >= num:
            return


def _without_nan(rows: Sequence[Tensor], width: int) -> Tensor:
    found = torch.cat([*rows, torch.empty(0, width, dtype=torch.float64)])
    return found[~found.isnan().any(1)]
