"""Finds the blocks of attention's Triton kernels on the GPU at hand: entries for kernels/gpu/attention_configs.py.

An entry is for an operation, a head size and a size of element, at one batch and length: both are large, so that there
is work for every processor. What is tried is bounded by the number of candidates and by time.
"""

import itertools
import json
import sys
import time
from dataclasses import asdict

import torch

OPERATIONS = ("forward", "masked forward", "dropped forward", "keys", "masked keys", "dropped keys", "queries")
KEYS = list(itertools.product(OPERATIONS, (64, 128, 256), ("bfloat16", "float32")))
TOLERANCE = 0.02  # of the largest value; a candidate that is compiled wrong is further off
B, N, T = 2, 16, 4096


def candidates(present):
    """The Config that the table has, then others, those that differ in fewest of their numbers first."""
    kind = type(present)
    ranges = (32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3)
    others = [kind(*numbers) for numbers in itertools.product(*ranges)]
    others = [config for config in others if config != present and config.queries * config.keys <= 128 * 128]

    def distance(config):
        return sum(a != b for a, b in zip(asdict(config).values(), asdict(present).values()))

    return [present, *sorted(others, key=distance)]


def problem(operation, D, dtype, device, B=B, N=N, T=T):
    """A function of a Config that runs the operation with it, causal unless it is masked."""
    from seqkernels.ops import attention_gpu

    q, k, v, dout = torch.randn(4, B, N, T, D, dtype=getattr(torch, dtype), device=device)
    option, _, name = operation.rpartition(" ")
    mask = torch.rand(T, T, device=device) < 0.9 if option == "masked" else None
    dropped = (0.1, torch.ones(1, dtype=torch.int64, device=device)) if option == "dropped" else (0.0, None)
    given = mask is None, None, *dropped
    if name == "forward":
        return lambda config: attention_gpu.forward(q, k, v, mask, *given, config=config)
    out, lse = attention_gpu.forward(q, k, v, mask, *given)
    return lambda config: attention_gpu.backward(dout, q, k, v, mask, out, lse, *given, **{name: config})


def agree(results, expected):
    """Whether the tensors are those of another Config, but for rounding."""
    return all((a - b).abs().max() <= TOLERANCE * b.abs().max() for a, b in zip(results, expected, strict=True))


def tune(measure, seconds, device="cuda", keys=KEYS, clock=time.monotonic, **sizes):
    """Yields a record a key: its operation, D, dtype, present and best Config, both times, how many were tried, and
    why some could not run.

    measure: function of a call without arguments -> its time. seconds: for all keys together; each has the same share
    of what is left, and tries two candidates at least.
    """
    from seqkernels.kernels.gpu.attention_configs import config_for
    from triton.errors import TritonError

    end = clock() + seconds
    for number, (operation, D, dtype) in enumerate(keys):
        stop = clock() + (end - clock()) / (len(keys) - number)
        run = problem(operation, D, dtype, device, **sizes)
        capability = torch.cuda.get_device_capability(device) if device == "cuda" else None
        option, _, name = operation.rpartition(" ")
        present = config_for(name, D, 2 if dtype == "bfloat16" else 4, capability, option or None)
        times, failed, expected = {}, {}, None
        for config in candidates(present):
            if len(times) + len(failed) >= 2 and clock() >= stop:
                break
            try:
                results = run(config)
                expected = expected or results
                if agree(results, expected):
                    times[config] = measure(lambda run=run, config=config: run(config))
                else:
                    failed[config] = "wrong"
            except (RuntimeError, TritonError) as error:  # too much shared memory, or not to be compiled
                failed[config] = str(error).splitlines()[0]
        best = min(times, key=times.get) if times else present
        yield {
            "operation": operation, "D": D, "dtype": dtype, "present": asdict(present), "best": asdict(best),
            "present_ms": times.get(present), "best_ms": times.get(best), "tried": len(times),
            "failed": sorted(set(failed.values())),
        }  # fmt: skip


def run(seconds):
    """Prints a record a line as they come, then the table's entries; returns the exit status."""
    if not torch.cuda.is_available():
        print("seqkernels tune: needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    from triton.testing import do_bench

    records = []
    for record in tune(lambda call: do_bench(call, warmup=10, rep=50, return_mode="median"), seconds):
        records.append(record)
        print(json.dumps(record), flush=True)
    print("\n".join(entries(records)))
    return 0


def entries(records):
    """The records as lines of the table, by operation and size of element."""
    from seqkernels.kernels.gpu.attention_configs import Config

    table = {}
    for record in records:
        key = record["operation"], record["dtype"] == "bfloat16"
        table.setdefault(key, {})[record["D"]] = Config(**record["best"])
    return [f"    {key}: {values}," for key, values in table.items()]
