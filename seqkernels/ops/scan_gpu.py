"""The scan on a GPU: allocates, projects the inputs, chooses the regime, launches. Trusts its arguments.

float32, float16 and bfloat16; sums and c are float32. On CPU tensors the kernels run in Triton's interpreter, where
TRITON_INTERPRET was set before Triton was imported.
"""

from seqkernels.kernels.cells import CELLS

from . import step_gpu
from .launch_gpu import in_recurrent_precision
from .packing import per_direction
from .ragged import NOT_RAGGED, past
from .scan_launch_gpu import Backward, Forward, gates_size, kept_dtype, time_first

__all__ = ["MAKES_GATES", "all_steps", "backward", "forward", "gates_size", "kept_dtype"]

MAKES_GATES = True  # whether `backward` makes the gates anew where only the states were kept


@in_recurrent_precision
def forward(cell, x, h0, c0, weights, batch_first, save, plan=None, ragged=NOT_RAGGED, recompute=False):
    """y, h_n, c_n, states, gates of one layer of D directions; arguments and results as `scan_cpu.forward`.

    plan: the `regimes.Plan` to run with, or None for the one that suits the sizes and the device. ragged: which rows
    end early or start again. Past a row's end, `states` has its last states. recompute: save no gates, which are empty
    then.
    """
    T = x.shape[1 if batch_first else 0]
    if T == len(h0) == 1 and not save and plan is None:
        return step_gpu.scan(cell, x, h0, c0, per_direction(cell, weights)[0], batch_first)
    x, ragged = time_first(x, batch_first), ragged.time_first(batch_first)
    layer = Forward(cell, x, h0, c0, weights, batch_first, save, plan, ragged, recompute)
    layer.project(0, T)
    layer.launch(0, T)
    return layer.results()


@in_recurrent_precision
def backward(
    cell, dy, dh_n, dc_n, x, h0, c0, weights, states, gates, batch_first, needs_dx, needs_dw, plan=None,
    ragged=NOT_RAGGED,
):  # fmt: skip
    """dx, dh0, dc0 and the list of the weights' gradients; arguments and results as `scan_cpu.backward`. Gates that
    were not kept are made anew.

    plan, ragged: as for `forward`. With reset_h its gradient follows, with reset_c also that.
    """
    dy = None if dy is None else time_first(dy, batch_first)
    x, ragged = time_first(x, batch_first), ragged.time_first(batch_first)
    layer = Backward(cell, dy, dh_n, dc_n, x, h0, c0, weights, states, gates, needs_dx, plan, ragged)
    layer.launch(0, len(x))
    dx = None
    if needs_dx:
        layer.to_inputs(0, len(x))
        dx = layer.dx.transpose(0, 1).contiguous() if batch_first else layer.dx
    dweights = layer.to_weights() if needs_dw else None
    return dx, *layer.to_states(), dweights, *layer.to_reset_states()


def all_steps(cell, x, h0, c0, c_n, states, gates, batch_first, ragged):
    """As `scan_cpu.all_steps`."""
    (D, T, B, H), saved = states.shape[1:], CELLS[cell].saved
    gates = gates.view(D, T, saved, B, H) if saved else None
    if saved and ragged.lengths is not None:
        gates = gates.masked_fill(past(ragged.lengths, T)[:, None, :, None], 0)
    return None if c0 is None else states[1], gates
