"""The pieces of an online softmax that the attention kernels share.

A running maximum and sum go with each row of scores; a block of keys raises the maximum, and what was added up before
is scaled by `alpha`. Infinities keep their meaning: a row of scores -inf has the reference 0, so its exponentials are 0
and not NaN, and a sum of 0 gives an output of 0, as in torch.
"""

from itertools import product

from . import target
from .inner import inner
from .narrow import pair
from .operands import per_lane
from .tiles import add, load, store, tile_op, zeros
from .vecmath import FLOAT32, FLOAT64, LOG2_E
from .vector import fma, maximum, select

_MINUS_INFINITY = float("-inf")


def exp(x):
    """e^x for x <= 0, NaN for NaN, exact at 0 and -inf: `vecmath.exp` without what larger x need.

    One part of ln 2 is enough: where its error shows, e^x is small beside the 1 of the highest score.
    """
    form = FLOAT64 if x.lanes.size == 8 else FLOAT32
    x = maximum(x.of(form.exp_least), x)
    shifted = fma(x, LOG2_E, form.magic)
    scale = x.from_bits(x.builder.shl(shifted.bits(), x.lanes.constant_int(form.mantissa)))
    r = fma(shifted - form.magic, -sum(form.ln2), x)
    value = x.of(form.exp[-1])
    for coefficient in form.exp[-2::-1]:
        value = fma(value, r, coefficient)
    return value * scale


def log(x):
    """ln x for x >= 1, NaN for NaN: three of Halley's steps for e^y = x, from the bits read as a logarithm.

    The error is that of `exp`, an ulp or two of 1; each step leaves a twelfth of its error's cube.
    """
    form, lanes, builder = FLOAT64 if x.lanes.size == 8 else FLOAT32, x.lanes, x.builder
    one = lanes.constant_int(form.bias << form.mantissa)
    bits = x.new(builder.sitofp(builder.sub(x.bits(), one), lanes.floats))
    y = bits * (1 / (LOG2_E * 2.0**form.mantissa))
    for _ in range(3):
        ratio = x * exp(-y)
        y = y + 2.0 * (ratio - 1.0) / (ratio + 1.0)
    return y


def reference(highest):
    """What to subtract from scores whose maximum is `highest`: 0 where every score was -inf."""
    return select(highest > _MINUS_INFINITY, highest, 0.0)


def reciprocal(total):
    """1 / total; 0 for a total of 0, which is a row that sees no key; NaN for NaN."""
    return select(total > 0.0, 1.0 / total, total)


@tile_op
def log_sums(frame):
    """(reference, total): the logarithm of the sum of a row's exponentials; -inf for a row that sees no key.

    NaN for a row with a score of infinity: so are all of its weights.
    """
    subtracted, total = frame.integers
    for j in range(frame.n):
        offset = j * frame.width * frame.lanes.size
        value = frame.load(total + offset)
        frame.tile[0][j] = select(value <= 0.0, value.of(_MINUS_INFINITY), frame.load(subtracted + offset) + log(value))


@tile_op
def reset(frame):
    """(highest, before, reference, total, alpha) of a new query block."""
    highest, before, _, total, _ = frame.integers
    for j in range(frame.n):
        offset = j * frame.width * frame.lanes.size
        frame.store(frame.constant("-inf"), highest + offset)
        frame.store(frame.constant("-inf"), before + offset)
        frame.store(frame.constant(0.0), total + offset)


@tile_op
def advance(frame):
    """After a block's scores: the reference to subtract from them, and what scales all that came before."""
    highest, before, subtracted, total, alpha = frame.integers
    for j in range(frame.n):
        offset = j * frame.width * frame.lanes.size
        new = frame.load(highest + offset)
        base = reference(new)
        factor = exp(frame.load(before + offset) - base)
        frame.store(new, before + offset)
        frame.store(base, subtracted + offset)
        frame.store(factor, alpha + offset)
        frame.store(frame.load(total + offset) * factor, total + offset)


def exponentials(n, size, stored, dropout):
    """p = e^(p - reference) in place; the sums are added to the total, and then, with dropout, p is times `kept`.

    stored: bytes of an element of p as it is left: 2, pairs of two rows of bfloat16, which take half the place.
    """
    row, per = n * target.current().lanes(size) * size, per_lane(size, stored)
    together = 2 if n > 1 else 4

    def op(rows):
        def exponential(frame):
            """The tile holds the sums."""
            p, result, subtracted, kept = frame.integers
            vector = frame.width * frame.lanes.size
            for i, j in product(range(0, rows, per), range(n)):
                values = []
                for place in (((i + k) * n + j) * vector for k in range(min(per, rows - i))):
                    value = exp(frame.load(p + place) - frame.load(subtracted + j * vector))
                    frame.tile[0][j] = frame.tile[0][j] + value
                    values.append(value * frame.load(kept + place) if dropout else value)
                if per > 1:
                    values = [pair(*values, *[frame.constant(0.0)] * (per - len(values)))]
                frame.store(values[0], result + (i // per * n + j) * vector)

        return tile_op(exponential)

    several, few, single = op(together), op(per), op(1)

    @inner
    def exponentials_(p, count, state, kept):
        sums, i = zeros(1, n, size), 0
        while i + together <= count:
            sums = several(sums, (p + row * i, p + row * (i // per), state[2], kept + row * i))
            i += together
        while i + per <= count:
            sums = few(sums, (p + row * i, p + row * (i // per), state[2], kept + row * i))
            i += per
        if i < count:
            sums = single(sums, (p + row * i, p + row * (i // per), state[2], kept + row * i))
        store(add(sums, load(zeros(1, n, size), state[3], 0)), state[3], 0)

    return exponentials_
