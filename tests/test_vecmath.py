"""Elementary functions of a vector against references of higher precision, on every instruction set that runs here."""

import re
from functools import cache

import mpmath
import numpy as np
import pytest
import torch
from seqkernels.kernels.cpu import vecmath
from vector_code import TARGETS, compiled, instructions, of_this_architecture, runs_here

DTYPES = {4: np.float32, 8: np.float64}
FUNCTIONS = ("exp", "exp2", "sigmoid", "tanh")
# Largest error in ulp of the exact result, where that is a normal number: with fused multiply-add, and without.
# Below 2.5 is within 2 ulp of the correctly rounded result. float32: maxima over all numbers; float64: over samples.
BOUNDS = {
    ("exp", 4): (1.77, 2.26),
    ("exp2", 4): (1.89, 2.24),
    ("sigmoid", 4): (2.49, 2.49),
    ("tanh", 4): (2.47, 2.47),
    ("exp", 8): (1.45, 1.75),
    ("exp2", 8): (1.3, 1.65),
    ("sigmoid", 8): (2.5, 2.5),
    ("tanh", 8): (2.7, 2.7),
}
# Instructions on AVX-512 beyond loads, stores and moves.
INSTRUCTIONS = {"exp": (14, 20), "exp2": (13, 19), "sigmoid": (15, 20), "tanh": (17, 22)}  # float32, float64

each_function = pytest.mark.parametrize("name", FUNCTIONS)
each_size = pytest.mark.parametrize("size", DTYPES, ids=["float32", "float64"])
each_target = pytest.mark.parametrize("target", TARGETS)


@pytest.fixture(params=[target for target in TARGETS if of_this_architecture(target)])
def run(request):
    """run(name, x): the function `name` of an array of floats on one of the targets."""
    if not runs_here(request.param):
        pytest.skip(f"this processor does not run {request.param} code")

    def call(name, x):
        return compiled(getattr(vecmath, name), x.dtype.itemsize, request.param)(x)

    call.fused = request.param != "plain"
    return call


def points32():
    """Every 2^12-th float32 of all, and runs of neighbours where something changes."""
    strided = np.arange(0, 2**32, 2**12, dtype=np.uint64) + 1234
    starts = [1e-8, 0.03, 0.062, 0.0625, 0.1733, 0.204, 0.24, 0.3465, 0.5, 0.97, 1.04, 2, 4, 9, 15.9, 16.635]
    starts = np.array([*starts, 87.33, 88.37, 88.72, 126, 127.9], np.float32)
    runs = (starts.view(np.uint32)[:, None] + np.arange(2**12, dtype=np.uint32)).ravel()
    x = np.concatenate([strided.astype(np.uint32), runs, runs | np.uint32(1 << 31)]).view(np.float32)
    return x[np.isfinite(x)]


