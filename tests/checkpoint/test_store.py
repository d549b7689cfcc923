import hashlib
import json
import math
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

from recemb.checkpoint.atomic import WholeFolder
from recemb.checkpoint.store import CheckpointName, CheckpointStore
from recemb.tables.tensor_chunks import Chunk, TensorChunks


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


TENSORS = "tensors-00000-of-00001.safetensors"


def save(store: CheckpointStore, step: int, value: float) -> Path:
    name = CheckpointName("step", step)
    store.save(name, {"weight": torch.full((3,), value)})
    return store.folder / str(name)


def test_a_saved_state_loads_equal(store: CheckpointStore) -> None:
    nested = {"step": 3, "names": ["a", ("b", 2.5)], "none": None, 7: True, "$tensor": "weight"}
    state = {"weight": torch.arange(4.0), "a": {"b": torch.ones(1)}, "a.b": torch.zeros(2)}
    store.save(CheckpointName("step", 3), {**state, "nested": nested})
    loaded = store.load(CheckpointName("step", 3))
    assert torch.equal(loaded["weight"], state["weight"])
    assert loaded["a"]["b"].tolist() == [1.0]
    assert loaded["a.b"].tolist() == [0.0, 0.0]
    assert loaded["nested"] == nested


def test_numbers_keep_every_bit(store: CheckpointStore) -> None:
    values = [0.1, 1e-320, float("inf"), float("-inf"), -0.0, 2**100, -7]
    store.save(CheckpointName("step", 1), {"values": values, "nan": float("nan")})
    loaded = store.load(CheckpointName("step", 1))
    assert [v.hex() if isinstance(v, float) else v for v in loaded["values"]] == [
        v.hex() if isinstance(v, float) else v for v in values
    ]
    assert math.isnan(loaded["nan"])


def test_every_type_and_layout_of_tensors_is_kept(store: CheckpointStore) -> None:
    state = {
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "scalar": torch.tensor(3),
        "nothing": torch.empty(0, 4),
        "mask": torch.tensor([True, False]),
        "brain": torch.randn(3).bfloat16(),
        "double": torch.randn(3, dtype=torch.float64),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    store.save(CheckpointName("step", 1), state)
    loaded = store.load(CheckpointName("step", 1))
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.detach())
        assert not loaded[name].requires_grad


def test_loaded_tensors_have_memory_of_their_own(store: CheckpointStore) -> None:
    store.save(CheckpointName("step", 1), {"big": torch.zeros(1000), "small": torch.zeros(2)})
    loaded = store.load(CheckpointName("step", 1))
    assert loaded["small"].untyped_storage().nbytes() == 8
    loaded["small"].fill_(5.0)
    assert store.load(CheckpointName("step", 1))["small"].tolist() == [0.0, 0.0]


def test_plain_torch_tools_read_the_tensors(store: CheckpointStore) -> None:
    folder = save(store, 1, 4.0)
    assert safetensors.torch.load_file(folder / TENSORS)["weight"].tolist() == [4.0] * 3


def test_the_manifests_checksum_is_what_sha256sum_prints(store: CheckpointStore) -> None:
    folder = save(store, 1, 4.0)
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert (folder / "manifest.sha256").read_text() == f"{digest}  manifest.json\n"


def test_chunks_of_one_process_make_the_whole(store: CheckpointStore) -> None:
    whole = torch.arange(20.0).view(5, 4)
    chunks = [Chunk((3, 0), whole[3:]), Chunk((0, 0), whole[:3, :1]), Chunk((0, 1), whole[:3, 1:])]
    store.save(CheckpointName("step", 1), {"w": TensorChunks((5, 4), torch.float32, chunks)})
    assert torch.equal(store.load(CheckpointName("step", 1))["w"], whole)


def test_chunks_that_do_not_make_the_whole_are_refused(store: CheckpointStore) -> None:
    half = TensorChunks((4,), torch.float32, [Chunk((0,), torch.ones(3))])
    with pytest.raises(ValueError, match="1 values are held by no chunk"):
        store.save(CheckpointName("step", 1), {"w": half})
    assert list(store.folder.iterdir()) == []


def test_names_are_ordered_by_step_and_separate_by_kind(store: CheckpointStore) -> None:
    for step in (20, 3, 100):
        save(store, step, 0.0)
    store.save(CheckpointName("best", 7), {})
    assert [n.step for n in store.names("step")] == [3, 20, 100]
    assert [n.step for n in store.names("best")] == [7]


def test_the_newest_is_loaded(store: CheckpointStore) -> None:
    save(store, 1, 1.0)
    save(store, 2, 2.0)
    found = store.load_newest("step")
    assert found is not None
    assert found[0].step == 2
    assert found[1]["weight"].tolist() == [2.0] * 3


