"""Register tiles and their edges, on the target that the process runs on."""

import numpy as np
import pytest
from numba import njit
from seqkernels.kernels.cpu import parts, product, target, tiles

DTYPES = {4: np.float32, 8: np.float64}
sizes = pytest.mark.parametrize("size", DTYPES)


def drawn(size, *shape):
    return np.random.default_rng(0).standard_normal(shape).astype(DTYPES[size])


def untouched(size, *shape):
    return np.full(shape, 7.0, DTYPES[size])


@sizes
def test_outer_adds_a_product_of_a_column_and_a_row(size):
    m, n = 3, 2
    width = n * target.current().lanes(size)
    a, b, c = drawn(size, m, 5), drawn(size, 5, width), untouched(size, m, width)

    @njit
    def run(a, b, c):
        acc = tiles.zeros(m, n, size)
        for k in range(5):
            acc = tiles.outer(acc, a + size * k, 5, b + size * width * k)
        tiles.store(tiles.add(acc, acc), c, width)

    run(a.ctypes.data, b.ctypes.data, c.ctypes.data)
    np.testing.assert_allclose(c, 2 * (a @ b), rtol=1e-5, atol=1e-5)


@sizes
@pytest.mark.parametrize("m", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("n", [1, 3, 4])
@pytest.mark.parametrize("K", [0, 1, 3, 4, 255, 256, 257, 1030])
def test_product_of_any_length(size, m, n, K):
    width = n * target.current().lanes(size)
    a, b, c = drawn(size, m, K + 1), drawn(size, K, width), untouched(size, m, width)
    _product(m, n, size)(a.ctypes.data, K + 1, K, b.ctypes.data, c.ctypes.data, width, 0)
    exact = a[:, :K].astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(c, exact, rtol=0, atol=(1e-12 if size == 8 else 1e-5) * max(1, np.abs(exact).max()))


@pytest.mark.parametrize("m", [1, 2, 4, 6])
@pytest.mark.parametrize("K", [0, 1, 2, 3, 4, 15, 16, 33, 255, 511, 512, 1023, 1024, 1025, 2050])
@pytest.mark.parametrize("weight", [2, 1])
@pytest.mark.parametrize("n, large", [(4, False), (4, True), (3, False)])
def test_product_with_narrow_weights(weight, m, K, n, large):
    """Of rows of very different sizes, with very different elements, and a NaN behind each."""
    together = 4 // weight
    width, a = n * target.current().lanes(4), drawn(4, m, K + 1)
    a *= np.logspace(-20, 20, m, dtype=np.float32)[:, None]
    a[:, ::5] *= 1e-3
    a[:, 3::7], a[:, K] = 0, np.nan
    exact = drawn(4, K, width)
    if large:  # an element that no weight sees takes nothing from the others
        a[0, 1:2], exact[1:2] = 1e12, 0
        a[:, K] = np.nan
    if weight == 2:
        exact = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)
        elements = (exact.view(np.uint32) >> 16).astype(np.uint16)
    else:
        exact = np.clip(np.rint(exact * 60), -127, 127)
        elements = exact.astype(np.int8)
    padded = np.zeros((-(-K // together) * together, width), elements.dtype)
    padded[:K] = elements
    b = np.ascontiguousarray(padded.reshape(-1, together, width).transpose(0, 2, 1))
    c, columns = untouched(4, m, width), exact.sum(0, dtype=np.float32)
    _product(m, n, 4, weight)(a.ctypes.data, K + 1, K, b.ctypes.data, c.ctypes.data, width, columns.ctypes.data)
    rows = a[:, :K].astype(np.float64)
    # Of int8 rows are rounded, to 2^-23 of their largest element, if that is at most 16; sums to float32.
    largest = np.abs(rows).max(1, initial=0)[:, None]
    bound = 2.0**-22 * (np.abs(rows) @ np.abs(exact) + np.where(largest > 16, 0, largest) * np.abs(exact).sum(0))
    assert (np.abs(c - rows @ exact) <= bound).all()


_PRODUCTS = {}


def _product(m, n, size, weight=None):
    if (m, n, size, weight) not in _PRODUCTS:
        of_b = weight or size

        @njit
        def run(a, stride, K, b, c, width, columns):
            tiles.store(product.product(m, n, size, size, of_b, a, stride, K, b, b, columns), c, width)

        _PRODUCTS[m, n, size, weight] = run
    return _PRODUCTS[m, n, size, weight]


@sizes
def test_parts_read_and_write_nothing_outside(size):
    m, n = 3, 2
    W = target.current().lanes(size)
    width = n * W

    @njit
    def copy(source, destination, rows, columns):
        part = parts.load_part(tiles.zeros(m, n, size), (source, width, rows, columns))
        parts.store_part(part, (destination, width, rows, columns))
        tiles.store(part, destination + size * m * width, width)

    source = drawn(size, m, width)
    for rows in range(m + 1):
        for columns in (0, 1, W - 1, W, W + 1, width, width + 5):
            result = untouched(size, 2 * m, width)
            copy(source.ctypes.data, result.ctypes.data, rows, columns)
            inside = np.zeros((m, width), bool)
            inside[:rows, :columns] = True
            np.testing.assert_array_equal(result[:m], np.where(inside, source, 7))
            np.testing.assert_array_equal(result[m:], np.where(inside, source, 0))


@sizes
@pytest.mark.parametrize("count", [-(2**40), -1, 0, 1, 3, 2**31, 2**32, 2**40 + 1])
def test_masks_of_any_count(size, count):
    W = target.current().lanes(size)

    @tiles.tile_op
    def fill(frame):
        place, count = frame.integers
        frame.store(frame.constant(1.0), place, frame.below(count))

    @njit
    def run(place, count):
        fill(tiles.zeros(1, 1, size), (place, count))

    result = untouched(size, W)
    run(result.ctypes.data, count)
    np.testing.assert_array_equal(result == 1, np.arange(W) < count)


@sizes
def test_transpose(size):
    W = target.current().lanes(size)

    @njit
    def run(source, destination):
        square = tiles.load(tiles.zeros(W, 1, size), source, W)
        tiles.store(tiles.transpose(square, (0,)), destination, W)

    source, result = drawn(size, W, W), untouched(size, W, W)
    run(source.ctypes.data, result.ctypes.data)
    np.testing.assert_array_equal(result, source.T)


def test_denormal_mode_is_set_and_given_back():
    @njit
    def product_of_small(a):
        parts.never_inline()
        return a * a

    @njit
    def flushed(a):
        mode = parts.flush_denormals()
        result = product_of_small(a)
        parts.restore_denormals(mode)
        return result

    small = np.float64(1e-160)
    assert product_of_small(small) > 0
    assert flushed(small) == 0
    assert product_of_small(small) > 0
