"""The optimizers' formulas and stochastic rounding in Triton.

Shapes: `R` rows of the table, `D` its width, `P` rows of a tile, `BLOCK_D` columns, the power of
two from D on.
"""

import triton
import triton.language as tl

from recemb.kernels.hashing.kernel import fmix32

_UNIT = tl.constexpr(2.0**-24)  # spacing of float16 numbers below 2^-14
_UNITS = tl.constexpr(2.0**24)
_SMALLEST_NORMAL_HALF = tl.constexpr(2.0**-14)


@triton.jit
def random_bits(seed, element):
    """Return 32 random bits, uint32, for each int64 element; `seed` is an int32 scalar."""
    low = fmix32(tl.cast(element, tl.uint32) ^ tl.cast(seed, tl.uint32))
    return fmix32(low ^ tl.cast(element >> 32, tl.uint32))


@triton.jit
def round_stochastically(x, element, seed, HALF: tl.constexpr):
    """Return float32 `x` rounded to float16 if HALF, else to bfloat16, without bias."""
    bits = random_bits(seed, element)
    pattern = x.to(tl.uint32, bitcast=True)
    is_finite = (pattern & 0x7F800000) != 0x7F800000
    if HALF:
        cut = ((pattern + (bits & 0x1FFF)) >> 13) << 13
        y = x * _UNITS
        below = tl.floor(y)
        uniform = (bits >> 8).to(tl.float32) * _UNIT
        small = (below + tl.where(uniform >= 1.0 - (y - below), 1.0, 0.0)) * _UNIT
        rounded = cut.to(tl.float32, bitcast=True)
        rounded = tl.where(tl.abs(x) < _SMALLEST_NORMAL_HALF, small, rounded)
        rounded = tl.where(is_finite, rounded, x).to(tl.float16)
    else:
        # Upper halves of patterns: no conversion, which the interpreter has wrong for tiny numbers.
        quiet = tl.where((pattern & 0x7FFFFF) != 0, pattern | 0x400000, pattern)
        cut = tl.where(is_finite, pattern + (bits & 0xFFFF), quiet) >> 16
        rounded = cut.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return rounded


@triton.jit
def _load_second(state, row, at, active, inside, ROWWISE: tl.constexpr):
    """Return the second moment or sum of squares: (P, 1) if ROWWISE, else (P, BLOCK_D)."""
    if ROWWISE:
        second = tl.load(state + row, mask=active, other=0.0)
    else:
        second = tl.load(state + at, mask=inside, other=0.0)
    return second


@triton.jit
def _store_second(state, second, row, at, active, inside, ROWWISE: tl.constexpr):
    if ROWWISE:
        tl.store(state + row, second, mask=active)
    else:
        tl.store(state + at, second, mask=inside)


@triton.jit
def _square(g, D: tl.constexpr, ROWWISE: tl.constexpr):
    """Return the squares, or if ROWWISE their means over the row, (P, 1)."""
    square = g * g
    if ROWWISE:
        square = tl.sum(square, axis=1, keep_dims=True) / D
    return square


@triton.jit
def step_rows(
    row,
    active,
    g,
    weight,
    state0,
    state1,
    hyper,
    seed,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OPT: tl.constexpr,
    WD: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Update rows (P, 1) int64, where active, by their summed gradients `g` (P, BLOCK_D).

    Every thread that holds a copy of a row's state loads it before the barrier and one stores it
    after, so no thread can read what another has written.
    """
    ROWWISE: tl.constexpr = (OPT == "rowwise_adagrad") | (OPT == "rowwise_adam")
    ADAM: tl.constexpr = (OPT == "adam") | (OPT == "rowwise_adam")
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = active & (d < D)
    at = row * D + d
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    lr = tl.load(hyper).to(tl.float32)
    eps = tl.load(hyper + 1).to(tl.float32)
    if WD == "l2":
        g += tl.load(hyper + 4).to(tl.float32) * w
    elif WD == "decoupled":
        w *= 1.0 - lr * tl.load(hyper + 4).to(tl.float32)
    if OPT == "sgd":
        w -= lr * g
    elif ADAM:
        second = _load_second(state1, row, at, active, inside, ROWWISE)
        first = tl.load(state0 + at, mask=inside, other=0.0)
        # 1 - beta is taken before the cast, for beta near 1 has lost digits in float32.
        beta1, beta2 = tl.load(hyper + 2), tl.load(hyper + 3)
        rest1, rest2 = (1.0 - beta1).to(tl.float32), (1.0 - beta2).to(tl.float32)
        correction1 = tl.load(hyper + 5).to(tl.float32)
        correction2 = tl.sqrt_rn(tl.load(hyper + 6).to(tl.float32))
        first = beta1.to(tl.float32) * first + rest1 * g
        second = beta2.to(tl.float32) * second + rest2 * _square(g, D, ROWWISE)
        denominator = tl.div_rn(tl.sqrt_rn(second), correction2) + eps
        w -= tl.div_rn(tl.div_rn(lr, correction1) * first, denominator)
    else:
        second = _load_second(state0, row, at, active, inside, ROWWISE)
        second += _square(g, D, ROWWISE)
        w -= tl.div_rn(lr * g, tl.sqrt_rn(second) + eps)
    tl.debug_barrier()
    if ADAM:
        tl.store(state0 + at, first, mask=inside)
        _store_second(state1, second, row, at, active, inside, ROWWISE)
    elif OPT != "sgd":
        _store_second(state0, second, row, at, active, inside, ROWWISE)
    if ROUND:
        HALF: tl.constexpr = weight.dtype.element_ty == tl.float16
        tl.store(weight + at, round_stochastically(w, at, seed, HALF), mask=inside)
    else:
        tl.store(weight + at, w.to(weight.dtype.element_ty), mask=inside)
