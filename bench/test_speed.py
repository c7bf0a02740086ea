"""The main operations, ours and torch's side by side, for pytest-benchmark.

Not part of the default tests: `pytest bench/test_speed.py --benchmark-json=speed.json`. Each case is a group; our row
carries the interleaved ratio to torch, with its 95% interval, in its extra_info.
"""

import pytest
import torch
from seqkernels.bench import problems, providers, timing
from seqkernels.bench.cases import select

CASES = select("default")
RATIO_SECONDS = 0.5


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["ours", "torch"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_speed(benchmark, case, name):
    benchmark.group = case.name
    problem = problems.make(case)
    calls = [provider.build(problem, threads=1) for provider in (providers.OURS, providers.PEERS["torch"])]
    with problems.grad_mode(case):
        for call in calls:
            call()
        if name == "ours":
            ratio, low, high = timing.ratio(*timing.interleave(calls, RATIO_SECONDS))
            benchmark.extra_info |= {"ratio_to_torch": ratio, "low": low, "high": high}
        benchmark(calls[0] if name == "ours" else calls[1])
