"""The inner loop of every matrix product, and the split of rows into register tiles."""

from numba import njit

from . import target
from .tiles import add, outer, prefetch, zeros

_AHEAD = 2048  # bytes: how far ahead a lone row asks for its weights
BLOCK = 256  # terms added up in one go: the rounding errors of a sum grow with its length, those of a sum of sums less


def product(m, n, size):
    """A function (acc, a, stride, K, b): acc (m rows, n vectors) += a (m, K; rows `stride` apart) times packed b (K, n W).

    Few accumulators would leave the multipliers waiting for their own results, so small tiles add up in 2 or 4 chains.
    """
    here = target.current()
    row = n * here.lanes(size) * size
    spare = here.registers * 3 // 4 // (m * n)
    chains = 4 if spare >= 4 else 2 if spare >= 2 else 1

    if chains == 1:

        @njit(nogil=True)
        def multiply(acc, a, stride, K, b):
            for k in range(K):
                acc = outer(acc, a + size * k, stride, b + row * k)
            return acc

    elif chains == 2:

        @njit(nogil=True)
        def multiply(acc, a, stride, K, b):
            acc1 = zeros(m, n, size)
            for k in range(0, K - 1, 2):
                acc = outer(acc, a + size * k, stride, b + row * k)
                acc1 = outer(acc1, a + size * (k + 1), stride, b + row * (k + 1))
            if K % 2:
                acc = outer(acc, a + size * (K - 1), stride, b + row * (K - 1))
            return add(acc, acc1)

    else:

        @njit(nogil=True)
        def multiply(acc, a, stride, K, b):
            acc1, acc2, acc3 = zeros(m, n, size), zeros(m, n, size), zeros(m, n, size)
            for k in range(0, K - 3, 4):
                p, q = a + size * k, b + row * k
                for line in range(0, 4 * row, 64):
                    prefetch(q + _AHEAD + line)
                acc = outer(acc, p, stride, q)
                acc1 = outer(acc1, p + size, stride, q + row)
                acc2 = outer(acc2, p + 2 * size, stride, q + 2 * row)
                acc3 = outer(acc3, p + 3 * size, stride, q + 3 * row)
            for k in range(K // 4 * 4, K):
                acc = outer(acc, a + size * k, stride, b + row * k)
            return add(add(acc, acc1), add(acc2, acc3))

    return multiply


def long_product(m, n, size):
    """A function (a, stride, K, b) -> tile: the product of any length, summed in blocks."""
    multiply = product(m, n, size)
    row = n * target.current().lanes(size) * size

    @njit(nogil=True)
    def run(a, stride, K, b):
        total = multiply(zeros(m, n, size), a, stride, min(K, BLOCK), b)
        for k in range(BLOCK, K, BLOCK):
            block = multiply(zeros(m, n, size), a + size * k, stride, min(K - k, BLOCK), b + row * k)
            total = add(total, block)
        return total

    return run


def by_rows(make, n):
    """A function (first, last, B, arguments) that runs make(m)'s `tile(row, arguments)` over rows first ... last - 1.

    The B rows are cut into tiles of `target.rows(n)`, then 4, 2 and 1. The cut depends on B alone: `first` and `last`
    must be on it (`kernels.cpu.product.cuts`), and the same row is then summed in the same order whoever computes it.
    """
    M = target.current().rows(n)
    most, four, two, one = make(M), make(min(4, M)), make(min(2, M)), make(1)

    @njit(nogil=True)
    def run(first, last, B, arguments):
        row = first
        while row + M <= last:
            most(row, arguments)
            row += M
        if M > 4:
            while row + 4 <= last:
                four(row, arguments)
                row += 4
        if M > 2:
            while row + 2 <= last:
                two(row, arguments)
                row += 2
        while row < last:
            one(row, arguments)
            row += 1

    return run
