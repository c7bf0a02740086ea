"""What `seqkernels::scan` and `seqkernels::scan_backward` run: checks, then the driver of the tensors' device; and what
they return of fake tensors.

ragged: the last five positional arguments of either operator, as `Ragged` has them, or as many as were given.
"""

from .. import _backends, _check
from ..kernels.cells import CELLS
from .drivers import driver
from .ragged import Ragged


def _driver(x):
    return driver("scan", x.device)


def readable(x):
    """x itself where its last dimension is dense, else a dense copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def forward_kernel(cell, x, h_0, c_0, weights, batch_first, save, *ragged, recompute=False):
    return _present(x, *forward(cell, x, h_0, c_0, weights, batch_first, save, *ragged, recompute=recompute))


def _present(x, *tensors):
    """The tensors, an empty one where there is none: what an operator returns."""
    return tuple(x.new_empty((0,)) if t is None else t for t in tensors)


def forward(cell, x, h_0, c_0, weights, batch_first, save, *ragged, recompute=False):
    """What the driver's `forward` returns, from arguments of any kind."""
    T, B, *_ = _check.scan_arguments(cell, x, h_0, c_0, weights, batch_first, *ragged[4:])
    reason = _check.tensor_reason("x", x)
    if reason is not None:
        raise NotImplementedError(reason)
    options = _ragged(x, h_0, c_0, batch_first, *ragged) if ragged else {}
    states, gates = _kept(x, save, recompute)
    if 0 in (T, B, *h_0.shape):
        return _empty_outputs(cell, x, h_0, c_0, batch_first, states, gates)
    _check.stored(("x", x), ("h_0", h_0), ("c_0", c_0), *((f"weights[{i}]", w) for i, w in enumerate(weights)))
    c_0 = None if c_0 is None else c_0.contiguous()
    if states and not gates:
        options["recompute"] = True
    return _driver(x).forward(cell, readable(x), h_0.contiguous(), c_0, list(weights), batch_first, states, **options)


def _kept(x, save, recompute):
    """Whether the states are kept, and whether the gates."""
    return save and (not recompute or _driver(x).MAKES_GATES), save and not recompute


def _ragged(x, h_0, c_0, batch_first, *given):
    """A driver's options, from arguments of any kind."""
    ragged = Ragged(*given)
    options = [name for name in ("lengths", "reset", "batch_sizes") if getattr(ragged, name) is not None]
    reasons = _backends.option_reasons(options, x)
    if reasons:
        raise NotImplementedError("; ".join(reasons))
    _check.ragged_arguments(x, h_0, c_0, batch_first, *ragged)
    _check.stored(*ragged._asdict().items())
    if ragged.batch_sizes is not None:
        _check.batch_sizes_fit(x, h_0, ragged.batch_sizes)
    return {"ragged": ragged} if options else {}


def _empty_outputs(cell, x, h_0, c_0, batch_first, *kept):
    """The outputs for an empty batch, or of no hidden units: nothing to compute."""
    y, h_n, c_n, states, gates = _allocate(cell, x, h_0, c_0, batch_first, *kept)
    return y, h_n.copy_(h_0), c_n if c_0 is None else c_n.copy_(c_0), states, gates


def _allocate(cell, x, h_0, c_0, batch_first, keeps_states, keeps_gates):
    D, B, H = h_0.shape
    y_shape, states_shape, gates_size = _sizes(cell, x, h_0, batch_first)
    y = x.new_empty(y_shape)
    h_n = x.new_empty((D, B, H))
    c_n = x.new_empty((0,) if c_0 is None else (D, B, H))
    states, gates = x.new_empty((0,)), x.new_empty((0,))
    if keeps_states:
        states = x.new_empty(states_shape, dtype=_driver(x).kept_dtype(x.dtype))
    if keeps_gates:
        gates = x.new_empty((gates_size(),), dtype=_driver(x).kept_dtype(x.dtype))
    return y, h_n, c_n, states, gates


