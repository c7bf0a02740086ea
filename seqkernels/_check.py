"""What a call is allowed to be: argument checks in torch.nn's words, and the test for a plain call."""

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _dispatch_keys,
    _dispatch_tls_local_include_set,
    _is_any_autocast_enabled,
    _is_torch_function_mode_enabled,
)
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import Parameter

from seqkernels.kernels.cells import CELLS

from . import _backends


def _keys(*names):
    keys = DispatchKeySet(getattr(DispatchKey, names[0]))
    for name in names[1:]:
        keys = keys.add(getattr(DispatchKey, name))
    return keys.raw_repr()


# Dispatch keys of a dense tensor without views in disguise (negation, zero tensors, wrappers, nesting, other layouts),
# and of an inference tensor; then the keys a thread adds when no mode, transform or tracer is active.
_PLAIN_TENSOR = {
    kind: {_keys(kind, "ADInplaceOrView", f"Autograd{kind}", f"Autocast{kind}"), _keys(kind, f"Autocast{kind}")}
    for kind in ("CPU", "CUDA")
}
_PLAIN_TYPES = (Tensor, Parameter)
_PLAIN_THREAD = {_keys("BackendSelect", "ADInplaceOrView"), _keys("BackendSelect")}
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def plain_thread():
    """True where a call runs at once and as written, CPU tensors on the CPU's kernels."""
    return _backends.chosen == "auto" and bare_thread()


def bare_thread():
    """True where a call runs at once and as written: no compiler, tracer, transform, mode, autocast or forward AD."""
    return not (
        is_compiling()
        or _dispatch_tls_local_include_set().raw_repr() not in _PLAIN_THREAD
        or _is_any_autocast_enabled()
        or overridden()
    )


def overridden():
    """True where what a call means may be changed by what no tensor shows: a function mode, or forward AD."""
    return _is_torch_function_mode_enabled() or forward_ad._current_level >= 0


def plain(dtype, *tensors, kind="CPU"):
    """True for dense torch.Tensors (or Parameters) of this dtype, of kind "CPU" or "CUDA", whose memory is what they
    show."""
    keys = _PLAIN_TENSOR[kind]
    for x in tensors:
        if type(x) not in _PLAIN_TYPES or x.dtype is not dtype or _dispatch_keys(x).raw_repr() not in keys:
            return False
    return True


REFUSED = "the arguments are refused by torch"


def autocast_dtype(device):
    """What tensors on this device are cast to by autocast, or None where it is not active or no GPU's kernels run."""
    if _backends.backend(device) == "gpu" and device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def _autocast_reason(device):
    if _backends.backend(device) == "cpu":
        active = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        return "autocast is active" if active or not is_compiling() and _is_any_autocast_enabled() else None
    dtype = autocast_dtype(device)
    return None if dtype is None else _backends.dtype_reason("what autocast casts to", dtype, device)


def thread_reason(device) -> str | None:
    """Why no kernel of this device runs under what is active in this thread, or None."""
    autocast = _autocast_reason(device)
    if autocast is not None or is_compiling():
        return autocast
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform (vmap, grad, jvp, ...) is active"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit is tracing"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return None


