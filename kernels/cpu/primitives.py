"""The cells over register tiles: `kernels.cells` bound to the vector mathematics."""

from ..cells import CELLS
from . import vecmath

_NAMES = ("sigmoid", "tanh", "relu", "dsigmoid", "dtanh", "drelu")


def on_vectors(cell):
    """(forward, backward) of a cell over Vectors."""
    return CELLS[cell].bind(**{name: getattr(vecmath, name) for name in _NAMES})
