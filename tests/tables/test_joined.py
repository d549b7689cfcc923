"""Tables of several methods, side by side."""

import json

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.checkpoint.forms import describe_tables, make_tables
from recemb.checkpoint.logical import OtherTablesError, check_identity
from recemb.checkpoint.post_training import quantise_tables
from recemb.methods.tt_rec import TTRec
from recemb.tables.full import full_tables
from recemb.tables.joined import JoinedTables
from recemb.tables.optimizer import Kind, TableOptimizer
from recemb.tables.spec import TableSpec

ITEMS = TableSpec(
    name="item.attention",
    num_embeddings=50,
    embedding_dim=4,
    feature_names=("item", "history"),
    pooling="none",
)
VALUES = TableSpec(
    name="item.representation",
    num_embeddings=50,
    embedding_dim=8,
    feature_names=("item", "history"),
    pooling="none",
)
USERS = TableSpec(name="user", num_embeddings=9, embedding_dim=8, feature_names=("user",))
CITIES = TableSpec(name="city", num_embeddings=20, embedding_dim=4, feature_names=("city",))
SPECS = [ITEMS, USERS, VALUES, CITIES]
SGD = TableOptimizer(kind="sgd", learning_rate=0.5)


def features() -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 1, 1, 3, 0, 2, 1, 1, 1, 2, 0, 1])
    limits = {"item": 50, "history": 50, "user": 9, "city": 20}
    values = [
        torch.randint(0, limit, (int(lengths[3 * i : 3 * i + 3].sum()),), generator=generator)
        for i, limit in enumerate(limits.values())
    ]
    return KeyedJaggedTensor(keys=list(limits), values=torch.cat(values), lengths=lengths)


def joined(optimizer: TableOptimizer | None = SGD, *, seed: int = 1) -> JoinedTables:
    computed = TTRec().build(
        [VALUES, CITIES],
        {},
        None,
        optimizer=optimizer,
        seed=seed,
        device=torch.device("cpu"),
    )
    stored = full_tables([ITEMS, USERS], optimizer=optimizer, seed=seed)
    return JoinedTables(SPECS, {"stored": stored, "computed": computed})


def test_vectors_are_those_of_the_parts_in_configured_order() -> None:
    tables, read = joined(), features()
    assert tables.keys == ("user", "city")
    assert tables(read).keys() == ["user", "city"]
    found = tables.sequences(read)
    assert list(found) == list(tables.sequence_keys)
    for key, vectors in found.items():
        spec, feature = tables.outputs[key]
        part = tables.part("stored" if spec is ITEMS else "computed")
        expected = part.sequences(read)[feature].values()
        assert torch.equal(vectors.values(), expected)
        torch.testing.assert_close(tables.rows(key, read[feature].values()), expected)


def test_a_step_is_a_step_of_each_part() -> None:
    tables, alone = joined(), full_tables([ITEMS, USERS], optimizer=SGD, seed=1)
    read = features()
    vectors = tables.sequences(read)["history@item.attention"].values()
    vectors.sum().backward()
    alone.sequences(read)["history"].values().sum().backward()
    found = tables.part("stored").state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(found[name], tensor)


def test_bytes_are_the_sum_of_the_parts() -> None:
    tables = joined()
    parts = [tables.part(name).storage() for name in tables.parts]
    assert tables.storage().serve_bytes == sum(part.serve_bytes for part in parts)
    assert tables.storage().full_bytes == sum(spec.full_bytes for spec in SPECS)
    stored = sum(t.nbytes for t in tables.state_dict().values())
    assert tables.storage().train_bytes == stored


def test_a_saved_state_gives_the_same_vectors() -> None:
    one, two = joined(), joined(seed=2)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(features()).values(), two(features()).values())


@pytest.mark.parametrize("post", ["none", "fp16"])
def test_the_serving_form_is_made_again_from_its_description(post) -> None:
    frozen = quantise_tables(joined(), post)
    again = make_tables(describe_tables(frozen), frozen.state_dict(), "error")
    assert torch.equal(again(features()).values(), frozen(features()).values())
    for key, vectors in frozen.sequences(features()).items():
        assert torch.equal(again.sequences(features())[key].values(), vectors.values())
    assert again.storage() == frozen.storage()


def test_tensors_that_no_part_reads_are_refused() -> None:
    frozen = joined().freeze()
    tensors = {**frozen.state_dict(), "parts.other.embedding_bags.user.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"nothing reads the tensors \['parts.other"):
        make_tables(describe_tables(frozen), tensors, "error")


def test_every_table_is_in_one_part() -> None:
    with pytest.raises(ValueError, match="each must be in one part"):
        JoinedTables(SPECS, {"stored": full_tables([ITEMS, USERS])})


def test_the_identity_holds_that_of_each_part_by_its_name() -> None:
    tables = joined()
    identity = tables.identity()
    assert identity["joined"] == {name: tables.part(name).identity() for name in tables.parts}
    assert json.loads(json.dumps(identity)) == identity


def test_parts_within_parts_are_told_apart() -> None:
    def nested(kind: Kind) -> JoinedTables:
        within = JoinedTables(
            [ITEMS], {"a": full_tables([ITEMS], optimizer=TableOptimizer(kind=kind))}
        )
        return JoinedTables([ITEMS, USERS], {"within": within, "rest": full_tables([USERS])})

    check_identity(nested("adam").identity(), nested("adam").identity(), owner="c")
    with pytest.raises(OtherTablesError, match=r"joined\.within\.joined\.a\.optimizer was adam"):
        check_identity(nested("adam").identity(), nested("sgd").identity(), owner="c")
