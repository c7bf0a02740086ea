"""When attention is decode, and how its keys are split: pure functions of sizes and device. Not yet run on a GPU."""

from dataclasses import dataclass

from .attention_configs import padded

MOST_ROWS = 32
FEWEST_KEYS = 256  # a range; of fewer the results would be a good part of what moves
_BYTES = 8192  # a block of keys; compiled for sm_80, sm_90, sm_100 and gfx942, nothing is spilled


@dataclass(frozen=True)
class Plan:
    """rows, keys: of a block; span: the keys of a range, a multiple of a block's."""

    rows: int
    keys: int
    span: int
    warps: int
    stages: int

    def splits(self, S):
        """How many ranges S keys are split into: at least one, and only that may be empty."""
        return max(1, -(-S // self.span))


def is_decode(T, group):
    """Whether T queries of `group` heads for each head of keys are few enough to be the rows of one block.

    Whatever the number of keys: `attention_forward` would have most rows of its blocks empty, and read k and v once for
    each head of the group. Where there is enough to do without it, there is one range.
    """
    return group * T <= MOST_ROWS


def plan_for(rows, D, itemsize, heads, S, processors):
    """The Plan for `rows` queries a head of keys, `heads` heads of S keys in all batches, on so many processors.

    D: the larger of the sizes of a key and a value, `itemsize` bytes an element. There are programs for about twice the
    processors, unless the ranges would be short.
    """
    row_bytes = padded(D) * itemsize
    keys = min(64, max(16, _BYTES // row_bytes))  # 16: the least that a matrix product sums over
    warps = max(4, keys * row_bytes // 2048)  # a thread copies 64 bytes of a block
    splits = max(1, min(S // FEWEST_KEYS, -(-2 * processors // heads)))
    span = max(1, -(-S // (splits * keys))) * keys
    return Plan(1 if rows == 1 else padded(rows), keys, span, warps, 3)


def combined_at_once(BLOCK_E):
    """Records of BLOCK_E elements that a program of `attention_combine` adds up side by side: 16 KB."""
    return min(64, 4096 // BLOCK_E)
