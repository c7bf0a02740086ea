"""What the scans share: a program's place, blocks in memory, and products with weights that may stay on the chip."""

import triton
import triton.language as tl


@triton.jit
def place(B, H, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """Of this program: its direction, the number of its block of units, that of its direction and block of rows, the
    units (UNITS, 1), the rows (1, ROWS), and which pairs of them exist."""
    groups, row_groups = tl.cdiv(H, UNITS), tl.cdiv(B, ROWS)
    program = tl.program_id(0)
    group, row_group = program % groups, program // groups % row_groups
    d = (program // (groups * row_groups)).to(tl.int64)
    units = (group * UNITS + tl.arange(0, UNITS))[:, None]
    rows = (row_group * ROWS + tl.arange(0, ROWS))[None, :].to(tl.int64)
    return d, group, d * row_groups + row_group, units, rows, (units < H) & (rows < B)


@triton.jit
def either(condition, a, b):
    """a where the condition, a scalar, is true, else b: both pointers."""
    pointer = b
    if condition:
        pointer = a
    return pointer


@triton.jit
def load_each(pointer, stride, offsets, mask, COUNT: tl.constexpr):
    """COUNT blocks as float32, `stride` elements apart."""
    blocks = ()
    for i in tl.static_range(COUNT):
        blocks = blocks + (tl.load(pointer + i * stride + offsets, mask=mask, other=0.0).to(tl.float32),)
    return blocks


@triton.jit
def store_each(blocks, pointer, stride, offsets, mask, COUNT: tl.constexpr):
    """The first COUNT of the blocks, in the memory's dtype, `stride` elements apart."""
    for i in tl.static_range(COUNT):
        tl.store(pointer + i * stride + offsets, blocks[i].to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_states(h, c, offsets, mask, STATES: tl.constexpr):
    """(h,), or (h, c), as float32."""
    states = load_each(h, 0, offsets, mask, 1)
    if STATES == 2:
        states = states + load_each(c, 0, offsets, mask, 1)
    return states


@triton.jit
def store_states(states, h, c, offsets, mask, STATES: tl.constexpr):
    """(h,), or (h, c), in the memory's dtypes."""
    store_each(states, h, 0, offsets, mask, 1)
    if STATES == 2:
        store_each(states[1:], c, 0, offsets, mask, 1)


@triton.jit
def load_operand(origins, terms, present, H):
    """Terms (terms, rows) of a product from where each row begins, zero in rows that are not present. Past the
    first-level cache: other programs have written them."""
    return tl.load(origins + terms, mask=(terms < H) & present, other=0.0, cache_modifier=".cg")


@triton.jit
def load_weights(w, unit_stride, term_stride, units, terms, H, GATES: tl.constexpr):
    """The weights (units, terms) of each gate, from w_hh (GATES H, H) read along either dimension."""
    inside = (units < H) & (terms < H)
    blocks = ()
    for g in tl.static_range(GATES):
        weights = w + g * H * H + units * unit_stride + terms * term_stride
        blocks = blocks + (tl.load(weights, mask=inside, other=0.0),)
    return blocks


@triton.jit
def resident_weights(
    w, unit_stride, term_stride, units, terms, H, GATES: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):
    """All weights of these units, chunk by chunk of terms, each gate by gate."""
    blocks = ()
    for k in tl.static_range(CHUNKS):
        blocks = blocks + load_weights(w, unit_stride, term_stride, units, k * CHUNK + terms, H, GATES)
    return blocks


@triton.jit
def producers(k, H, UNITS: tl.constexpr, CHUNK: tl.constexpr):
    """How many blocks of units chunk k consists of."""
    return tl.cdiv(tl.minimum(CHUNK, H - k * CHUNK), UNITS)


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """total + a (M, K) times b (K, N), in float32."""
    if b.shape[1] == 1:  # a tensor core would waste 7 of 8 columns
        total += tl.sum(a.to(tl.float32) * tl.trans(b).to(tl.float32), axis=1, keep_dims=True)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def add_products(sums, w, first, operand, GATES: tl.constexpr, PRECISION: tl.constexpr):
    """For each gate, sums[g] + w[first + g] times the operand, in float32."""
    results = ()
    for g in tl.static_range(GATES):
        results = results + (add_product(sums[g], w[first + g], operand, PRECISION),)
    return results