def points64():
    """Random bit patterns, magnitudes and ranges, the neighbours of the edges."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2**64, 2000, dtype=np.uint64).view(np.float64)
    magnitudes = random.uniform(-1, 1, 6000) * 2.0 ** random.integers(-60, 11, 6000)
    ranges = np.concatenate([random.uniform(-edge, edge, 2500) for edge in (0.5, 2, 30, 745, 1080)])
    edges = np.array([0.1733, 0.3466, 1.04, 19.06, 36.7, 708.39, 709.435, 709.7827, 1022.0, 1023.5, 1024.0])
    edges = (edges.view(np.uint64)[:, None] + np.arange(-60, 60).astype(np.uint64)).ravel().view(np.float64)
    x = np.concatenate([patterns, magnitudes, ranges, edges, -edges])
    return x[np.isfinite(x)]


def exact64(name, x):
    """The result in 120 bits as two float64 arrays, high + low."""
    function = {
        "exp": mpmath.exp,
        "exp2": lambda v: mpmath.power(2, v),
        "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
        "tanh": mpmath.tanh,
    }[name]
    with mpmath.workprec(120):
        # Beyond +-2000 float64 sees constants, and mpmath's tanh would work ever longer.
        values = [function(mpmath.mpf(v)) for v in np.clip(x, -2000, 2000).tolist()]
        high = [float(v) for v in values]
        low = [float(v - h) if np.isfinite(h) else 0.0 for v, h in zip(values, high)]
    return np.array(high), np.array(low)


def exact32(name, x):
    x = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        result = {"exp": np.exp, "exp2": np.exp2, "tanh": np.tanh, "sigmoid": lambda v: 1 / (1 + np.exp(-v))}[name](x)
    return result, np.zeros_like(x)


@cache
def cases(name, size):
    """Points, and the exact results there as high + low."""
    x = points32() if size == 4 else points64()
    return x, *(exact32 if size == 4 else exact64)(name, x)


def error(got, high, low):
    """|got - exact| in units of the exact value's last place in got's format; 0 where that is no normal number."""
    info = np.finfo(got.dtype)
    with np.errstate(over="ignore"):
        normal = (np.abs(high) >= info.tiny) & np.isfinite(high.astype(got.dtype))
    ulp = np.ldexp(1.0, np.frexp(high)[1] - info.nmant - 1)[normal]
    result = np.zeros_like(high)
    result[normal] = np.abs((got.astype(np.float64)[normal] - high[normal]) - low[normal]) / ulp
    return result


@each_size
@each_function
def test_error_is_within_the_stated_ulps(run, name, size):
    x, high, low = cases(name, size)
    got = run(name, x)
    errors = error(got, high, low)
    worst = errors.argmax()
    bound = BOUNDS[name, size][0 if run.fused else 1]
    assert errors[worst] <= bound, f"{errors[worst]:.3f} ulp at {x[worst]!r}: {got[worst]!r}, exactly {high[worst]!r}"


@each_size
@each_function
def test_overflow_is_infinity_and_underflow_is_below_the_normal_numbers(run, name, size):
    x, high, _ = cases(name, size)
    info = np.finfo(DTYPES[size])
    got = run(name, x)
    with np.errstate(over="ignore"):
        rounded = high.astype(DTYPES[size])
    assert np.array_equal(np.isinf(got), np.isinf(rounded))
    small = np.abs(rounded) < info.tiny
    if name == "tanh":
        assert np.array_equal(got[small], x[small])
    else:
        assert np.all((got[small] >= 0) & (got[small] <= info.tiny))


@each_size
def test_sigmoid_and_tanh_stay_in_range_and_tanh_is_odd(run, size):
    x, _, _ = cases("tanh", size)
    sigmoid, tanh = run("sigmoid", x), run("tanh", x)
    assert sigmoid.min() == 0 and sigmoid.max() == 1
    assert tanh.min() == -1 and tanh.max() == 1
    assert np.array_equal(run("tanh", -x), -tanh)


@each_size
def test_special_values(run, size):
    dtype, info = DTYPES[size], np.finfo(DTYPES[size])
    least = info.smallest_subnormal
    x = np.array([-np.inf, info.min, -least, -0.0, 0.0, least, info.max, np.inf], dtype)
    expected = {
        "exp": [0, 0, 1, 1, 1, 1, np.inf, np.inf],
        "exp2": [0, 0, 1, 1, 1, 1, np.inf, np.inf],
        "sigmoid": [0, 0, 0.5, 0.5, 0.5, 0.5, 1, 1],
        "tanh": [-1, -1, *x[2:6], 1, 1],
        "relu": [0, 0, 0, -0.0, *x[4:]],
    }
    for name, values in expected.items():
        got, values = run(name, x), np.array(values, dtype)
        assert np.array_equal(got, values) and np.array_equal(np.signbit(got), np.signbit(values)), name


@each_size
def test_exp2_of_integers_is_exact(run, size):
    bias = {4: 127, 8: 1023}[size]
    x = np.arange(1 - bias, bias + 2).astype(DTYPES[size])
    assert np.array_equal(run("exp2", x), [*np.ldexp(DTYPES[size](1), x[:-1].astype(int)), np.inf])


@each_size
@pytest.mark.parametrize("name", [*FUNCTIONS, "relu", "dsigmoid", "dtanh"])
def test_every_nan_gives_nan(run, name, size):
    quiet_and_signalling = [(1 << bit) + low for bit in range(9 * size) for low in range(700)]
    mantissa, unsigned = (23, np.uint32) if size == 4 else (52, np.uint64)
    fraction = np.array(quiet_and_signalling, dtype=object) % (1 << mantissa)
    exponent = ((1 << (8 * size - 1 - mantissa)) - 1) << mantissa
    x = (fraction[fraction > 0] + exponent).astype(unsigned).view(DTYPES[size])
    assert np.isnan(x).all()
    assert np.isnan(run(name, np.concatenate([x, -x]))).all()


@each_size
def test_derivatives_from_values(run, size):
    dtype, info = DTYPES[size], np.finfo(DTYPES[size])
    random = np.random.default_rng(0).uniform(0, 1, 20000)
    y = np.concatenate([random, 1 - 2.0 ** -np.arange(1, info.nmant + 2), [0, 1]]).astype(dtype)
    for name, values, exact in (
        ("dsigmoid", y, lambda v: v * (1 - v)),
        ("dtanh", np.concatenate([y, -y]), lambda v: (1 - v) * (1 + v)),
    ):
        wanted = exact(values.astype(np.longdouble))
        assert np.all(np.abs(run(name, values) - wanted) <= 1.5 * info.eps * wanted)


@each_size
def test_relu_and_its_derivative_are_as_torch_has_them(run, size):
    x = np.array([np.nan, np.inf, 2, 1e-40, 0, -0.0, -1e-40, -2, -np.inf], DTYPES[size])
    leaf = torch.tensor(x, requires_grad=True)
    y = torch.relu(leaf)
    y.sum().backward()
    got = run("relu", x)
    assert np.array_equal(got, y.detach().numpy(), equal_nan=True)
    assert np.array_equal(np.signbit(got), np.signbit(y.detach().numpy()))
    assert np.array_equal(run("drelu", got), leaf.grad.numpy())


@each_target
@each_size
@pytest.mark.parametrize("name", [*FUNCTIONS, "relu", "dsigmoid", "dtanh", "drelu"])
def test_code_has_no_call_no_gather_and_no_branch_but_the_loop(name, size, target):
    code = instructions(getattr(vecmath, name), size, target)
    assert len(code) > 5
    assert not [i for i in code if re.match(r"call|bl$|v?gather", i)]
    assert len([i for i in code if re.match(r"j|b\.|cb|tb", i)]) == 1


@each_size
@each_function
def test_instructions_of_avx512_do_not_grow(name, size):
    code = instructions(getattr(vecmath, name), size, "avx512")
    code = [i for i in code if re.match(r"v(?!mov|p?broadcast|zeroupper)", i)]
    assert len(code) <= INSTRUCTIONS[name][0 if size == 4 else 1], code
