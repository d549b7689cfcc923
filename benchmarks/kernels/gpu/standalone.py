"""Makes `recemb.kernels` importable from a checkout, where recemb is not installed.

The kernels need torch and triton alone, and a machine with a GPU often has no more than these.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]


def stand_in_for_the_package() -> None:
    """Let the checkout's folders stand in for the package, unless it is installed."""
    if importlib.util.find_spec("recemb") is None:
        sys.path.insert(0, str(CHECKOUT))
    if importlib.util.find_spec("recemb.kernels") is not None:
        return
    folder = CHECKOUT / "kernels"
    spec = importlib.util.spec_from_file_location(
        "recemb.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recemb.kernels"] = module
    spec.loader.exec_module(module)
    vars(importlib.import_module("recemb"))["kernels"] = module
