"""Sums of outer products in a register tile, of operands that are read where they lie."""

from . import target
from .inner import inner
from .operands import outer_term
from .tiles import add, load, store, zeros

SUMMED = 64  # terms that are added up one after the other; the rounding of longer sums would show
_FEW = 8  # accumulators that would wait for their own results


def products(m, n, size, stored, in_order=False):
    """The sum over i < count of m terms, `stride` elements apart from a + i step on, times n vectors at b + i row.

    step and row in lanes, each of a term: an element, or a pair of bfloat16 (operands.py).

    in_order: one term after the other even where few accumulators wait for it, so that the bits do not depend on m, n.
    """
    few = m * n <= _FEW and 2 * m * n + n < target.current().registers and not in_order
    outer = outer_term(size, stored)

    @inner
    def one_chain(a, step, stride, b, row, count):
        acc = zeros(m, n, size)
        for i in range(count):
            acc = outer(acc, a + size * step * i, stride, b + size * row * i)
        return acc

    @inner
    def two_chains(a, step, stride, b, row, count):
        even, odd = zeros(m, n, size), zeros(m, n, size)
        for i in range(1, count, 2):
            even = outer(even, a + size * step * (i - 1), stride, b + size * row * (i - 1))
            odd = outer(odd, a + size * step * i, stride, b + size * row * i)
        if count > 0 and count % 2:
            even = outer(even, a + size * step * (count - 1), stride, b + size * row * (count - 1))
        return add(even, odd)

    return two_chains if few else one_chain


def dots(m, n, size, stored, in_order=False):
    """m rows at a, `stride` elements apart, times the rows of n vectors that follow each other at b, `count` terms.

    SUMMED terms at a time; the sum so far waits at p, where m rows of n vectors have room.
    """
    width, sums = n * target.current().lanes(size), products(m, n, size, stored, in_order)

    @inner
    def run(a, stride, b, count, p):
        acc = sums(a, 1, stride, b, width, min(count, SUMMED))
        for d in range(SUMMED, count, SUMMED):
            store(acc, p, width)
            acc = sums(a + size * d, 1, stride, b + size * width * d, width, min(count - d, SUMMED))
            acc = add(acc, load(acc, p, width))
        return acc

    return run
