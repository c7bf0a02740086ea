"""exp, exp2, sigmoid and tanh of a `Vector`, float32 or float64: straight-line code, no table, no branch, no call.

All of them write e^y = 2^n e^r with n the nearest integer to y / ln 2 and a polynomial in |r| <= ln 2 / 2. Adding
`magic`, a float whose last bit is worth one, rounds to n and leaves n + bias in the low bits, which a shift turns into
2^n. The scale 2^n stays a factor of its own, so that the 1 of tanh and sigmoid is added in one rounding.
The polynomials are Remez fits with 1 (and where 1 is shown, r) held exact and the rest rounded to the format. `EXPM1`
minimises the relative error of e^r - 1 over |r| <= ln 2 / 2: 0.27 x 2^-24 and 0.25 x 2^-53. `EXP` and `EXP2` reach to
twice that on the right, where n stops at its largest: 2^128 (2^1024) has no representation, results just below it do.

No NaN is lost, infinities give the limits, and results below the smallest normal number may be flushed to zero.
"""

from dataclasses import dataclass

from .vector import fma, maximum, minimum, select


@dataclass(frozen=True)
class Format:
    """Constants of a floating-point format, and its polynomials (lowest degree first)."""

    mantissa: int
    bias: int
    ln2: tuple  # two parts; the first times any exponent is exact
    exp_least: float  # below it e^x is 0; its exponent has a scale of exactly 0
    sigmoid_range: tuple  # where e^-x has the scales infinity and 0
    tanh_limit: float  # tanh rounds to 1 from here on
    expm1: tuple
    exp: tuple
    exp2: tuple

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
    expm1=(1.0, 1.0, 0.4999999701976776, 0.1666654348373413, 0.041667234152555466, 0.008366518653929234, 0.0013882529456168413),
    exp=(1.0, 1.0, 0.5000020265579224, 0.16666817665100098, 0.04162393882870674, 0.008339716121554375, 0.0016046147793531418),
    exp2=(
        *(1.0, 0.6931471824645996, 0.24022747576236725, 0.05550461634993553, 0.009608275257050991),
        *(0.0013343774480745196, 0.0001779604790499434),
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
        *(1.0, 1.0, 0.5000000000000006, 0.1666666666666659, 0.04166666666657662, 0.008333333333389538),
        *(0.0013888888931589322, 0.0001984126971907326, 2.480150524285902e-05, 2.7557407447471785e-06),
        *(2.7626050800707993e-07, 2.5053816893329288e-08),
    ),
    exp=(
        *(1.0, 1.0, 0.5000000000000002, 0.1666666666666591, 0.041666666666643634, 0.008333333333748177),
        *(0.0013888888892565976, 0.0001984126905559029, 2.4801589723787915e-05, 2.75579329551318e-06),
        *(2.754995750095022e-07, 2.4901115211985327e-08, 2.422060776174909e-09),
    ),
    exp2=(
        *(1.0, 0.6931471805599454, 0.24022650695910097, 0.0555041086648167, 0.009618129107620986),
        *(0.001333355814733722, 0.00015403530398202335, 1.5252733089033978e-05, 1.3215488313964518e-06),
        *(1.0178333519598523e-07, 7.052904417164602e-09, 4.4177504943434487e-10, 2.986504145299449e-11),
    ),
)
LOG2_E = 1.4426950408889634


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
    """e^x within 1 ulp; exact at 0 and at infinities."""
    form = _format(x)
    x = maximum(x.of(form.exp_least), x)
    n, scale = _exponent(minimum(x.of(form.magic + form.bias), fma(x, LOG2_E, form.magic)), form)
    high, low = form.ln2
    r = fma(n, -low, fma(n, -high, x))
    return _polynomial(form.exp, r) * scale


def exp2(x):
    """2^x within 1 ulp; exact at integers and infinities."""
    form = _format(x)
    x = maximum(x.of(-form.bias), x)
    n, scale = _exponent(minimum(x.of(form.magic + form.bias), x + form.magic), form)
    return _polynomial(form.exp2, x - n) * scale


def sigmoid(x):
    """1 / (1 + e^-x)."""
    form = _format(x)
    least, most = form.sigmoid_range
    x = maximum(x.of(least), minimum(x.of(most), x))
    n, scale = _exponent(fma(x, -LOG2_E, form.magic), form)
    high, low = form.ln2
    r = fma(n, low, fma(n, high, x))
    alternating = [-c if k % 2 else c for k, c in enumerate(form.expm1)]
    return x.of(1.0) / fma(_polynomial(alternating, r), scale, 1.0)


def tanh(x):
    """h / (h + 1) with h = (e^2|x| - 1) / 2, and the sign of x. Where n is 0, h = r + r^2 (...) with r = |x|, so nothing cancels."""
    form = _format(x)
    size = minimum(x.of(form.tanh_limit), x.unary("fabs"))
    n, scale = _exponent(fma(size, 2 * LOG2_E, form.magic), form)
    r = fma(n, -sum(form.ln2) / 2, size)
    tail = _polynomial([c * 2.0 ** (k + 1) for k, c in enumerate(form.expm1[2:])], r)
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
