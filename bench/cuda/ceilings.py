"""What the device can do at all: bandwidths, products, launches, barriers; and what its compiler gets right."""

from functools import partial

import torch

from .. import timing
from ..race import relative_error
from .contest import MOST_ROUNDS, each, limit, set_precision
from .row import Row

SECONDS = 0.2
MIB = 2**20
NODES, CALLS, STEPS = 100, 10, 1000
BLOCK = 4096
PROBED = 64  # rows of a product that are checked, and the size of a probe's


def rows():
    """Memory and the second cache by size, products by precision, launches, barriers by programs, probes."""
    for megabytes in (1024, 16):
        yield Row("ceilings", f"copy-{megabytes}MiB", 0, {"what": "copy", "size": megabytes * MIB})
    for megabytes in (1024, 1, 2, 4, 8, 16, 32):
        yield Row("ceilings", f"read-{megabytes}MiB", 0, {"what": "read", "size": megabytes * MIB, "calls": CALLS})
    for precision in ("bfloat16", "tf32", "ieee"):
        yield Row("ceilings", f"product-{precision}", 0, {"what": "product", "size": 8192, "precision": precision})
    yield Row("ceilings", "launch", 0, {"what": "launch", "size": 1})
    yield Row("ceilings", "node", 0, {"what": "node", "size": NODES})
    yield Row("ceilings", "transposed", 0, {"what": "transposed", "size": PROBED})
    for programs in (33, 66, 132):
        yield Row("ceilings", f"barrier-{programs}", 0, {"what": "barrier", "size": programs, "steps": STEPS})
    yield Row("ceilings", "cooperative-node", 0, {"what": "cooperative", "size": 33, "steps": STEPS})


def smoke(row):
    """The same question at a size that is answered in a moment, by one program."""
    sizes = {"copy": 2**14, "read": 2**18 + 400, "product": 96, "node": 2, "barrier": 1, "cooperative": 1}
    small = {"size": sizes.get(row.arguments["what"], row.arguments["size"]), "seconds": 0}
    small |= {name: value for name, value in {"steps": 3, "calls": 1}.items() if name in row.arguments}
    return {**row.arguments, **small}


def measure(device, what, seconds=SECONDS, **arguments):
    """One row's record: status "ok", with rounds in seconds where something was timed, or "wrong"; and amounts."""
    calls, right, amounts = WHAT[what](device, **arguments)
    record = {"status": "ok" if right else "wrong", **amounts}
    if right and calls:
        rounds = timing.interleave(calls, seconds, device.sample, most=MOST_ROUNDS)
        both = rounds[0] if len(calls) == 1 else [a - b for a, b in zip(*rounds)]
        record["rounds"] = each(both, arguments.get("steps", 1) * getattr(calls[0], "calls", 1))
    return record


def _copy(device, size):
    source = torch.randn(size // 4, device=device.device)
    target = torch.zeros_like(source)
    target.copy_(source)
    return [partial(target.copy_, source)], torch.equal(source, target), {"bytes": 2 * size}


def _read(device, size, calls):
    from .probes import read

    x, programs = torch.ones(size // 4, device=device.device), 8 * device.processors
    sums = torch.zeros(programs, device=device.device)
    call = device.graphed(partial(read[(programs,)], x, sums, len(x), BLOCK=BLOCK), calls)
    call()
    return [call], sums.double().sum().item() == len(x), {"bytes": size}


def _product(device, size, precision):
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    set_precision("ieee" if precision == "bfloat16" else precision)
    a, b = (torch.randn(size, size, device=device.device, dtype=dtype) for _ in range(2))
    error = relative_error([(a @ b)[:PROBED]], [a[:PROBED].double() @ b.double()])
    right = error <= limit(str(dtype).removeprefix("torch."), precision, 0.0)
    return [lambda: a @ b], right, {"operations": 2 * size**3, "error": error}


def _launch(device, size):
    from .probes import nothing

    return [nothing[(size,)]], True, {}


def _node(device, size):
    from .probes import nothing

    return [device.graphed(nothing[(1,)], size)], True, {}


def _barriers(device, programs, steps):
    """A call of `steps` barriers, from a counter that it sets to zero; and that counter."""
    from .probes import barriers

    counter = torch.zeros(1, dtype=torch.int32, device=device.device)

    def call():
        counter.zero_()
        barriers[(programs,)](counter, steps, launch_cooperative_grid=True)

    return call, counter


def _barrier(device, size, steps):
    """What `steps` barriers add to none."""
    call, counter = _barriers(device, size, steps)
    call()
    return [call, _barriers(device, size, 0)[0]], counter.item() == steps * size, {}


def _cooperative(device, size, steps):
    """Whether a cooperative launch can be captured in a graph, and runs when that is replayed."""
    call, counter = _barriers(device, size, steps)
    replay = device.graphed(call)
    counter.zero_()
    replay()
    return [], counter.item() == steps * size, {}


def _transposed(device, size):
    from .probes import transposed

    a, b, c = (torch.randn(size, size, device=device.device, dtype=torch.float16) for _ in range(3))
    y = torch.zeros(size, size, device=device.device)
    transposed[(1,)](a, b, c, y, SIZE=size)
    error = relative_error([y], [(a.double() @ b.double()).mT @ c.double()])
    return [], error <= limit("float16", "ieee", 0.0), {"error": error}


WHAT = {
    "copy": _copy,
    "read": _read,
    "product": _product,
    "launch": _launch,
    "node": _node,
    "barrier": _barrier,
    "cooperative": _cooperative,
    "transposed": _transposed,
}
