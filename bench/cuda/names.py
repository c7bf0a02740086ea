"""Which kernels torch's layers launch: their names tell cuDNN's algorithm. The profiler slows what comes after it."""

from torch.profiler import ProfilerActivity, profile

from .. import library, problems
from ..cases import LAYERS, Case
from .contest import set_precision
from .row import Row
from .scan import T

HIDDEN, BATCH = (128, 256, 512, 768, 1024), 16
MOST = 4


def rows():
    """A row a cell and mode, low in rank."""
    for cell in LAYERS:
        for mode in ("forward", "training"):
            arguments = {"cell": cell, "mode": mode, "sizes": list(HIDDEN), "T": T, "B": BATCH}
            yield Row("names", f"names-{cell}-{mode}", 12, arguments)


def smoke(row):
    """The same row at a size that is measured in a moment."""
    return {**row.arguments, "sizes": [9], "T": 3, "B": 2}


def measure(device, cell, mode, sizes, T, B):
    """By case: how many kernels a call launches, and the names of those that take longest, with their shares."""
    kind, time = ("CUDA", "self_device_time_total") if device.device.type == "cuda" else ("CPU", "self_cpu_time_total")
    set_precision("tf32")
    found = {}
    for dtype in ("bfloat16", "float16", "float32"):
        for H in sizes:
            case = Case(cell, mode, T, B, H, dtype=dtype)
            call = problems.call(library.native(), problems.make(case, device=device.device))
            with problems.grad_mode(case):
                call()
                device.wait()
                with profile(activities=[getattr(ProfilerActivity, kind)]) as profiler:
                    call()
                    device.wait()
            events = [event for event in profiler.key_averages() if getattr(event, time) > 0]
            whole = sum(getattr(event, time) for event in events)
            events.sort(key=lambda event: getattr(event, time), reverse=True)
            longest = [[event.key[:100], event.count, getattr(event, time) / whole] for event in events[:MOST]]
            found[case.name] = {"launches": sum(event.count for event in events), "longest": longest}
    return {"status": "ok", "kernels": found, "restart": True}
