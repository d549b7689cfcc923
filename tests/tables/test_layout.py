"""Where tables lie in memory and in the output."""

from recemb.tables.full import full_plan
from recemb.tables.layout import lay_out
from recemb.tables.spec import TableSpec


def spec(name, width, *features, rows=10, pooling="sum"):
    return TableSpec(
        name=name,
        num_embeddings=rows,
        embedding_dim=width,
        feature_names=features,
        pooling=pooling,
    )


def test_tables_of_one_width_follow_each_other():
    layout = lay_out(
        full_plan([spec("a", 4, "f", rows=3), spec("b", 2, "g"), spec("c", 4, "h", rows=5)])
    )
    assert [[t.name for t in group.tables] for group in layout.groups] == [["a", "c"], ["b"]]
    assert [group.first_rows for group in layout.groups] == [(0, 3), (0,)]
    assert [group.num_rows for group in layout.groups] == [8, 10]


def test_two_widths_over_the_same_features_share_their_ids():
    layout = lay_out(
        full_plan([spec("a", 4, "f"), spec("b", 4, "g"), spec("wa", 1, "f"), spec("wb", 1, "g")])
    )
    (unit,) = layout.pooled
    assert unit.groups == (0, 1)
    assert [o.feature for o in unit.outputs] == ["f", "g"]


def test_widths_over_different_sizes_do_not_share_their_ids():
    layout = lay_out(full_plan([spec("a", 4, "f", rows=3), spec("wa", 1, "f", rows=4)]))
    assert len(layout.pooled) == 2


def test_sequences_have_groups_of_their_own():
    layout = lay_out(full_plan([spec("a", 4, "f"), spec("b", 4, "g", pooling="none")]))
    assert len(layout.groups) == 2
    assert [[o.feature for o in u.outputs] for u in layout.sequences] == [["g"]]


def test_two_tables_over_the_same_sequences_share_their_ids():
    roles = [
        spec(f"{column}.{role}", 4, column, f"{column}_history", rows=rows, pooling="none")
        for role in ("attention", "representation")
        for column, rows in (("item", 9), ("category", 3))
    ]
    layout = lay_out(full_plan(roles))
    assert [[t.name for t in group.tables] for group in layout.groups] == [
        ["item.attention", "category.attention"],
        ["item.representation", "category.representation"],
    ]
    assert len({group.name for group in layout.groups}) == 2
    (unit,) = layout.sequences
    assert unit.groups == (0, 1)
