"""Which rows a CPU's scan has at each step, how they lie in memory (kernels/cpu/steps.py), and the way there and back.

A padded batch whose rows end early or start again is packed: x and the gradient of y are gathered, y and the gradient
of x scattered into zeros. That reads and writes each of them once more, T B (I + D H) elements beside 2 T B G H (I + H)
operations. A `PackedSequence`'s data is packed already.
"""

import torch

from .ragged import past


def rows_of(x, h_0, batch_first, ragged):
    """The rows of a scan of x: Dense where none ends early or starts again, else Packed."""
    if ragged.batch_sizes is not None:
        return Packed(ragged.batch_sizes)
    time = 1 if batch_first else 0
    T, B = x.shape[time], h_0.shape[1]
    if ragged.lengths is None and ragged.reset is None:
        return Dense(time, T, B)
    lengths = torch.full((B,), T) if ragged.lengths is None else ragged.lengths.long().clamp(0, T)
    if ragged.reset is None and int(lengths.min()) == T:
        return Dense(time, T, B)
    order = lengths.argsort(descending=True, stable=True)
    return Packed((~past(lengths, T)).sum(1), order, batch_first, ragged.reset)


def reset_states(rows, h_0, c_0, ragged):
    """[h, c] that rows start again from, like h_0 and c_0, in the rows' order; None where there is none."""
    if not rows.resets:
        return [None, None]
    given = map(rows.sort, (ragged.reset_h, ragged.reset_c))
    zeros = (None if s is None else torch.zeros_like(s) for s in (h_0, c_0))
    return [zero if state is None else state.to(zero.dtype).contiguous() for state, zero in zip(given, zeros)]


def address(tensor, d):
    """Of a direction's part of a contiguous (D, ...) tensor; 0 where that is None."""
    return 0 if tensor is None else tensor.data_ptr() + d * tensor.element_size() * tensor.stride(0)


def dense_offset(T, step, row, dtype, d, column=0):
    """(bytes to the first step, stride of a step, stride of a row) in the order of a direction, from the strides: the
    second one starts at the last step."""
    return dtype.itemsize * (column + d * step * (T - 1)), step * (1 - 2 * d), row


class Dense:
    """All rows at every step.

    T steps of a batch of B rows, `count` rows in all; kept: the states' (D, B, H) of all steps are (D, *kept, H), where
    a step is `stride` rows after another.
    """

    steps = marks = (0, 0)  # of either direction
    lengths = None
    resets = False

    def __init__(self, time, T, B):
        self.time, self.T, self.B, self.count, self.kept, self.stride = time, T, B, T * B, (T, B), B

    def _same(self, tensor):
        return tensor

    pack = unpack = sort = unsort = _same

    def final(self, state):
        """Memory for a final state, (D, B, H): the kernel writes it all."""
        return torch.empty_like(state)

    def final_gradient(self, state, gradient):
        """The same for that of the first state, from the final one's gradient or None."""
        return torch.empty_like(state)

    def empty(self, x, columns):
        """Memory for y or dx."""
        return x.new_empty((self.B, self.T, columns) if self.time else (self.T, self.B, columns))

    def offset(self, tensor, d, column=0):
        """(bytes to the first step, stride of a step, stride of a row) of a (T, B, *) tensor in the order of a
        direction's steps."""
        return dense_offset(self.T, tensor.stride(self.time), tensor.stride(1 - self.time), tensor.dtype, d, column)

    def place(self, tensor, d, column=0):
        """The same with the address of the first step."""
        first, *strides = self.offset(tensor, d, column)
        return tensor.data_ptr() + first, *strides

    def chunk(self, d, t0, count):
        """(first row, rows) of so many steps."""
        return t0 * self.B, count * self.B

    def at_ends(self, tensor, d):
        """Of a (T, B, *) tensor, each row's last step in the order of a direction: (B, *)."""
        return tensor.select(self.time, 0 if d else self.T - 1)

    def in_time(self, values, d, ended):
        """Values (rows, *) of all steps as (T, B, *) in the order of time; past the ends those of ended (B, *)."""
        values = values[: self.count].view(self.T, self.B, *values.shape[1:])
        return values.flip(0) if d else values


