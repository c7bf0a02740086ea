"""The short path of plain calls that need no gradient: past the dispatcher to the drivers, with kept packed weights."""

import importlib
from functools import cache
from types import SimpleNamespace

from .. import _check
from .packed import cached, kept_weights
from .packing import PackedWeights, check_form, per_layer
from .scan import through_operator
from .scan_kernels import readable


@cache
def drivers():
    """The modules that load Numba, by name, once they are needed."""
    names = ("scan", "step", "plan", "training_plan")
    return SimpleNamespace(**{name: importlib.import_module(f".{name}_cpu", __package__) for name in names})


def kept(cell, weights, I, h, D=1, form=None):
    """The Kept weights of a layer with input size I and plain states h (..., H), in a form (`packing.FORMS`), or None
    if they are not plain or not kept.

    Weights that are known by identity and contents need not be looked at again. Raises as `_check.layer_weights` and
    `packing.check_form` do.
    """
    known, needed = cached(cell, weights, form), (I, h.shape[-1], h.dtype)
    if known is not None and known.checked == needed and known.holds(weights):
        return known
    _check.layer_weights(cell, I, h, weights, D)
    if form is not None:
        check_form(form, h.dtype, I, h.shape[-1])
    known = kept_weights(cell, weights, form) if _check.plain(h.dtype, *weights) else None
    if known is not None:
        known.checked = needed
    return known


def plan(cell, x, h, c, weights, sizes, form):
    """A `plan_cpu.Plan`, or None where none can be made: for plain tensors of the right sizes, all layers' weights by
    name.

    h and c are contiguous and, but for the number of dimensions, (L D, B, H); c is None for a cell without it. sizes:
    those of `plan_cpu.Sizes`; form: of the weights, as in `kept`.
    """
    if x.stride(-1) != 1:
        return None
    (L, D), H, layers = sizes[2:4], h.shape[-1], []
    for i, own in enumerate(per_layer(list(weights.values()), L)):
        known = kept(cell, own, D * H if i else x.shape[-1], h, D, form)
        if known is None:
            return None
        layers.append(known)
    return drivers().plan.Plan(layers, weights, x, h, c, drivers().plan.Sizes(*sizes))


def training_plan(plans, cell, x, h, c, weights, sizes, batch_first):
    """A `training_plan_cpu.TrainingPlans` with one more for such a call, or None where none can be made: as `plan`, of
    one layer, the parameters plain and the tensors in the shapes of a batch."""
    sizes = drivers().plan.Sizes(*sizes)
    if sizes.L > 1 or x.stride(-1) != 1 or x.dim() != (2 if sizes.y is None else 3):
        return None
    _check.layer_weights(cell, x.shape[-1], h, list(weights.values()), sizes.D)
    plans = plans or drivers().training_plan.TrainingPlans()
    plans.add(drivers().training_plan.TrainingPlan(cell, weights, x, h, c, sizes, batch_first))
    return plans


def in_place(cell, I, states, y, weights, form):
    """A `step_cpu.InPlace` of one layer, or None where its plain weights, of input size I, cannot be kept."""
    known = kept(cell, weights, I, y, form=form)
    return None if known is None else drivers().step.InPlace(cell, known, *states, y)


def scan(cell, x, h_0, c_0, weights, batch_first, recompute=False, form=None):
    """(y, h_n, c_n) by the driver, past the dispatcher. x, h_0 and c_0 are plain tensors of the right sizes.

    recompute: of no effect without a gradient.
    """
    known = kept(cell, weights, x.shape[2], h_0, len(h_0), form)
    if known is not None:
        packed = known.packed
    elif _check.plain(x.dtype, *weights):
        packed = PackedWeights(cell, weights, form)
    else:
        return through_operator(cell, x, h_0, c_0, weights, batch_first)
    return drivers().scan.forward(cell, readable(x), h_0, c_0, weights, batch_first, False, packed)[:3]
