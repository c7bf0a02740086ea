"""The blocks of a single step on a GPU: a pure function of cell, sizes and device. Not tuned on one yet.

Compiled in bfloat16 and float32 with sizes that are multiples of 16, nothing is spilled for sm_80, sm_90 and sm_100,
and for gfx942 only by blocks of 64 rows in float32.
"""

from dataclasses import dataclass

from ..cells import CELLS
from .regimes import TILE

LOAD, WARP = 16, 32  # bytes of a thread's widest load; threads


@dataclass(frozen=True)
class StepPlan:
    """`units` by `rows` a program, `terms` of a product at a time; `unroll` blocks of terms are loaded together."""

    units: int
    rows: int
    terms: int
    unroll: int
    warps: int

    def programs(self, H, B):
        """How many programs cover H units and B rows."""
        return -(-H // self.units) * -(-B // self.rows)


def plan_for(cell, H, B, itemsize, processors):
    """The StepPlan of a layer with batch B and hidden size H, elements of `itemsize` bytes."""
    return _one_row(CELLS[cell].gates, H, itemsize, processors) if B == 1 else _more_rows(H, B, itemsize, processors)


def _one_row(gates, H, itemsize, processors):
    """A unit a warp; as many a program as leave no more than a quarter of the processors without one."""
    plans = [StepPlan(n, 1, WARP * LOAD // itemsize, 8 // gates, n) for n in (4, 2, 1)]
    return next((plan for plan in plans if 4 * plan.programs(H, 1) >= 3 * processors), plans[-1])


def _more_rows(H, B, itemsize, processors):
    """The fewest blocks of rows, which each read all weights, that fill the device."""
    warps = 8 if itemsize == 4 else 4  # float32 in full precision keeps operands in registers
    plans = [StepPlan(TILE, n, 256 // itemsize, 1, warps) for n in (64, 32, TILE) if n == TILE or n < 2 * B]
    return next((plan for plan in plans if plan.programs(H, B) >= processors), plans[-1])
