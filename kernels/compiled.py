"""Code that Inductor compiles for the CPU, where there is a compiler."""

import functools
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

TensorFunction = Callable[..., Tensor]
"""Tensors in, one tensor out."""


@functools.cache
def compile_for_cpu(function: TensorFunction) -> TensorFunction:
    """Return `function`, compiled for tensors of any size; itself where there is no compiler.

    It is compiled when it is first called with a combination of types and of dimensions of size 1,
    which takes some seconds unless Inductor's cache has the result.

    A function of `torch.compile` checks at every call, for a tenth of a millisecond, whether its
    code still applies; the code here is looked up by what it depends on instead.

    Args:
        function: of tensors alone that need no gradient, integer arithmetic or exact, so that
            compiling changes no bit; no dimension may be empty.
    """
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        warnings.warn(
            f"recemb: there is no C++ compiler, so {function.__name__.strip('_')} is made of "
            "PyTorch's own operations, which take many times as long; install g++ or clang",
            stacklevel=3,
        )
        return function
    return _Compiled(function)


class _Compiled:
    """A function and its compiled codes, by what they depend on."""

    def __init__(self, function: TensorFunction) -> None:
        self._function = function
        self._codes: dict[object, Callable[..., Sequence[Tensor]]] = {}

    def __call__(self, *tensors: Tensor) -> Tensor:
        tensors = tuple(t if t.is_contiguous() else t.contiguous() for t in tensors)
        shapes = tuple((t.dtype, *(size == 1 for size in t.shape)) for t in tensors)
        # Inductor writes the number of threads into its code.
        key = (shapes, torch.get_num_threads())
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = _compile(self._function, tensors)
        return code(*tensors)[0]


class _Module(nn.Module):
    """A function as torch.export takes it."""

    def __init__(self, function: TensorFunction) -> None:
        super().__init__()
        self._function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._function(*tensors)


def _compile(
    function: TensorFunction, tensors: tuple[Tensor, ...]
) -> Callable[..., Sequence[Tensor]]:
    """Return code for tensors like these, whatever the size of dimensions that are not 1 here."""
    sizes = tuple(
        tuple(torch.export.Dim.STATIC if size == 1 else torch.export.Dim.AUTO for size in t.shape)
        for t in tensors
    )
    log = logging.getLogger("torch.fx._symbolic_trace")
    level = log.level
    # It warns users of torch.export of what does not concern them.
    log.setLevel(logging.ERROR)
    try:
        program = torch.export.export(_Module(function), tensors, dynamic_shapes=(sizes,))
    finally:
        log.setLevel(level)
    code: Callable[..., Sequence[Tensor]] = torch._inductor.standalone_compile(
        program.graph_module, list(tensors)
    )
    return code
