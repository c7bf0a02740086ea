"""exp, exp2, sigmoid and tanh of a `Vector`, float32 or float64: straight-line code, no table, no branch, no call.

All of them write e^y = 2^n e^r with n the nearest integer to y / ln 2 and a polynomial in |r| <= ln 2 / 2. Adding
`magic`, a float whose last bit is worth one, rounds to n and leaves n + bias in the low bits, which a shift turns into
2^n. The scale stays a factor of its own: a NaN's bits are never tampered with, and sigmoid's and tanh's 1 is added in
one rounding. 2^128 (2^1024) has no representation, but results just below it do: n stops at 127 (1023), and
the polynomials of exp and exp2 reach up to r = ln 2 for its sake.

Polynomials: Remez fits, coefficients rounded to the format and adjusted by single ulps. Their own errors, in 2^-24
(float64: 2^-53): `expm1` 0.05 (0.05) of e^r - 1 where 0 < r < 0.27, 0.43 (0.37) elsewhere; `exp` 0.52 (0.07) of e^r and
1.05 (0.24) for the last n; `exp2` 0.59 (0.12) and 1.14 (0.46).

Largest errors in ulp of the exact result, wherever that is a normal number: over all float32, and in float64 over
millions of samples; in brackets without fused multiply-add.

              float32        float64
    exp       1.77 (2.26)    1.41 (1.73)    below the last n: 1.17 (1.45), 0.88 (1.15)
    exp2      1.89 (2.24)    1.26 (1.63)    below the last n: 1.13 (1.41), 0.83 (1.10)
    sigmoid   2.49 (2.49)    2.48 (2.48)
    tanh      2.47 (2.47)    2.68 (2.64)

A NaN gives a NaN, infinities give the limits, overflow gives infinity, |tanh| <= 1 and 0 <= sigmoid <= 1. Results below
the smallest normal number are anything from 0 to it; only tanh keeps them, unless the processor flushes them.
"""

from dataclasses import dataclass

from .vector import fma, maximum, minimum, select

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Format:
    """Constants of a floating-point format, and its polynomials lowest degree first."""

    mantissa: int
    bias: int
    ln2: tuple  # two parts; the first times any exponent is exact
    exp_least: float  # below it e^x is 0; its exponent has a scale of exactly 0
    sigmoid_range: tuple  # where e^-x has the scales infinity and 0
    tanh_limit: float  # tanh rounds to 1 from here on
    expm1: tuple  # (e^r - 1 - r) / r^2
    exp: tuple  # e^r, to twice the range on the right
    exp2: tuple  # 2^r, likewise

    @property
    def magic(self):
        return 1.5 * 2.0**self.mantissa + self.bias


FLOAT32 = Format(
    mantissa=23,
    bias=127,
    ln2=(0.693359375, -2.1219444170128554e-4),
    exp_least=-88.0,
    sigmoid_range=(-88.75, 88.0),
    tanh_limit=10.0,
    expm1=(0.5000001192092896, 0.16666562855243683, 0.04166301339864731, 0.008364102803170681, 0.0014132572105154395),
    exp=(
        1.0, 1.0, 0.5000020265579224, 0.16666817665100098, 0.04162393882870674, 0.008339716121554375,
        0.0016046147793531418,
    ),
    exp2=(
        1.0, 0.6931471228599548, 0.2402275651693344, 0.05550527572631836, 0.009607351385056973, 0.0013325746404007077,
        0.00018016550166066736,
    ),
)
FLOAT64 = Format(
    mantissa=52,
    bias=1023,
    ln2=(0.6931471805601177, -1.7239444525614835e-13),
    exp_least=-709.0,
    sigmoid_range=(-709.75, 709.0),
    tanh_limit=20.0,
    expm1=(
        0.5, 0.1666666666666708, 0.04166666666662555, 0.00833333333304423, 0.0013888888917553198,
        0.00019841270491519975, 2.4801520819390994e-05, 2.755672144525473e-06, 2.762021074656153e-07,
        2.5265170555358144e-08,
    ),
    exp=(
        1.0, 1.0, 0.5000000000000002, 0.1666666666666591, 0.041666666666643634, 0.008333333333748177,
        0.0013888888892565976, 0.0001984126905559029, 2.4801589723787915e-05, 2.75579329551318e-06,
        2.754995750095022e-07, 2.4901115211985327e-08, 2.422060776174909e-09,
    ),
    exp2=(
        1.0, 0.6931471805599454, 0.24022650695910172, 0.055504108664815525, 0.009618129107595828,
        0.001333355814760824, 0.00015403530423206696, 1.525273279350551e-05, 1.3215478858460027e-06,
        1.0178476743630304e-07, 7.053849572074479e-09, 4.3934729211727906e-10, 3.090508824958753e-11,
    ),
)