def _sizes(cell, x, h_0, batch_first):
    """The shapes of y and of the states, and a function that gives the size of the gates."""
    D, _, H = h_0.shape
    rows = x.shape[:-1]  # (T, B), (B, T) or those of packed x
    steps = rows[::-1] if batch_first else rows
    T, B = (*steps, 1)[:2]
    return (*rows, D * H), (CELLS[cell].states, D, *steps, H), lambda: _driver(x).gates_size(cell, T, B, H, D, x.dtype)


def forward_fake(cell, x, h_0, c_0, weights, batch_first, save, *ragged, recompute=False):
    _check.scan_arguments(cell, x, h_0, c_0, weights, batch_first, *ragged[4:])
    _check.ragged_arguments(x, h_0, c_0, batch_first, *ragged)
    return _allocate(cell, x, h_0, c_0, batch_first, *_kept(x, save, recompute))


def backward_kernel(
    cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw, *ragged
):  # fmt: skip
    _check.scan_arguments(cell, x, h_0, c_0, weights, batch_first, *ragged[4:])
    if 0 not in h_0.shape:
        _check_saved(cell, dy, dh_n, dc_n, x, h_0, c_0, states, gates, batch_first)
        states, gates = states.contiguous(), gates.contiguous()
    given = (dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates)
    options = _ragged(x, h_0, c_0, batch_first, *ragged) if ragged else {}
    dx, dh_0, dc_0, dweights, *dreset = trusted_backward(cell, *given, batch_first, needs_dx, needs_dw, **options)
    dreset_h, dreset_c = (*dreset, None, None)[:2]
    return (*_present(x, dx, dh_0, dc_0), dweights or [], *_present(x, dreset_h, dreset_c))


def trusted_backward(
    cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw, **options
):  # fmt: skip
    """What the driver's `backward` returns, from arguments of the right sizes. States not kept are None or empty."""
    ragged = options.get("ragged", ())
    if 0 in h_0.shape:
        given = (dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates)
        made = backward_fake(cell, *given, batch_first, needs_dx, needs_dw, *ragged)
        return (*(t.zero_() for t in made[:3]), [t.zero_() for t in made[3]], *(t.zero_() for t in made[4:]))
    if states is None or not states.numel():
        *_, states, gates = forward(cell, x, h_0, c_0, weights, batch_first, True, *ragged)
    dy, dh_n, dc_n, c_0 = (None if t is None else t.contiguous() for t in (dy, dh_n, dc_n, c_0))
    # Hooks of saved tensors may have given them other strides.
    states, gates = (None if t is None else t.contiguous() for t in (states, gates))
    saved = (readable(x), h_0.contiguous(), c_0, weights, states, gates)
    return _driver(x).backward(cell, dy, dh_n, dc_n, *saved, batch_first, needs_dx, needs_dw, **options)


def _check_saved(cell, dy, dh_n, dc_n, x, h_0, c_0, states, gates, batch_first):
    D, B, H = h_0.shape
    shape, states_shape, gates_size = _sizes(cell, x, h_0, batch_first)
    state = (D, B, H) if c_0 is not None else (0,)
    none_kept = not states.numel() and not gates.numel()
    no_gates = none_kept or (_driver(x).MAKES_GATES and not gates.numel())
    kept = _driver(x).kept_dtype(x.dtype)
    expected = [("dy", dy, shape, x.dtype), ("dh_n", dh_n, (D, B, H), x.dtype), ("dc_n", dc_n, state, x.dtype)]
    expected += [("states", states, (0,) if none_kept else states_shape, kept)]
    expected += [("gates", gates, (0 if no_gates else gates_size(),), kept)]
    for name, tensor, shape, dtype in expected:
        if tensor is not None:
            _check.matches(name, tensor, shape, x, x.dtype if shape == (0,) else dtype)


def backward_fake(
    cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw, *ragged
):  # fmt: skip
    empty = x.new_empty
    dx = empty(x.shape if needs_dx else (0,))
    dweights = [empty(w.shape) for w in weights] if needs_dw else []
    states = (h_0, c_0, *Ragged(*ragged)[2:4])
    dh_0, dc_0, dreset_h, dreset_c = (empty((0,) if t is None else t.shape) for t in states)
    return dx, dh_0, dc_0, dweights, dreset_h, dreset_c
