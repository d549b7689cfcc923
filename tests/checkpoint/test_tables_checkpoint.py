from pathlib import Path

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.checkpoint import OtherTablesError, load_tables, read_weights, save_tables
from recemb.checkpoint.atomic import WholeFolder
from recemb.methods.unified import Unified
from recemb.tables import Budget, TableOptimizer, Tables, TableSpec, full_tables

USER = TableSpec(name="user", num_embeddings=50, embedding_dim=4, feature_names=("user",))
ITEM = TableSpec(name="item", num_embeddings=70, embedding_dim=4, feature_names=("item",))
IDS = KeyedJaggedTensor.from_lengths_sync(
    ["user", "item"], torch.tensor([1, 2, 3, 4]), torch.ones(4, dtype=torch.long)
)

ROWS = torch.arange(50)


def make(seed: int) -> Tables:
    return full_tables([USER, ITEM], optimizer=TableOptimizer(kind="adam"), seed=seed)


def train(tables: Tables) -> None:
    tables(IDS).values().square().sum().backward()


def test_loaded_tables_train_on_as_the_saved_ones_do(tmp_path: Path) -> None:
    tables, other = make(0), make(1)
    train(tables)
    save_tables(tables, tmp_path / "saved")
    load_tables(other, tmp_path / "saved")
    for its in (tables, other):
        train(its)
    for name, tensor in tables.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_weights_are_plain_tensors_by_table_name(tmp_path: Path) -> None:
    tables = make(0)
    save_tables(tables, str(tmp_path / "saved"))
    weights = read_weights(str(tmp_path / "saved"))
    assert list(weights) == ["user", "item"]
    embedding = torch.nn.Embedding.from_pretrained(weights["item"])
    ids = torch.tensor([0, 69])
    assert torch.equal(embedding(ids), tables.rows("item", ids))


def test_saving_again_replaces(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_tables(make(seed), tmp_path / "saved")
    expected = make(1).state_dict()["embedding_bags.user.weight"]
    assert torch.equal(read_weights(tmp_path / "saved")["user"], expected)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_two_writers_in_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    tables = {name: make(seed) for seed, name in enumerate(("a", "replaced-a", "removed-a"))}
    writers = {name: WholeFolder(tmp_path / name) for name in tables}
    for name, its in tables.items():
        save_tables(its, tmp_path / name)
    for writer in writers.values():
        writer.begin()
    for writer in writers.values():
        assert writer.unfinished.is_dir()
        (writer.unfinished / "content").write_text(writer.path.name)
    for name, writer in writers.items():
        writer.commit()
        assert (tmp_path / name / "content").read_text() == name
    assert {path.name for path in tmp_path.iterdir()} == set(tables)


def test_tables_that_a_kill_left_between_two_names_are_read(tmp_path: Path) -> None:
    tables, other = make(0), make(1)
    save_tables(tables, tmp_path / "saved")
    # The first of a replacement's two renames.
    (tmp_path / "saved").rename(tmp_path / ".replaced-saved")
    load_tables(other, tmp_path / "saved")
    assert torch.equal(read_weights(tmp_path / "saved")["user"], other.rows("user", ROWS))
    save_tables(make(2), tmp_path / "else")
    load_tables(other, tmp_path / "saved")
    save_tables(make(2), tmp_path / "saved")
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "else"}


def test_other_tables_are_refused_and_stay_as_they_are(tmp_path: Path) -> None:
    save_tables(make(0), tmp_path / "saved")
    other = Unified(exact_below=0).build(
        [USER, ITEM],
        {},
        Budget(ratio=0.5),
        optimizer=TableOptimizer(kind="adam"),
        seed=0,
        device=torch.device("cpu"),
    )
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(OtherTablesError, match=r"saved was written by other tables: .*plan\."):
        load_tables(other, tmp_path / "saved")
    assert all(torch.equal(before[n], tensor) for n, tensor in other.state_dict().items())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*none"):
        read_weights(tmp_path / "none")