class Packed:
    """Rows in the order of falling length, those of a step after those of the step before.

    batch_sizes (T,): the rows of each step. order (B,): which rows of a padded batch stand here, or None where x is
    packed already; reset: as it was given, or None.
    """

    def __init__(self, batch_sizes, order=None, batch_first=False, reset=None):
        self.padded, self.batch_first, self.order = len(batch_sizes), batch_first, order
        sizes = batch_sizes[: int(batch_sizes.count_nonzero())]  # steps that no row has are left out
        self.T, self.count, self.stride = len(sizes), int(sizes.sum()), 1
        self.B = int(batch_sizes[0]) if order is None else len(order)
        self.kept = (self.count,) if order is None else (self.padded, self.B)
        firsts = sizes.cumsum(0) - sizes
        t = torch.arange(self.T).repeat_interleave(sizes)
        b = torch.arange(self.count) - firsts[t]
        self.lengths = torch.bincount(b, minlength=self.B)
        self.ends = firsts[self.lengths[self.lengths > 0] - 1] + torch.arange(int(sizes[0]) if self.T else 0)
        self.at = t, b if order is None else order[b]
        marks = torch.zeros_like(t) if reset is None else reset[self._index()].long()
        self.resets = reset is not None
        table = torch.stack((firsts, sizes, torch.zeros_like(sizes).index_add_(0, t, marks)), 1)
        self._kept = tables = table, table.flip(0), marks
        self.steps, self.marks = tuple(table.data_ptr() for table in tables[:2]), (marks.data_ptr(),) * 2
        self._firsts, self._live = ([table[:, i].tolist() for table in tables[:2]] for i in (0, 1))

    def _index(self):
        return self.at[::-1] if self.batch_first else self.at

    def pack(self, x):
        """(rows, *) of a padded (T, B, *) or (B, T, *)."""
        return x if x is None or self.order is None else x[self._index()]

    def unpack(self, y):
        """The inverse, with zero past the rows' ends."""
        if self.order is None:
            return y
        shape = (self.B, self.padded) if self.batch_first else (self.padded, self.B)
        return y.new_zeros(*shape, y.shape[1]).index_put_(self._index(), y)

    def sort(self, state):
        """A state (D, B, H), or None, by falling length."""
        return state if state is None or self.order is None else state.index_select(1, self.order)

    def unsort(self, state):
        """The inverse."""
        if state is None or self.order is None:
            return state
        return torch.empty_like(state).index_copy_(1, self.order, state)

    def final(self, state):
        """Memory for a final state, (D, B, H): that of rows without a step is their first."""
        return state.clone(memory_format=torch.contiguous_format)

    def final_gradient(self, state, gradient):
        return torch.zeros_like(state) if gradient is None else self.final(gradient)

    def empty(self, x, columns):
        """As Dense.empty; so the rest."""
        return x.new_empty(self.count, columns)

    def offset(self, tensor, d, column=0):
        return tensor.element_size() * column, tensor.stride(0), tensor.stride(0)

    place = Dense.place

    def chunk(self, d, t0, count):
        starts, live = self._firsts[d][t0 : t0 + count], self._live[d][t0 : t0 + count]
        return min(starts), sum(live)

    def at_ends(self, tensor, d):
        ends = tensor.new_zeros(self.B, tensor.shape[1])
        ends[: len(self.ends)] = tensor[: len(self.ends)] if d else tensor[self.ends]
        return ends

    def in_time(self, values, d, ended):
        filled = ended.expand(self.padded, *ended.shape).clone()
        return filled.index_put_(self.at, values[: self.count])
