"""What the doctor looks at is found, and what is broken does not break the look."""

from pathlib import Path

import pytest

from recemb.cli import environment


def test_absent_distribution_has_no_version() -> None:
    assert set(environment.installed_versions(["numpy", "no-such-thing"])) == {"numpy"}


def test_absent_requirements_are_listed_and_extras_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["numpy>=2", "no-such-thing<3", 'nor-this; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    assert environment.missing_requirements("recemb") == ["no-such-thing<3"]


def test_module_that_raises_is_a_failure_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_one.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    failures, cuda, is_available = environment.probe_modules(["broken_one", "json"])
    assert failures == {"broken_one": "OSError: undefined symbol"}
    assert cuda is None
    assert not is_available


def test_module_that_ends_its_process_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    failures, _, _ = environment.probe_modules(["json", "deadly"])
    assert failures == {"deadly": "its import ends the process (-6)"}


def test_absent_module_is_no_failure() -> None:
    assert environment.probe_modules(["no_such_module"])[0] == {}


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("flags\t\t: fpu avx2 avx512f amx_bf16\n", ["avx2", "avx512", "bf16"]),
        ("flags\t\t: fpu avx2\n", ["avx2"]),
        ("Features\t: fp asimd bf16\n", ["bf16"]),
        ("", []),
    ],
)
def test_processor_features_are_read_from_its_flags(
    text: str, features: list[str], tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert environment.processor_features(cpuinfo) == features


def test_processor_without_a_name_is_its_architecture(tmp_path: Path) -> None:
    assert environment.processor_name(tmp_path / "absent")


def test_folder_outside_git_has_no_commit(tmp_path: Path) -> None:
    assert environment.git_commit(tmp_path) is None
