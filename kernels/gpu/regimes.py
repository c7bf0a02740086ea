"""Which regime and which blocks a scan runs with on a GPU: a pure function of cell, sizes, dtype and device."""

from dataclasses import dataclass

from ..cells import CELLS

TILE = 16  # rows and columns of a tensor core's tile


def wide_products(capability):
    """Whether products of 64 rows, of groups of four warps, read their operands from shared memory, of which there is
    much, and not from registers: compute capability 9.0 to 11.x, not 12.x. None: no NVIDIA GPU."""
    return capability is not None and (9, 0) <= capability < (12, 0)


@dataclass(frozen=True)
class Device:
    """What a plan depends on. shared: bytes of shared memory that one program may use; cooperative: whether programs of
    one launch may wait for each other; wide: whether it has `wide_products`."""

    processors: int
    shared: int
    cooperative: bool
    wide: bool = True


@dataclass(frozen=True)
class Plan:
    """The regime of a scan and its blocks: `units` by `rows` a program, `chunk` terms of a product at a time, of which
    `stages` are on their way at once where weights are read at every step."""

    regime: str
    units: int
    rows: int
    chunk: int
    warps: int
    stages: int = 3

    @property
    def waits(self):
        """Whether its programs wait for each other: they must all be resident."""
        return self.regime in ("grid", "streamed")

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
    if exact and itemsize == 4:
        # Blocks of operands that are not cut to tf32 do not fit the registers: weights are read a few terms at a time.
        return _unkept(gates, H, B, D, itemsize, device, 32, (16,))
    room = device.shared * 3 // 4  # the rest holds h and what the compiler needs
    if device.wide and whole > TILE:
        whole = max(64, whole)
    narrow = device.cooperative and not device.wide  # there all weights of more than a tile would spill
    if gates * whole * whole * itemsize <= room and (whole == TILE or not narrow):
        return Plan("whole", whole, TILE, whole, 8 if whole > (TILE if device.wide else 64) else 4)
    chunk = min(256, whole)
    if device.cooperative and gates * TILE * (-(-H // chunk) * chunk) * itemsize <= room:
        rows = _rows(B, device.processors // (-(-H // TILE) * D))
        if rows:
            return Plan("grid", TILE, rows, chunk, 4 if itemsize == 2 else 8)
    return _unkept(gates, H, B, D, itemsize, device, 64)


def _unkept(gates, H, B, D, itemsize, device, chunk, choices=(16, 32, 64)):
    """Weights that are read at every step, `chunk` terms at a time: by programs that stay, or by those of a launch a
    step. choices: of rows a program."""
    for units in (16, 32) if device.cooperative else ():
        rows = _rows(B, device.processors // (-(-H // units) * D), choices)
        if rows:
            stage = gates * (units + rows) * chunk * itemsize  # bytes, in the backward
            stages = max(2, min(6, device.shared * 3 // 4 // stage))
            return Plan("streamed", units, rows, chunk, 4 if units * rows < 512 else 8, stages)
    return Plan("stepwise", TILE, min(choices[-1], max(TILE, _power(B))), chunk, 4)


def _rows(B, row_groups, choices=(16, 32, 64)):
    """Rows a program, one of the choices, so that `row_groups` programs cover the batch; 0 where none does."""
    for rows in choices:
        if -(-B // rows) <= row_groups:
            return rows
    return 0
