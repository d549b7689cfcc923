"""What `recemb inspect` shows: pages of figures and charts."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from recemb.report.collisions import lookup_collisions, vector_collisions
from recemb.report.health import (
    VectorHealth,
    counts_of,
    one_of_each_table,
    row_use,
    vector_health,
)
from recemb.report.page import Page
from recemb.report.sequence_health import AttentionReport, FeatureReport, RoleReport
from recemb.report.svg import bar_chart, line_chart
from recemb.tables.planned import PlannedTables
from recemb.tables.tables import Tables


def show_tables(
    page: Page, tables: Tables, by_feature: Mapping[str, Tensor], *, max_ids: int
) -> list[VectorHealth]:
    """Add the health of tables to a page and return it.

    Args:
        page: to add to.
        tables: in eval mode.
        by_feature: how often the training split has each id.
        max_ids: ids of each table that are looked at.
    """
    counts = counts_of(tables, by_feature)
    keys = one_of_each_table(list(tables.outputs), tables)
    found = [vector_health(tables, key, counts[key], max_ids=max_ids) for key in keys]
    page.text(
        "## Vectors",
        "Of each table, the vectors that a model is given. *Seen* ids occur in the training split. "
        "*Merged* ids have a vector that another id has, too; *zero* vectors are dead. *Rank* is "
        "the effective rank (RankMe) of the vectors, at most their width: far below it, the table "
        "has collapsed into few directions.",
    )
    page.table(
        {
            "table": [h.table for h in found],
            "ids": [h.num_ids for h in found],
            "seen": [h.num_seen for h in found],
            "looked at": [h.num_sampled for h in found],
            "width": [h.width for h in found],
            "rank": [h.rank for h in found],
            "median norm": [h.norms[2] for h in found],
            "greatest norm": [h.norms[4] for h in found],
            "zero": [h.num_zero for h in found],
            "merged": [h.share_merged for h in found],
        }
    )
    _show_charts(page, found)
    if isinstance(tables, PlannedTables):
        _show_rows(page, tables, by_feature)
    return found


def _show_charts(page: Page, found: Sequence[VectorHealth]) -> None:
    spectra = {h.table: h.spectrum.tolist() for h in found}
    page.chart(
        "spectrum.svg",
        "Singular values",
        line_chart(
            "Singular values of the vectors",
            spectra,
            x_label="number",
            y_label="over the greatest",
        ),
    )
    firsts = sorted({b.first for h in found for b in h.buckets})
    names = ["never" if not first else f"from {first}" for first in firsts]
    norms = {
        h.table: [
            next((b.mean_norm for b in h.buckets if b.first == first), math.nan) for first in firsts
        ]
        for h in found
    }
    page.text("## By how often ids occur in training")
    rows = [(h.table, b) for h in found for b in h.buckets]
    page.table(
        {
            "table": [table for table, _ in rows],
            "occurrences": [names[firsts.index(b.first)] for _, b in rows],
            "ids": [b.num_ids for _, b in rows],
            "share of lookups": [b.share_of_lookups for _, b in rows],
            "mean norm": [b.mean_norm for _, b in rows],
        }
    )
    page.chart(
        "frequency.svg",
        "Norms by frequency",
        line_chart(
            "Mean norm of vectors",
            norms,
            x_labels=names,
            x_label="occurrences in training",
            y_label="L2 norm",
        ),
    )


def _show_rows(page: Page, tables: PlannedTables, by_feature: Mapping[str, Tensor]) -> None:
    """Add which physical rows are read, and which are shared."""
    page.text(
        "## Rows",
        "Of each physical table, the rows that ids of the training split read.",
    )
    used = row_use(tables.plan, tables.plan_buffers, by_feature)
    page.table(
        {
            "physical table": [u.table for u in used],
            "rows": [u.num_rows for u in used],
            "read": [u.num_read for u in used],
            "share read": [u.num_read / u.num_rows for u in used],
        }
    )
    seen = {
        output.key: by_feature[output.feature].nonzero().squeeze(1)
        for output in tables.plan.outputs
    }
    page.text(
        "Collisions among ids that training has: *within* a feature, how many others share an id's "
        "row in the mean, beside what uniform hashing would give; *between* features likewise; "
        "*own row*, the share of ids that share theirs with none; *merged*, those that share all "
        "their rows with another. A column and its history share a table by design.",
    )
    merged = {
        v.key: v.merged
        for v in vector_collisions(tables.plan, buffers=tables.plan_buffers, ids=seen)
    }
    found = lookup_collisions(tables.plan, buffers=tables.plan_buffers, ids=seen)
    page.table(
        {
            "output": [c.key for c in found],
            "lookup": [c.number for c in found],
            "physical table": [c.table for c in found],
            "within": [c.intra for c in found],
            "hashing within": [c.expected_intra for c in found],
            "between": [c.inter for c in found],
            "hashing between": [c.expected_inter for c in found],
            "own row": [c.own_row for c in found],
            "merged": [merged[c.key] for c in found],
        }
    )


def show_roles(page: Page, found: Sequence[RoleReport]) -> None:
    """Add the gradients of both roles of each column."""
    page.text(
        "## Gradients of the two roles",
        "What training asks of a vector through the scores (attention) and through what is summed "
        "(representation), at the weights with which the run ended: the mean norm of a row's "
        "gradient, and how often the two point away from each other, in batches (their mean "
        "cosine) and in rows. Where roles differ in width there is no cosine.",
    )
    page.table(
        {
            "column": [r.column for r in found],
            "attention": [r.attention_norm for r in found],
            "representation": [r.representation_norm for r in found],
            "ratio": [r.domination for r in found],
            "batches in conflict": [r.conflicting_batches for r in found],
            "rows in conflict": [r.conflicting_rows for r in found],
        }
    )
    bars = {
        r.column: {"attention": r.attention_norm, "representation": r.representation_norm}
        for r in found
    }
    page.chart(
        "gradients.svg", "Gradients", bar_chart("Mean norm of gradients", bars, y_label="L2 norm")
    )


def show_attention(page: Page, found: AttentionReport, *, min_rows: int) -> None:
    """Add how well attention ranks behaviours."""
    page.text(
        "## Attention against mutual information",
        "What a behaviour tells of the label, by its category, its place and the category of the "
        "target, estimated on the training split, ranks the behaviours of the test split; the NDCG "
        "of the model's attention says how near it comes.",
    )
    if not found.num_targets:
        page.text(
            f"No target category has {min_rows} training examples, of {found.num_categories:,} "
            "that there are, so nothing can be estimated; lower min_rows."
        )
        return
    if not found.num_examples:
        page.text(
            f"{found.num_targets:,} of {found.num_categories:,} target categories are frequent "
            "enough, but no example of the test split has counts to rest on; lower min_joint or "
            "raise max_rare."
        )
        return
    page.text(
        f"{found.num_examples:,} examples; estimates for {found.num_targets:,} of "
        f"{found.num_categories:,} target categories, those with {min_rows} training examples."
    )
    page.table(
        {
            "ranks": list(found.ndcg),
            "NDCG": list(found.ndcg.values()),
            "NDCG of the most recent": list(found.most_recent.values()),
        }
    )
    page.chart(
        "attention.svg",
        "NDCG",
        line_chart(
            "Attention against mutual information",
            {"model": list(found.ndcg.values()), "recency": list(found.most_recent.values())},
            x_labels=[str(k) for k in found.ndcg],
            x_label="ranks",
            y_label="NDCG",
        ),
    )


def show_features(page: Page, found: FeatureReport) -> None:
    """Add how well the head's features tell labels apart."""
    page.text(
        "## Features of the head",
        "Normalised mutual information of k-means clusters of the features and the labels, on the "
        f"test split. Effective rank {found.rank:.4g} of width {found.width}.",
    )
    page.table(
        {
            "clusters": list(found.discriminability),
            "NMI": list(found.discriminability.values()),
        }
    )
    page.chart(
        "discriminability.svg",
        "Discriminability",
        line_chart(
            "Discriminability of the head's features",
            {"NMI": list(found.discriminability.values())},
            x_labels=[str(k) for k in found.discriminability],
            x_label="clusters",
            y_label="NMI",
        ),
    )
