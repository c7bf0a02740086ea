"""One pair, ours against a peer, in a process of its own: agree with the reference first, then race, interleaved.

`run` starts the process; `python -m seqkernels.bench.race JSON` is what it starts. It prints one line of JSON.
"""

import json
import subprocess
import sys

import torch

from . import library, problems, providers, timing
from .cases import Case

TIMEOUT_SECONDS = 600
# Errors are relative to the largest value of a tensor. A provider agrees where its error is at most twice that of
# torch's own result in the case's dtype, or FLOOR; CEILING bounds torch's own, so that nobody is their own judge.
# float32 and float64: rounding errors of many terms. bfloat16: 4 and 16 times the distance from 1 to the next number.
FLOOR = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 2**-5}
CEILING = {"float32": 1e-3, "float64": 1e-9, "bfloat16": 2**-3}


def relative_error(results, truth):
    """Largest difference relative to the largest value, over all tensors; inf where a shape or a NaN does not agree."""
    worst = 0.0
    for got, want in zip(results, truth, strict=True):
        if got.shape != want.shape:
            return float("inf")
        error = (got.double() - want).abs().max() / want.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        worst = max(worst, error.item() if torch.isfinite(error) else float("inf"))
    return worst


def compete(case, contestants, seconds, threads):
    """Races two providers over a case.

    Returns a record: status "ok" with the rounds of both, or "wrong" without any time. The first call's seconds, which
    hold compilation and packing, are kept apart.
    """
    torch.set_num_threads(threads)
    with problems.grad_mode(case):
        return _compete(case, contestants, seconds, threads)


def _compete(case, contestants, seconds, threads):
    problem = problems.make(case)
    truth = providers.reference(problem)
    own = relative_error(problems.results(problems.call(library.native(), problem)), truth)
    limit = min(max(FLOOR[case.dtype], 2 * own), CEILING[case.dtype])
    record = {"case": case.as_dict(), "name": case.name, "threads": threads, "limit": limit, "status": "ok"}
    calls = []
    for role, provider in zip(("ours", "peer"), contestants):
        call = provider.build(problem, threads)
        results, first_seconds = providers.first_call(call)
        error = relative_error(results, truth)
        record[role] = {"provider": provider.name, "error": error, "first_seconds": first_seconds}
        if error > limit:
            record["status"] = "wrong"
        calls.append(call)
    if record["status"] == "ok":
        for role, rounds in zip(("ours", "peer"), timing.interleave(calls, seconds)):
            record[role]["rounds"] = rounds
    return record


def run(case, peer, seconds, threads):
    """Races ours against the named peer in a fresh process and returns its record.

    A process that dies or hangs gives a record with status "failed" and the end of what it said.
    """
    order = json.dumps({"case": case.as_dict(), "peer": peer, "seconds": seconds, "threads": threads})
    command = [sys.executable, "-m", "seqkernels.bench.race", order]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        failure = done.stderr[-1500:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        failure = f"no result within {TIMEOUT_SECONDS} s"
    if failure:
        row = {"case": case.as_dict(), "name": case.name, "threads": threads, "status": "failed", "reason": failure}
        return {**row, "ours": {"provider": "ours"}, "peer": {"provider": peer}}
    return json.loads(done.stdout.splitlines()[-1])


def _main(order):
    order = json.loads(order)
    pair = (providers.OURS, providers.PEERS[order["peer"]])
    record = compete(Case(**order["case"]), pair, order["seconds"], order["threads"])
    print(json.dumps({**record, "compilations": library.compilations()}))


if __name__ == "__main__":
    _main(sys.argv[1])
