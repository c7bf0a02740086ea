"""One time step of one layer in one direction on a GPU: allocates and launches. Trusts its arguments, as `scan_gpu`."""

import torch

from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu.primitives import on_blocks
from seqkernels.kernels.gpu.step import step
from seqkernels.kernels.gpu.step_plan import plan_for

from .launch_gpu import processors, recurrent_precision


def forward(cell, x, h, c, weights, plan=None):
    """(h', c') of a step, (B, H): as `write`, into new memory; c' is None where c is."""
    h_next, c_next = torch.empty_like(h), None if c is None else torch.empty_like(c)
    write(cell, x, h, c, weights, h_next, c_next, plan)
    return h_next, c_next


def scan(cell, x, h_0, c_0, weights, batch_first):
    """What `scan_gpu.forward` returns for one step of one direction where nothing is saved; its arguments."""
    time, c = 1 if batch_first else 0, None if c_0 is None else c_0[0]
    h, c = forward(cell, x.squeeze(time), h_0[0], c, [w.contiguous() for w in weights])
    return h.unsqueeze(time), h.unsqueeze(0).clone(), None if c is None else c.unsqueeze(0), None, None


def write(cell, x, h, c, weights, h_next, c_next, plan=None):
    """A step from x (B, I), h and c (B, H) into h_next and c_next (B, H), which may be c but not h.

    All are of one dtype and contiguous, but x's rows may lie apart; so are the weights: w_ih (G*H, I), w_hh (G*H, H)[,
    b_ih (G*H), b_hh (G*H)]. c and c_next are None for a cell without c. plan: the `step_plan.StepPlan` to run with, or
    None for the one that suits the sizes and the device.
    """
    (B, H), kind, biases = h.shape, CELLS[cell], weights[2:] or (None, None)
    plan = plan_for(cell, H, B, x.element_size(), processors(x.device)) if plan is None else plan
    with torch.cuda.device_of(x):
        step[(plan.programs(H, B),)](
            x, x.stride(0), h, c, *weights[:2], *biases, h_next, c_next, B, x.shape[1], H,
            CELL=on_blocks(cell)[0], GATES=kind.gates, STATES=kind.states, UNITS=plan.units, ROWS=plan.rows,
            TERMS=plan.terms, UNROLL=plan.unroll, PRECISION=recurrent_precision(), num_warps=plan.warps,
        )  # fmt: skip
