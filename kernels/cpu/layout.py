"""How a cell's weights, gates and gradients lie in memory, and how many rows a register tile has.

Units are taken W (the vector's lanes) at a time, a unit block; `blocks` of them make a slab, so that the forward tile,
`blocks * gates` vectors wide, fills the registers for a cell of one gate too. H is padded to whole slabs inside the
kernels only; the padding holds zero weights.

    forward weights    [slab][k][block][gate][W]                      k: the product's inner dimension, unpadded
    bfloat16, x too    [slab][pair of k][block][gate][W][2]
    gates              [chunk][slab][row][block][width][W]            a chunk: `steps(B)` whole time steps, rows (t, b)
    gradients          [slab][row][block][slot][W]                    the same rows
    backward weights   [panel of n vectors of columns][slab][block][slot][unit in block][n W]      n: PANEL or `narrow`
    bfloat16           [panel][slab][block][slot][pair of units][n W][2]

The gates' memory first holds the input pre-activations, then, for training, the values that the cell saves. A slot is
one of the distinct gradients that the cell's backward returns: dx uses `x_slots` of them, du uses `u_slots`.
"""

from dataclasses import dataclass
from functools import cache

from ..cells import CELLS
from . import target

PANEL = 4  # vectors of a backward tile
WIDE = 2  # vectors of a tile of a weight's gradient: its columns are wasted past the last multiple
FEW_ROWS = 16  # a batch of fewer is never split
_STEP_TILES = 6  # tiles of rows for which a single step reads its weights once
_CHUNK_ROWS = 192


@dataclass(frozen=True)
class Layout:
    """The sizes of one cell, those of elements in bytes, on the current target."""

    gates: int
    blocks: int
    width: int
    slots: int
    x_slots: tuple
    u_slots: tuple
    has_direct_h: bool
    lanes: int
    size: int  # of a lane, an accumulator, a gate
    stored: int  # of an element of x and h, and of a gate's gradient
    weight: int  # of an element of the forward weights

    @property
    def vectors(self):
        """Vectors of a forward tile."""
        return self.blocks * self.gates

    @property
    def slab_units(self):
        return self.blocks * self.lanes

    @property
    def gate_row(self):
        """Elements of a row of gates in one slab."""
        return self.blocks * self.width * self.lanes

    @property
    def gradient_row(self):
        """Elements of a row of gate gradients in one slab."""
        return self.blocks * self.slots * self.lanes

    def slabs(self, H):
        return -(-H // self.slab_units)

    @property
    def step_rows(self):
        """Rows for which a single step reads its weights once, on the cuts of a batch."""
        return _STEP_TILES * target.current().rows(self.vectors)

    @property
    def per_lane(self):
        """Elements of x, h or a gradient that fill a lane, a term of a product: 2 where they are bfloat16."""
        return self.size // self.stored

    @property
    def wide(self):
        """Columns of a tile of a weight's gradient."""
        return WIDE * self.lanes

    @property
    def panel_columns(self):
        """Columns of a backward tile."""
        return PANEL * self.lanes

    @property
    def narrow(self):
        """Vectors of the panels that make up what is not a multiple of PANEL. Slabs of several blocks are whole
        panels."""
        return PANEL - 1 if self.blocks == 1 else PANEL

    def panels(self, columns):
        """How many the columns are cut into."""
        return -(-columns // (PANEL * self.lanes))

    def forward_weights(self, H, K):
        """Lanes of the packed forward weights of a (gates * H, K) matrix."""
        return self.slabs(H) * terms(K, self.size, self.weight) * self.vectors * self.lanes

    def backward_weights(self, H, columns):
        """Elements of the packed backward weights of a (gates * H, columns) matrix."""
        vectors = panel_start(self.panels(columns), wide_panels(columns, self.lanes, self.narrow))
        return vectors * self.lanes * self.slabs(H) * self.slab_units * self.gates


def terms(K, size, weight):
    """Terms of a product with K weights of `weight` bytes: as many as fill a lane make up one."""
    return -(-K * weight // size)


def wide_panels(columns, lanes, narrow):
    """How many of the panels of so many columns, the first ones, are PANEL vectors wide; the others are narrow."""
    vectors = -(-columns // lanes)
    count = -(-vectors // PANEL)
    return count if narrow == PANEL else max(0, count - (PANEL * count - vectors))


def panel_start(panel, wide):
    """The vectors before a panel, `wide` of the panels being wide."""
    return PANEL * panel - max(0, panel - wide)


def row_scratch(shape):
    """A function (rows, I, H): lanes of scratch memory for so many rows of a chunk backward, for the sums of a panel,
    for rows of x or h, packed, and for gate gradients in pairs."""
    panel, wide, together, units = shape.panel_columns, shape.wide, shape.per_lane, shape.slab_units
    row = shape.gradient_row if together > 1 else 0

    def lanes(rows, I, H):
        terms = -(-rows // together)
        return panel * rows, wide * terms * -(-max(I, H) // wide), row * terms * -(-H // units)

    return lanes


def steps(B):
    """Whole time steps in a chunk of a batch of B rows."""
    return max(1, _CHUNK_ROWS // B)


def back_and_forth(turn, count, pass_):
    """Which of `count` parts of the weights comes `turn`-th: last to first on odd passes, so that what one pass read
    last, and the cache still holds, the next reads first."""
    return turn if pass_ % 2 == 0 else count - 1 - turn


@cache
def layout(cell, size, save, stored=None, weight=None):
    """The Layout of a cell for inference or, with `save`, for training. stored and weight: `size` by default."""
    cell = CELLS[cell]
    slots = cell.slots
    return Layout(
        gates=cell.gates,
        blocks=max(1, 4 // cell.gates),
        width=max(cell.gates, cell.saved) if save else cell.gates,
        slots=len({*slots.x, *slots.u}),
        x_slots=slots.x,
        u_slots=slots.u,
        has_direct_h=slots.has_direct_h,
        lanes=target.current().lanes(size),
        size=size,
        stored=stored or size,
        weight=weight or stored or size,
    )
