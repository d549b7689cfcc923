"""Which tables there are for which sharing."""

import pytest

from recemb.data.schema import Categorical, Schema
from recemb.models.sequence.part import parts_of, sequence_specs
from recemb.tables.full import full_tables


def names(schema, sharing) -> dict[str, tuple[str, ...]]:
    specs = sequence_specs(schema, sharing=sharing, embedding_dim=4)
    return {spec.name: spec.feature_names for spec in specs}


def test_one_table_for_everything(schema) -> None:
    assert names(schema, "all") == {
        name: (name, f"{name}_history") for name in ("item", "category", "position")
    }


def test_one_table_for_each_role(schema) -> None:
    assert names(schema, "none") == {
        f"{name}.{role}": (name, f"{name}_history")
        for role in ("attention", "representation")
        for name in ("item", "category", "position")
    }


def test_one_table_for_each_role_and_side(schema) -> None:
    assert names(schema, "history_target") == {
        f"{side}.{role}": (side,)
        for role in ("attention", "representation")
        for name in ("item", "category", "position")
        for side in (name, f"{name}_history")
    }


@pytest.mark.parametrize("sharing", ["none", "all", "history_target"])
def test_every_part_finds_its_vectors(schema, sharing) -> None:
    tables = full_tables(sequence_specs(schema, sharing=sharing, embedding_dim=4))
    for part in parts_of(schema, tables):
        for role in ("attention", "representation"):
            keys = getattr(part, role)
            for key, feature in ((keys.history, part.history), (keys.target, part.target)):
                spec, found = tables.outputs[key]
                assert found == feature
                assert spec.name.endswith(role) is (sharing != "all")


def test_features_without_a_history_have_pooled_tables(schema) -> None:
    user = Categorical(name="user", num_embeddings=9)
    wider = Schema(
        dense=(),
        categorical=(user, *schema.categorical),
        label="label",
        histories=schema.histories,
    )
    specs = sequence_specs(wider, sharing="none", embedding_dim=4)
    assert [(s.name, s.pooling) for s in specs if s.pooling != "none"] == [("user", "sum")]


def test_data_without_histories_are_refused() -> None:
    flat = Schema(
        dense=(), categorical=(Categorical(name="item", num_embeddings=3),), label="label"
    )
    with pytest.raises(ValueError, match="no behaviour histories"):
        sequence_specs(flat, sharing="none", embedding_dim=4)


def test_a_width_for_a_column_that_is_not_there_is_refused(schema) -> None:
    with pytest.raises(ValueError, match=r"attention_dim: there is no history of \['shop'\]"):
        sequence_specs(schema, sharing="none", embedding_dim=4, attention_dim={"shop": 2})
