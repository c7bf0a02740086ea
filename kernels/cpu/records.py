"""Partial results of attention, a record (rowwise.py) of each row over some of the keys, and how they are combined."""

from . import target
from .inner import inner
from .rowwise import add_scaled, one_over_sum, raised, weight, write_row
from .tiles import load, store, zeros


def record(W, Dv):
    """Elements of a record: the highest score in every lane, the lanes' sums of exponentials, the sums of values."""
    return 2 * W + -(-Dv // W) * W


def combiner(size, stored):
    """One row of the output from its `count` records, `stride` bytes apart."""
    W = target.current().lanes(size)
    vector, write = W * size, write_row(stored)

    @inner
    def combine(first, count, stride, Dv, out):
        highest = load(zeros(1, 1, size), first, 0)
        for c in range(1, count):
            highest = raised(highest, (first + stride * c,))
        total = zeros(1, 1, size)
        for c in range(count):
            store(weight(highest, (first + stride * c,)), first + stride * c, 0)
            total = add_scaled(total, (first + stride * c + vector, 0, first + stride * c))
        store(one_over_sum(total, ()), first + vector, 0)
        for d in range(0, Dv, W):
            acc = zeros(1, 1, size)
            for c in range(count):
                acc = add_scaled(acc, (first + stride * c + 2 * vector + size * d, 0, first + stride * c))
            write(acc, (out + stored * d, Dv - d, first + vector))

    return combine
