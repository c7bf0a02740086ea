"""The pieces of an online softmax that the attention kernels share.

A running maximum and sum go with each row of scores; a block of keys raises the maximum, and what was added up before it
is scaled by `alpha`. Scores are in units of log 2. Infinities keep their meaning: a row all of whose scores are -inf has
the reference 0, so its exponentials are 0 and not NaN, and a sum of 0 gives an output of 0, as torch has it.
"""

from .vector import fma, maximum, select

LOG2E = 1.4426950408889634
_MINUS_INFINITY = float("-inf")
# 2^f = 1 + f P(f) for |f| <= 1/2, highest power first; error 2e-7 (float32) and 1e-17.
_POLYNOMIALS = {
    4: (0.001338130253732079618, 0.009666368515385448309, 0.055503810137964574299, 0.24022349038020361372, 0.69314718055994530942),
    8: (
        *(4.4549605981865183938e-10, 7.0725859492692236999e-9, 1.0178062445845773521e-7, 1.3215442587921689653e-6),
        *(0.000015252733829836118394, 0.00015403530441736050155, 0.001333355814641693531, 0.0096181291076068885273),
        *(0.055504108664821594339, 0.2402265069591009822, 0.69314718055994530942),
    ),
}


def exp2(x):
    """2^x for x <= 0: exactly 1 at 0, 0 below the normal numbers, NaN for NaN."""
    size, builder = x.lanes.size, x.builder
    shift, lowest = (23, -127.0) if size == 4 else (52, -1023.0)
    magic = 1.5 * 2.0**shift  # adding it leaves the nearest integer in the low bits
    x = maximum(x.of(lowest), x)
    rounded = x + magic
    fraction = x - (rounded - magic)
    value = x.of(_POLYNOMIALS[size][0])
    for coefficient in (*_POLYNOMIALS[size][1:], 1.0):
        value = fma(value, fraction, coefficient)
    power = builder.shl(rounded.bits(), x.lanes.constant_int(shift))
    return x.from_bits(builder.add(value.bits(), power))


def reference(highest):
    """What to subtract from scores whose maximum is `highest`: 0 where every score was -inf."""
    return select(highest > _MINUS_INFINITY, highest, 0.0)


def reciprocal(total):
    """1 / total; 0 for a total of 0, which is a row that sees no key; NaN for NaN."""
    return select(total > 0.0, 1.0 / total, total)
