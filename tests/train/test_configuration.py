from pathlib import Path

import pytest

from recemb.train.configuration import check_data, claim_data, claim_folder, config_hash

CONFIG = {"seed": 1, "data": {"raw": "a", "rows": 10}, "paths": {"run": "x"}, "name": "n"}


def changed(**changes: object) -> dict[str, object]:
    return CONFIG | changes


def test_the_hash_ignores_where_things_lie() -> None:
    moved = changed(paths={"run": "y"}, name="m", data={"raw": "b", "rows": 10})
    assert config_hash(moved) == config_hash(CONFIG)


def test_the_hash_ignores_the_order_of_keys() -> None:
    assert config_hash(dict(reversed(CONFIG.items()))) == config_hash(CONFIG)


def test_the_hash_follows_what_shapes_the_result() -> None:
    assert config_hash(changed(seed=2)) != config_hash(CONFIG)
    assert config_hash(changed(data={"raw": "a", "rows": 11})) != config_hash(CONFIG)


def test_a_folder_can_be_claimed_again_by_the_same_configuration(tmp_path: Path) -> None:
    claim_folder(tmp_path / "run", CONFIG)
    claim_folder(tmp_path / "run", changed(paths={"run": "elsewhere"}))
    assert (tmp_path / "run" / "config.yaml").exists()


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    claim_folder(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="seed was 1 and is 2"):
        claim_folder(tmp_path, changed(seed=2))


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    check_data(tmp_path, "one")  # a run of before data were noted
    claim_data(tmp_path, "one")
    claim_data(tmp_path, "one")
    check_data(tmp_path, "one")
    with pytest.raises(ValueError, match="was trained on other data"):
        claim_data(tmp_path, "two")
    with pytest.raises(ValueError, match="was trained on other data"):
        check_data(tmp_path, "two")


def test_keeping_memory_does_not_shape_a_result() -> None:
    hashes = {config_hash({"trainer": {"keep_freed_memory": k}}) for k in (True, False)}
    assert hashes == {config_hash({"trainer": {}})}
