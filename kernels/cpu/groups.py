"""Groups of queries: n vectors of them, W queries to a vector, that meet the keys BLOCK at a time."""

from . import target
from .inner import inner

BLOCK = 96  # keys, a multiple of the eight that one call of dropout's generator serves, and of a tile's rows
GROUPS = 8  # the most that go together


def vectors():
    """Vectors of queries in a group: the tile of scores fills the registers."""
    return 4 if target.current().registers >= 32 else 3


def whole(count, W):
    """Elements of `count`, in whole vectors."""
    return -(-count // W) * W


def row(count, W):
    """Elements between the rows of a copy: an odd number of vectors, so that rows do not compete for a cache's sets."""
    return (-(-count // W) | 1) * W


def every_group(make, size, *others):
    """A function that calls make(vectors, size, *others)'s (state, t, arguments) for whole groups, then for single
    vectors."""
    W, n = target.current().lanes(size), vectors()
    wide, narrow = make(n, size, *others), make(1, size, *others)

    @inner
    def run(states, each, t, count, arguments):
        i = 0
        while i < count:
            if i + n <= count:
                wide(states + each * i, t + W * i, arguments)
                i += n
            else:
                narrow(states + each * i, t + W * i, arguments)
                i += 1

    return run
