"""Which regime and which blocks a scan runs with on a GPU: a pure function of cell, sizes, dtype and device."""

from dataclasses import dataclass

from ..cells import CELLS

TILE = 16  # rows and columns of a tensor core's tile


@dataclass(frozen=True)
class Device:
    """What a plan depends on. shared: bytes of shared memory that one program may use; cooperative: whether programs of
    one launch may wait for each other."""

    processors: int
    shared: int
    cooperative: bool


@dataclass(frozen=True)
class Plan:
    """The regime of a scan and its blocks: `units` by `rows` a program, `chunk` terms of a product at a time."""

    regime: str
    units: int
    rows: int
    chunk: int
    warps: int

    def chunks(self, H):
        """Chunks of H terms."""
        return -(-H // self.chunk)

    def blocks(self, H, B):
        """(blocks of units, blocks of rows): there is a program for each pair of them and each direction."""
        return -(-H // self.units), -(-B // self.rows)


def _power(n):
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def plan_for(cell, H, B, D, itemsize, device, exact=False):
    """The Plan of a layer of D directions with batch B and hidden size H. exact: whether products of float32 have
    more bits than tf32."""
    gates = CELLS[cell].gates
    whole = max(TILE, _power(H))
    if exact and itemsize == 4 and B > 1:
        return _exact(gates, whole)
    room = device.shared * 3 // 4  # the rest holds h and what the compiler needs
    if gates * whole * whole * itemsize <= room:
        return Plan("whole", whole, TILE if B > 1 else 1, whole, 4 if whole <= 64 else 8)
    chunk = min(256, whole)
    if device.cooperative and gates * TILE * (-(-H // chunk) * chunk) * itemsize <= room:
        groups = -(-H // TILE) * D
        rows = _rows(B, device.processors // groups)
        if rows:
            return Plan("grid", TILE, rows, chunk, 4 if itemsize == 2 else 8)
    return Plan("stepwise", TILE, min(64, max(TILE, _power(B))), 64, 4)


def _exact(gates, whole):
    """Where float32 is not cut to tf32, blocks of operands do not fit the registers: a program has one row, whose
    products are sums, or reads the weights at every step, a few terms at a time."""
    if gates * whole * whole <= 4 * 64 * 64:
        return Plan("whole", whole, 1, whole, 8)
    return Plan("stepwise", TILE, TILE, 32, 4)


def _rows(B, row_groups):
    """Rows a program, so that `row_groups` programs cover the batch; 0 where no block does."""
    if B == 1 and row_groups:
        return 1
    for rows in (16, 32, 64):
        if -(-B // rows) <= row_groups:
            return rows
    return 0
