"""Layers of a recurrent network as a wavefront on a GPU: while a layer does a chunk of steps, the one above it does the
chunk before. Trusts its arguments, as `scan_gpu`.

A step is mostly waiting, and one layer leaves most processors idle: here the layers have them together, each in a
stream (Appleyard et al. 2016, "Optimizing performance of recurrent neural networks on GPUs"). Kernels and results are
those of `scan_gpu`.
"""

from functools import partial

import torch

from seqkernels.kernels.gpu.wavefront_plan import chunk_for

from . import tasks
from .launch_gpu import in_recurrent_precision, processors
from .packing import per_layer
from .scan_launch_gpu import Backward, Forward, planned, time_first


def chunk(cell, x, h_0, L, batch_first):
    """Steps a chunk of L layers with input x and states h_0 (L*D, B, H), or 0 where these are not for a wavefront."""
    T, (_, B, H), D = x.shape[1 if batch_first else 0], h_0.shape, len(h_0) // L
    return chunk_for(planned(cell, D, B, H, x), L, D, T, B, H, processors(x.device))


@in_recurrent_precision
def forward(cell, x, h_0, c_0, weights, batch_first, save, steps, plan=None, run=tasks.run):
    """y (T, B, H), h_n and c_n (L, B, H), then of each layer what `scan_gpu.forward` returns as states and as gates.

    x: (T, B, I), or (B, T, I) with batch_first; then y is (B, T, H). h_0, c_0: (L, B, H), c_0 None for a cell without
    it. weights: those of all layers, of one direction. steps: in a chunk. plan: the `regimes.Plan` of a layer, or None
    for the one that suits. run: what runs a list of `tasks.Task` on a device.
    """
    x, L, layers = time_first(x, batch_first), len(h_0), []
    for i, (h, c, own) in enumerate(zip(_each(h_0, L), _each(c_0, L), per_layer(weights, L))):
        below = layers[-1].y if layers else x
        layers.append(Forward(cell, below, h, c, own, batch_first and i == L - 1, save, plan))
    run(_wavefront(layers, len(x), steps, _forward), x.device)
    ys, h_n, c_n, states, gates = zip(*(layer.results() for layer in layers))
    return ys[-1], torch.cat(h_n), None if c_0 is None else torch.cat(c_n), states, gates


@in_recurrent_precision
def backward(
    cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw, steps, plan=None,
    run=tasks.run,
):  # fmt: skip
    """dx, dh_0, dc_0 and the list of the weights' gradients; dx and the list None where they are not needed.

    dy, dh_n, dc_n: as y, h_n, c_n, or None for zero. states, gates: as `forward` has returned them, with save.
    """
    x, L, layers = time_first(x, batch_first), len(h_0), []
    dy = None if dy is None else time_first(dy, batch_first)
    each = [_each(t, L) for t in (dh_n, dc_n, h_0, c_0)]
    inputs = [x, *(s[0, 0] for s in states)]  # the h of the layer below
    own = per_layer(weights, L)
    for i in reversed(range(L)):
        dh, dc, h, c = (t[i] for t in each)
        given = (inputs[i], h, c, own[i], states[i], gates[i])
        layers.append(Backward(cell, layers[-1].dx if layers else dy, dh, dc, *given, needs_dx or i > 0, plan))
    run(_wavefront(layers, len(x), steps, _backward), x.device)
    layers.reverse()
    dx = layers[0].dx
    dh_0, dc_0 = zip(*(layer.to_states() for layer in layers))
    return (
        dx.transpose(0, 1).contiguous() if batch_first and needs_dx else dx,
        torch.cat(dh_0),
        None if c_0 is None else torch.cat(dc_0),
        [dw for layer in layers for dw in layer.to_weights()] if needs_dw else None,
    )


def _wavefront(layers, T, steps, run):
    """Tasks run(layer, first, last), chunk by chunk of T steps: each layer a stream, in which a chunk waits for that
    of the layer before it in the list."""
    planned = []
    for first in range(0, T, steps):
        for i, layer in enumerate(layers):
            after = (len(planned) - 1,) if i else ()
            planned.append(tasks.Task(i, after, partial(run, layer, first, min(first + steps, T))))
    return planned


def _forward(layer, first, last):
    layer.project(first, last)
    layer.launch(first, last)


def _backward(layer, first, last):
    layer.launch(first, last)
    if layer.dx is not None:
        layer.to_inputs(first, last)


def _each(states, L):
    """The layers' own (1, B, H) of (L, B, H), or None for each."""
    return [None] * L if states is None else states.split(1)
