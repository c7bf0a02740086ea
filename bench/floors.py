"""The least time that a case can take on a machine: its floor, from formulas and from what the machine can do.

Operations. A multiplication and an addition are two; only those of matrix products count, so that exponentials, loads
and stores come on top. Each layer and direction multiplies R rows, the sum of their lengths, by G H (I + H) weights:
2 R G H (I + H) operations, I = H in the first layer and D H above it. Training has three times as many: the gradients
of what was multiplied, and of the weights, cost a product each. A pair of a query and a key takes 4 D operations
forward, scores and sums, and 10 D backward, which makes the scores again; causal, T (T + 1) / 2 pairs of T^2 remain.

Bytes. Each input is read and each result written once. Registers hold no weights, so that each step of each direction
reads the G H H recurrent ones again (training: twice). Of bytes that are read over and over, as many come from the
nearest level of memory as it holds, and of the rest as many from the next.

With N threads the floor is N times lower, and each has an Nth of the bytes: as if every level, memory too, served every
thread at full speed. The floor is the largest of these bounds, as if one's time hid all of the others'.
"""

from .cases import ATTENTION

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
SCORES = {"forward": 4, "backward": 10, "training": 14}


def work(case):
    """Operations, and [(bytes that are read or written, bytes in which they lie)]."""
    return _attention(case) if case.operation in ATTENTION else _recurrent(case)


def _recurrent(case):
    training, size = case.mode == "training", BYTES[case.dtype]
    units, directions = GATES[case.operation.removesuffix("_cell")] * case.H, 1 + case.bidirectional
    inputs = [case.H, *[directions * case.H] * (case.L - 1)]
    rows = sum(case.lengths)
    weights = directions * sum(units * (I + case.H) for I in inputs)
    operations = (6 if training else 2) * rows * weights
    once = size * (2 if training else 1) * (weights + rows * (1 + directions) * case.H)
    recurrent = size * units * case.H
    steps = case.T * case.L * directions * (2 if training else 1)
    return operations, [(once, once), (steps * recurrent, recurrent)]


def _attention(case):
    queries = 1 if case.operation == "decode" else case.T
    heads = case.B * case.N
    pairs = heads * (case.T * (case.T + 1) // 2 if case.causal else queries * case.T)
    # Rows of queries (q, out, and their gradients) and of keys (k, v, and theirs) that a call reads or writes.
    of_queries, of_keys = {"forward": (2, 2), "backward": (3, 4), "training": (4, 4)}[case.mode]
    once = BYTES[case.dtype] * heads * case.D * (of_queries * queries + of_keys * case.T)
    return SCORES[case.mode] * pairs * case.D, [(once, once)]


def seconds(case, ceilings, threads=1):
    """The floor of a case, from what `ceilings.measure` gave."""
    operations, traffic = work(case)
    bounds = [operations / threads / ceilings["operations"][case.dtype]]
    for moved, held in traffic:
        bounds.append(moved / held * _pass(held / threads, ceilings["levels"]))
    return max(bounds)


def _pass(held, levels):
    """Seconds that it takes to read `held` bytes, each from the nearest level that has room for it."""
    total, before = 0.0, 0
    for _, size, bandwidth in levels:
        end = held if size is None else min(held, size)
        total += max(0, end - before) / bandwidth
        before = max(before, end)
    return total