def _format(x):
    return FLOAT64 if x.lanes.size == 8 else FLOAT32


def _polynomial(coefficients, r):
    value = r.of(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = fma(value, r, coefficient)
    return value


def _exponent(shifted, form):
    """(n, 2^n) from n + magic; 2^n is 0 and infinity one beyond the exponents of normal numbers."""
    scale = shifted.builder.shl(shifted.bits(), shifted.lanes.constant_int(form.mantissa))
    return shifted - form.magic, shifted.from_bits(scale)


def exp(x):
    """e^x."""
    form = _format(x)
    x = maximum(x.of(form.exp_least), x)
    n, scale = _exponent(minimum(x.of(form.magic + form.bias), fma(x, LOG2_E, form.magic)), form)
    high, low = form.ln2
    r = fma(n, -low, fma(n, -high, x))
    return _polynomial(form.exp, r) * scale


def exp2(x):
    """2^x; exact where x is an integer and the result a normal number."""
    form = _format(x)
    x = maximum(x.of(-form.bias), x)
    n, scale = _exponent(minimum(x.of(form.magic + form.bias), x + form.magic), form)
    return _polynomial(form.exp2, x - n) * scale


def sigmoid(x):
    """1 / (1 + e^-x). The 1 is added to 2^n e^r in one rounding."""
    form = _format(x)
    least, most = form.sigmoid_range
    x = maximum(x.of(least), minimum(x.of(most), x))
    n, scale = _exponent(fma(x, -LOG2_E, form.magic), form)
    high, low = form.ln2
    r = fma(n, low, fma(n, high, x))
    alternating = [-c if k % 2 else c for k, c in enumerate((1.0, 1.0, *form.expm1))]
    return 1.0 / fma(_polynomial(alternating, r), scale, 1.0)


def tanh(x):
    """h / (h + 1) with h = (e^2|x| - 1) / 2, and the sign of x.

    Nothing cancels near 0: n is 0 there, and h = |x| + x^2 (...). One part of ln 2 is enough: where n is large, an
    error in h hardly matters.
    """
    form = _format(x)
    size = minimum(x.of(form.tanh_limit), x.unary("fabs"))
    n, scale = _exponent(fma(size, 2 * LOG2_E, form.magic), form)
    r = fma(n, -sum(form.ln2) / 2, size)
    tail = _polynomial([c * 2.0 ** (k + 1) for k, c in enumerate(form.expm1)], r)
    h = fma(fma(r * r, tail, r), scale, fma(scale, 0.5, -0.5))
    return _with_sign(h / (h + 1.0), x)


def _with_sign(x, y):
    """x >= 0 (or NaN) with y's sign."""
    builder, lanes = x.builder, x.lanes
    sign = builder.and_(y.bits(), lanes.constant_int(-1 << (8 * lanes.size - 1)))
    return x.from_bits(builder.or_(x.bits(), sign))


def relu(x):
    """The larger of x and 0; NaN stays, -0.0 stays, as torch has it."""
    return maximum(x.of(0.0), x)


def dsigmoid(y):
    """The derivative of sigmoid where it is y."""
    return y * (1.0 - y)


def dtanh(y):
    """The derivative of tanh where it is y. Two factors: 1 - y^2 loses its digits near 1 unless fused."""
    return (1.0 - y) * (1.0 + y)


def drelu(y):
    """The derivative of relu where it is y: 0 at 0; 1 where y is NaN, as torch lets the gradient through there."""
    return select(y <= 0.0, y.of(0.0), y.of(1.0))