def vmapped():
    """Whether torch.vmap is active, at any level."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)


def tensor_reason(name, x) -> str | None:
    """Why no kernel can read this tensor, or None."""
    if x.layout is not torch.strided or x.is_nested:
        return f"{name} is not a dense strided tensor"
    return _backends.reason(name, x)


def stored(*named):
    """Raises RuntimeError, with its name, for a tensor whose storage has been freed or shrunk under it.

    named: (name, tensor) pairs, tensors that have memory, not fake or wrapped ones; None is passed over.
    """
    for name, x in named:
        if x is None:
            continue
        extent = x.nbytes
        if not x.is_contiguous() and extent:
            extent = x.element_size() * (1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride())))
        needed = x.storage_offset() * x.element_size() + extent
        there = x.untyped_storage().nbytes()
        if extent and needed > there:
            raise RuntimeError(f"{name} needs {needed} bytes of storage and has {there}: its storage was resized")


def state_dtypes(input, states, dtype):
    """Raises RuntimeError, as torch does, but with the dtypes in it, for a state of another dtype than the input's.

    An input that is not of the weights' dtype is left to torch.
    """
    if isinstance(input, Tensor) and input.dtype == dtype and not _is_any_autocast_enabled():
        for s in states or ():
            if s.dtype != input.dtype:
                raise RuntimeError(f"Input and hx must have the same dtype, got input {input.dtype} and hx {s.dtype}")


def scan_arguments(cell, x, h_0, c_0, weights, batch_first, batch_sizes=None):
    """(T, B, H, D) of a layer, or the error that names what is wrong with it. batch_sizes: as in
    `seqkernels.ops.ragged`, not looked at but for T.

    Raises ValueError for an unknown cell, a dtype mismatch or a missing c_0, RuntimeError for sizes and devices.
    """
    if cell not in CELLS:
        raise ValueError(f"unknown cell '{cell}', expected one of {', '.join(CELLS)}")
    dimensions = 3 if batch_sizes is None else 2
    if x.dim() != dimensions:
        raise RuntimeError(f"x must have {dimensions} dimensions, got {x.dim()}")
    if h_0.dim() != 3:
        raise RuntimeError(f"h_0 must have 3 dimensions (D, B, H), got {h_0.dim()}")
    if batch_sizes is not None:
        T, B = len(batch_sizes), h_0.shape[1]
    else:
        T, B = (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
    D, _, H = h_0.shape
    if D not in (1, 2):
        raise RuntimeError(f"h_0.size(0) must be the number of directions, 1 or 2, got {D}")
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if CELLS[cell].states == 2 and c_0 is None:
        raise ValueError(f"the cell '{cell}' needs c_0, got None")
    if CELLS[cell].states == 1 and c_0 is not None:
        raise ValueError(f"the cell '{cell}' has no c: c_0 must be None")
    matches("h_0", h_0, (D, B, H), x)
    if c_0 is not None:
        matches("c_0", c_0, (D, B, H), x)
    layer_weights(cell, x.shape[-1], h_0, weights, D)
    return T, B, H, D


def ragged_arguments(
    x, h_0, c_0, batch_first, lengths=None, reset=None, reset_h=None, reset_c=None, batch_sizes=None
):  # fmt: skip
    """Raises unless these, as `seqkernels.ops.ragged` has them, fit a scan of x from h_0 and c_0.

    The values in lengths and batch_sizes are not looked at: any of the former is safe.
    """
    B = h_0.shape[1]
    if batch_sizes is not None:
        if lengths is not None or reset is not None or reset_h is not None or reset_c is not None:
            raise ValueError("batch_sizes is given, and so are lengths or reset")
        if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
            raise ValueError(f"batch_sizes must be int64 of one dimension on the CPU, got {batch_sizes.dtype}")
        return
    shape = (B, x.shape[1]) if batch_first else (x.shape[0], B)
    if lengths is not None and (lengths.shape != (B,) or lengths.dtype not in _INTEGERS):
        raise ValueError(f"lengths must be {B} integers, got {lengths.dtype} of size {list(lengths.shape)}")
    if reset is not None and (reset.shape != shape or reset.dtype != torch.bool):
        raise ValueError(f"reset must be bool of size {shape}, got {reset.dtype} of size {list(reset.shape)}")
    for name, tensor in (("lengths", lengths), ("reset", reset)):
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(f"{name} must be on the input's device, {x.device}, got {tensor.device}")
    if reset_h is None and reset_c is None:
        return
    if reset is None:
        raise ValueError("reset_state is given and reset is not")
    for i, (tensor, state) in enumerate(((reset_h, h_0), (reset_c, c_0))):
        name = f"reset_state[{i}]"
        if (tensor is None) != (state is None):
            raise ValueError(f"{name} must be {'None' if state is None else 'given'}, as the state that it replaces")
        if tensor is not None:
            matches(name, tensor, h_0.shape, x)


def batch_sizes_fit(x, h_0, batch_sizes):
    """Raises ValueError unless the values are those of a `PackedSequence` with x (rows, I) for states h_0 (D, B, H)."""
    falling = bool((batch_sizes[1:] <= batch_sizes[:-1]).all())
    ends = int(batch_sizes[0]), int(batch_sizes[-1]), int(batch_sizes.sum())
    if not falling or ends[0] != h_0.shape[1] or ends[1] < 1 or ends[2] != len(x):
        raise ValueError(
            f"batch_sizes must fall from {h_0.shape[1]} to 1 or more and add up to {len(x)},"
            f" got {ends[0]} to {ends[1]}, adding up to {ends[2]}{'' if falling else ', not falling'}"
        )


def layer_weights(cell, I, h, weights, D=1):
    """Raises unless `weights` are those of a layer of D directions with input size I, for states like h (..., H)."""
    if len(weights) not in (2 * D, 4 * D):
        raise RuntimeError(f"expected {2 * D} or {4 * D} weights for {D} direction(s), got {len(weights)}")
    H = h.shape[-1]
    rows = CELLS[cell].gates * H
    shapes = [(rows, I), (rows, H), (rows,), (rows,)][: len(weights) // D]
    for i, w in enumerate(weights):
        matches(f"weights[{i}]", w, shapes[i % len(shapes)], h)


def matches(name, tensor, shape, x, dtype=None):
    """Raises unless `tensor` has this shape and the dtype (unless another is given) and device of x, the input or a
    state."""
    dtype = x.dtype if dtype is None else dtype
    if tensor.shape != shape:
        raise RuntimeError(f"Expected {name} size {tuple(shape)}, got {list(tensor.shape)}")
    if tensor.dtype != dtype:
        whose = "the input's dtype" if dtype == x.dtype else "dtype"
        raise ValueError(f"{name} must have {whose}, {dtype}, got {tensor.dtype}")
    if tensor.device != x.device:
        raise RuntimeError(
            f"Input and {name} are not at the same device, found input at {x.device} and {name} at {tensor.device}"
        )
