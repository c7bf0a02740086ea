"""Gradients of weights and biases from rows of gate gradients that single steps have left (scan_backward.py), with the
rows of x and of h before each step beside them. Operations: 2 rows G H (I + H)."""

from .chunk_gradients import gradients_of_weights
from .inner import inner
from .layout import layout

ARGUMENTS = (
    "gradients",  # the slabs' rows
    "slab_rows",  # how many a slab takes, of which
    "rows",  # have something in them
    *("x", "h"),  # (rows, I), (rows, H) contiguous
    *("dw_ih", "dw_hh"),  # (G H, I), (G H, H) contiguous
    *("db_ih", "db_hh"),  # (G H,) each; 0: none
    "adds",  # 1: add to what is there
    *("packed", "paired"),  # scratch of this call (layout.row_scratch)
    *("I", "H"),
    *("first_slab", "last_slab"),
)


def build(cell, size, stored):
    """stored: bytes of an element of the gradients, x and h, `size` or 2, bfloat16."""
    into_weights = gradients_of_weights(layout(cell, size, True, stored))

    @inner
    def sum_rows(
        gradients, slab_rows, rows, x, h, dw_ih, dw_hh, db_ih, db_hh, adds, packed, paired, I, H, first_slab, last_slab
    ):  # fmt: skip
        # As a scan of one row, whose h before a step is the next in memory.
        hs, outputs = (h + stored * H, H, h, 0), (dw_ih, dw_hh, db_ih, db_hh)
        where, slabs = (0, 0, 0, rows, rows, 1, I, H, 0, rows), (first_slab, last_slab)
        into_weights(gradients, slab_rows, packed, paired, (x, I, I), hs, outputs, where, adds == 0, slabs)

    return sum_rows
