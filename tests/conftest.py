"""Rules for the whole suite."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when it is first imported, which some test's libraries do early.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Draw the same numbers in every test, whichever tests run before it."""
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        # Without a device torch.manual_seed prints and keeps three stacks for one that may come.
        torch.default_generator.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked gpu where torch can use none, and say so."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="hardware: no CUDA device"))
