"""Recurrent cells, each written once, as plain mathematics for every backend.

A cell's forward takes the states, and the input and the recurrent pre-activations apart: a GRU multiplies one of them
before it adds the other.

    forward(x, u, s)                     -> (next states, saved)
        x, u   G pre-activations: x_t W_ih^T + b_ih and h_{t-1} W_hh^T + b_hh, in `torch.nn`'s gate order
        s      the S states; s[0] is h, the one that recurs through W_hh
        saved  what the backward needs beyond the states

    backward(ds, saved, s, s_next)       -> (dx, du, direct)
        ds      gradients of the S next states
        dx, du  gradients of x and u; where both are one value, they are the same object
        direct  gradient of each of the states s by the paths that do not lead through u; None where there is none

The functions are free in the names below; `bind` gives a backend its own copy of a cell over its own primitives
(torch functions, Triton functions on blocks, instruction emitters on register tiles). No numeric literals in here: in
some backends a literal has a dtype of its own. Equations: Elman (1990); Hochreiter and Schmidhuber (1997) with the
forget gate of Gers et al. (2000); Cho et al. (2014), the reset gate applied after the product, as torch.nn has it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import NamedTuple

# Bound by each backend. dsigmoid, dtanh and drelu give the derivative from the function's value.
sigmoid = tanh = relu = dsigmoid = dtanh = drelu = None
_PRIMITIVES = ("sigmoid", "tanh", "relu", "dsigmoid", "dtanh", "drelu")
# Bound by `Cell.bind` to the cell's own choice among them.
activation = dactivation = None
# A gradient that there is not; bound to zero by a backend whose functions cannot return None.
nothing = None


def rnn_forward(x, u, s):
    return (activation(x[0] + u[0]),), ()


def rnn_backward(ds, saved, s, s_next):
    d = (ds[0] * dactivation(s_next[0]),)
    return d, d, (nothing,)


def lstm_forward(x, u, s):
    i = sigmoid(x[0] + u[0])
    f = sigmoid(x[1] + u[1])
    g = tanh(x[2] + u[2])
    o = sigmoid(x[3] + u[3])
    c = f * s[1] + i * g
    return (o * tanh(c), c), (i, f, g, o)


def lstm_backward(ds, saved, s, s_next):
    i, f, g, o = saved
    tanh_c = tanh(s_next[1])
    dc = ds[1] + ds[0] * o * dtanh(tanh_c)
    d = (dc * g * dsigmoid(i), dc * s[1] * dsigmoid(f), dc * i * dtanh(g), ds[0] * tanh_c * dsigmoid(o))
    return d, d, (nothing, dc * f)


def gru_forward(x, u, s):
    r = sigmoid(x[0] + u[0])
    z = sigmoid(x[1] + u[1])
    n = tanh(x[2] + r * u[2])
    return (n + z * (s[0] - n),), (r, z, n, u[2])


def gru_backward(ds, saved, s, s_next):
    r, z, n, u_n = saved
    direct = ds[0] * z
    dn = (ds[0] - direct) * dtanh(n)
    dz = ds[0] * (s[0] - n) * dsigmoid(z)
    dr = dn * u_n * dsigmoid(r)
    return (dr, dz, dn), (dr, dz, dn * r), (direct,)


class _Symbol:
    """A stand-in that tells values apart: every operation gives a new one."""

    def _new(self, *_):
        return _Symbol()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _new


class Slots(NamedTuple):
    """Of the distinct gradients that a cell's backward returns: which are those of x, of u, and whether the gradient of
    h has a direct part."""

    x: tuple
    u: tuple
    has_direct_h: bool


@dataclass(frozen=True)
class Cell:
    """A cell: its two functions, the numbers of gates, states and saved values, and (RNN) its nonlinearity."""

    forward: Callable
    backward: Callable
    gates: int
    states: int
    saved: int
    nonlinearity: str = ""

    @cached_property
    def slots(self):
        """The Slots of the backward."""
        _, backward = self.bind(**dict.fromkeys(_PRIMITIVES, lambda _: _Symbol()))
        states = [_Symbol() for _ in range(self.states)]
        dx, du, direct = backward(states, [_Symbol() for _ in range(self.saved)], states, states)
        distinct = list(dict.fromkeys((*dx, *du)))
        return Slots(tuple(map(distinct.index, dx)), tuple(map(distinct.index, du)), direct[0] is not None)

    def bind(self, **primitives):
        """(forward, backward) over a backend's primitives: sigmoid, tanh, relu and their d-functions."""
        if self.nonlinearity:
            primitives["activation"] = primitives[self.nonlinearity]
            primitives["dactivation"] = primitives[f"d{self.nonlinearity}"]
        return bind(self.forward, **primitives), bind(self.backward, **primitives)


def bind(function, **names):
    """A copy of `function` whose free names are looked up in `names` first."""
    return FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__)


CELLS = {
    "rnn_tanh": Cell(rnn_forward, rnn_backward, gates=1, states=1, saved=0, nonlinearity="tanh"),
    "rnn_relu": Cell(rnn_forward, rnn_backward, gates=1, states=1, saved=0, nonlinearity="relu"),
    "rnn_sigmoid": Cell(rnn_forward, rnn_backward, gates=1, states=1, saved=0, nonlinearity="sigmoid"),
    "lstm": Cell(lstm_forward, lstm_backward, gates=4, states=2, saved=4),
    "gru": Cell(gru_forward, gru_backward, gates=3, states=1, saved=4),
}