def test_an_empty_store_has_no_newest(store: CheckpointStore) -> None:
    assert store.load_newest("step") is None


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "no manifest", "no checksum", "no tensors", "bad manifest"]
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    store: CheckpointStore, damage: str
) -> None:
    save(store, 1, 1.0)
    folder = save(store, 2, 2.0)
    state = folder / TENSORS
    content = bytearray(state.read_bytes())
    if damage == "truncate":
        state.write_bytes(content[:-10])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "no checksum":
        (folder / "manifest.sha256").unlink()
    elif damage == "no tensors":
        state.unlink()
    else:
        (folder / "manifest.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged"):
        found = store.load_newest("step")
    assert found is not None
    assert found[0].step == 1


def test_an_unfinished_checkpoint_is_not_listed_and_is_removed_by_the_next_save(
    store: CheckpointStore,
) -> None:
    save(store, 1, 1.0)
    left_behind = store.folder / ".unfinished-step-0000000002"
    left_behind.mkdir()
    (left_behind / TENSORS).write_bytes(b"half")
    assert [n.step for n in store.names("step")] == [1]
    save(store, 2, 2.0)
    assert not left_behind.exists()


def test_what_an_earlier_save_under_another_name_left_is_removed(store: CheckpointStore) -> None:
    for mark in (".unfinished", ".removed"):
        left_behind = store.folder / f"{mark}-step-0000000007"
        left_behind.mkdir(parents=True)
        (left_behind / TENSORS).write_bytes(b"half")
    other = store.folder / ".unfinished-of-somebody"
    other.mkdir()
    save(store, 8, 1.0)
    assert {p.name for p in store.folder.iterdir()} == {"step-0000000008", other.name}


def between_the_renames(store: CheckpointStore, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save, and be killed when the old checkpoint has gone and the new one has not come."""
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.startswith(".unfinished-"):
            raise KilledError
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        # A process that is killed tidies nothing up.
        patch.setattr(WholeFolder, "abandon", lambda self: None)
        with pytest.raises(KilledError):
            save(store, step, 9.0)
    assert not (store.folder / str(CheckpointName("step", step))).exists()


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_a_kill_between_the_renames_leaves_the_old_checkpoint(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(store, step, float(step))
    between_the_renames(store, 2, monkeypatch)
    before = sorted(path.name for path in store.folder.iterdir())
    assert [n.step for n in store.names("step")] == [1, 2]
    for found in (store.load(CheckpointName("step", 2)), store.load_newest("step")):
        state = found[1] if isinstance(found, tuple) else found
        assert state is not None
        assert state["weight"].tolist() == [2.0] * 3
    # Who reads changes nothing: the writer may be alive.
    assert sorted(path.name for path in store.folder.iterdir()) == before
    # A save of another name puts it back.
    save(store, 3, 3.0)
    assert [p.name for p in sorted(store.folder.iterdir())] == [
        f"step-000000000{step}" for step in (1, 2, 3)
    ]
    assert store.load(CheckpointName("step", 2))["weight"].tolist() == [2.0] * 3


def test_what_was_left_by_a_kill_between_the_renames_can_be_replaced_and_removed(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 2, 2.0)
    between_the_renames(store, 2, monkeypatch)
    save(store, 2, 5.0)
    assert [p.name for p in store.folder.iterdir()] == ["step-0000000002"]
    assert store.load(CheckpointName("step", 2))["weight"].tolist() == [5.0] * 3
    between_the_renames(store, 2, monkeypatch)
    store.remove(CheckpointName("step", 2))
    assert store.names("step") == []


def test_saving_again_replaces(store: CheckpointStore) -> None:
    save(store, 1, 1.0)
    save(store, 1, 5.0)
    assert store.load(CheckpointName("step", 1))["weight"].tolist() == [5.0] * 3
    assert [p.name for p in store.folder.iterdir()] == ["step-0000000001"]


def test_a_newer_format_is_refused(store: CheckpointStore) -> None:
    folder = save(store, 1, 1.0)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format_version"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="use the version that wrote it"):
        store.load(CheckpointName("step", 1))


def test_only_tensors_and_plain_values_are_saved(store: CheckpointStore) -> None:
    with pytest.raises(TypeError, match=r"'weight\.inner' is a pathlib"):
        store.save(CheckpointName("step", 1), {"weight": {"inner": Path()}})
    assert store.names("step") == []


def test_a_removed_checkpoint_is_gone(store: CheckpointStore) -> None:
    save(store, 1, 1.0)
    store.remove(CheckpointName("step", 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.load_newest("step") is None
    assert list(store.folder.iterdir()) == []
