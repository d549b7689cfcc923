import pytest

from recemb.cli.overrides import explain_bad_overrides


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["seed=2", "trainer.max_epochs=3"],
        ["model=dnn", "optimizer=adam"],
        ["+new_key=1"],
        ["seed=1,2", "-m"],
        ["--cfg", "job"],
    ],
)
def test_good_overrides_are_not_complained_of(arguments: list[str]) -> None:
    assert explain_bad_overrides("train", arguments) is None


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("trainr.max_epochs=2", "trainer.max_epochs"),
        ("trainer.max_epoch=2", "trainer.max_epochs"),
        ("trainer.bach_size=2", "trainer.batch_size"),
        ("sed=2", "seed"),
        ("optimizer.tables.learning_rat=1", "optimizer.tables.learning_rate"),
        ("modle=dnn", "model"),
        ("model=deepfn", "model=deepfm"),
        ("optimizer=admm", "optimizer=adam"),
        ("max_epochs=2", "trainer.max_epochs"),
    ],
)
def test_a_misspelt_override_names_the_nearest(override: str, meant: str) -> None:
    complaint = explain_bad_overrides("train", [override])
    assert complaint is not None
    assert f"did you mean {meant}?" in complaint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("data=criteo data.raw=a model=dcnv2 trainer.batchsize=1", "mean trainer.batch_size?"),
        ("model=dcnv2 model.num_cross=2", "mean model.num_cross_layers?"),
        ("embedding=unified embedding.lookup=3", "mean embedding.lookups?"),
        ("experiment=ml100k_dere", "mean experiment=ml100k_dare?"),
        ("debug=fst", "there is no such debug"),
    ],
)
def test_keys_are_those_of_what_is_chosen(arguments: str, complaint: str) -> None:
    found = explain_bad_overrides("train", arguments.split())
    assert found is not None
    assert complaint in found


def test_a_word_that_is_no_override_is_explained() -> None:
    complaint = explain_bad_overrides("train", ["deepfm"])
    assert complaint is not None
    assert "key=value" in complaint


def test_a_launcher_without_a_multirun_is_explained() -> None:
    complaint = explain_bad_overrides("train", ["hydra/launcher=slurm", "seed=1"])
    assert complaint is not None
    assert "recemb train -m hydra/launcher=slurm" in complaint


def test_a_launcher_of_a_multirun_is_left_to_hydra() -> None:
    assert explain_bad_overrides("train", ["-m", "hydra/launcher=slurm"]) is None
