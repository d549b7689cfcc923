"""Memory that a training step frees."""

import subprocess
import sys

import pytest

from recemb.train.freed_memory import keep_freed_memory

FAULTS = """
import resource, sys, torch
from recemb.train.freed_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(16):
        torch.ones(64 * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(memory: str) -> int:
    """Return the page faults of 16 blocks of 64 MiB, allocated and freed in turn."""
    words = [sys.executable, "-c", FAULTS, memory]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc of glibc")
def test_a_large_block_is_not_mapped_anew_once_freed_memory_is_kept() -> None:
    if not keep_freed_memory():
        pytest.skip("this C library's malloc has no such setting")
    assert 4 * faults("kept") < faults("freed")
