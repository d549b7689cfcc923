"""Code that Inductor compiles for the CPU, where there is a compiler."""

import functools
import shutil
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


@functools.cache
def compile_for_cpu(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return `function`, compiled for tensors of any size; itself where there is no compiler.

    It is compiled once in a process, when it is first called, which takes some seconds unless
    Inductor's cache has the result.

    Args:
        function: of tensors alone, integer arithmetic or exact, so that compiling changes no bit.
    """
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        warnings.warn(
            f"recemb: there is no C++ compiler, so {function.__name__.strip('_')} is made of "
            "PyTorch's own operations, which take many times as long; install g++ or clang",
            stacklevel=3,
        )
        return function
    compiled: Callable[_P, _R] = torch.compile(function, dynamic=True)
    return compiled
