"""Which rows a time step has: all of a batch, or fewer where rows end early.

Dense: every step has the B rows. Packed: the rows are in order of falling length, and a step has the first `live` of
them; x, y, the states and the gates hold the rows of all steps one after another in order of time, nothing past a row's
end. Then a table tells, for each step in the order in which the direction takes them, its first row, its live rows, and
how many of these are marked: they start again, from a state that is not their last one. A mark is an int64, 0 or 1, one
for each row.

In a packed array the stride of a step is that of a row, and steps are counted in rows.
"""

from .inner import inner
from .memory import integers

ENTRY = 3 * 8  # bytes of a step in the table
MARK = 8  # bytes


def step_parts():
    """(rows_of, chunk_of, marks_of), parts of the kernel that is being built."""
    rows_of = inner(_rows_of)

    @inner
    def chunk_of(steps, t0, count, B):
        """(first row, rows) of `count` steps from t0, in whichever order a direction takes them."""
        _, a, a_live, _ = rows_of(steps, t0, t0 + 1, B)
        _, b, b_live, _ = rows_of(steps, t0 + count - 1, t0 + count, B)
        return min(a, b), max(a + a_live, b + b_live) - min(a, b)

    return rows_of, chunk_of, inner(_marks_of)


def by_row(rows_of):
    """A function (steps, t0, count, T, B, i): the i-th of `count` steps from t0 in the order of their rows, which a
    packed scan in the second direction takes from the last one on."""

    @inner
    def step(steps, t0, count, T, B, i):
        _, first, _, _ = rows_of(steps, t0, T, B)
        _, last, _, _ = rows_of(steps, t0 + count - 1, T, B)
        return t0 + i if first <= last else t0 + count - 1 - i

    return step


def _rows_of(steps, t, T, B):
    """Of step t: where it is, in strides of a step; its first row; its live rows, none before step 0 and from step T
    on; how many of them are marked. steps: the address of the table, 0 for a dense scan."""
    if t < 0 or t >= T:
        return (0, 0, 0, 0)
    if steps:
        first, live, marked = integers(steps + ENTRY * t, 3)
        return (first, first, live, marked)
    return (t, B * t, B, 0)


def _marks_of(marks, row, marked):
    """The address of a step's marks, 0 where none of its rows is marked."""
    return marks + MARK * row if marked else 0


def state_before(size):
    """A function (row, mark, live_before, places, H): the address of a row's state before a step.

    mark: the address of the step's marks, or 0; live_before: the rows of the step before. places: the states after that
    step and the stride of their rows; the initial states, and those that marked rows start again from, (B, H)
    contiguous.
    """

    @inner
    def find(row, mark, live_before, places, H):
        before, stride, initial, reset = places
        if mark and integers(mark + MARK * row, 1)[0]:
            return reset + size * H * row
        if row >= live_before:
            return initial + size * H * row
        return before + size * stride * row

    return find
