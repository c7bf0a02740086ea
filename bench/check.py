"""Performance checks on exact counters: `seqkernels check record` writes what is expected, `seqkernels check` compares.
ratios.py judges speeds.

Packed layouts depend on the vector width, and so do the bytes: each instruction set has its own expectations.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from . import cases, counters, library, problems, timing

EXPECTED = Path(__file__).with_name("expected.json")
REFRESH = "seqkernels check record"
RATIO_SECONDS = 0.2
LENGTHS = 4, 32  # T of the graphs


def case_rows():
    """Row name -> the Case that it runs, of the rows that have one."""
    chosen = [
        cases.Case(operation, mode, T=16, B=8, H=64) for operation in cases.LAYERS for mode in ("forward", "training")
    ]
    chosen += [
        cases.Case("lstm", "step", H=128),
        *(cases.Case(operation, "step", H=128) for operation in cases.MODULES if operation.endswith("_cell")),
        cases.Case("lstm_cell", "training", T=16, B=8, H=64),
        cases.Case("attention", T=128, N=2, D=64, causal=True),
        cases.Case("decode", T=1024, N=8, D=64),
    ]
    chosen += [replace(chosen[0], L=2, bidirectional=True), replace(chosen[0], dtype="float64")]
    # Few units and many rows: the gates weigh beside the products.
    chosen += [cases.Case(operation, T=32, B=32, H=32) for operation in cases.LAYERS]
    return {case.name: case for case in chosen}


def _stream_step(source):
    torch.manual_seed(0)
    stream = source.stream(source.nn.LSTM(128, 128).eval())
    return partial(stream, torch.randn(1, 128))


def rows(source=None):
    """Row name -> (a function that makes its call, a function that makes the context in which it is made).

    source: a `library.Library`, ours by default.
    """
    source = source or library.ours()
    made = {
        name: (lambda case=case: problems.call(source, problems.make(case)), partial(problems.grad_mode, case))
        for name, case in case_rows().items()
    }
    return made | {"stream-lstm-H128-float32-step": (partial(_stream_step, source), torch.no_grad)}


def graphs(source=None):
    """Row -> {"nodes", "nodes_by_length"} of a module of each kind: nodes of its graph at one T, and how many more
    there are at another, which no kernel of ours lets happen."""
    source = source or library.ours()
    modules = {f"{kind}-graph": getattr(source.nn, cases.LAYERS[kind])(8, 8) for kind in cases.LAYERS}
    modules["attention-graph"] = source.nn.MultiheadAttention(8, 2)
    found = {}
    for name, module in modules.items():
        inputs = 3 if name.startswith("attention") else 1
        short, long = (counters.nodes(module.eval(), *[torch.zeros(T, 2, 8)] * inputs) for T in LENGTHS)
        found[name] = {"nodes": short, "nodes_by_length": abs(long - short)}
    return found


def measure(source=None):
    """Row -> {figure: value}, each row with one thread, in an order that does not change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = {}
        for name, (make, context) in rows(source).items():
            with context():
                measured[name] = counters.count(make())
        return measured | graphs(source)
    finally:
        torch.set_num_threads(threads)


def compare(measured, expected):
    """Messages: one for each figure above its expectation and each row without one; [] where all is well."""
    messages = []
    if not expected:
        return [f"no expectations are recorded for this instruction set. Record them with: {REFRESH}"]
    for row, figures in measured.items():
        if row not in expected:
            messages.append(f"{row}: no expectation is recorded. Record it with: {REFRESH}")
            continue
        for figure in figures:
            if figures[figure] > expected[row][figure]:
                messages.append(
                    f"{row}: {figure} a call rose to {figures[figure]:g}, expected {expected[row][figure]:g}. "
                    f"If this is meant, refresh the expectation with: {REFRESH}"
                )
    return messages


def improvements(measured, expected):
    """Messages on figures that fell below their expectation, worth recording."""
    return [
        f"{row}: {figure} a call fell to {figures[figure]:g}, expected {expected[row][figure]:g}"
        for row, figures in measured.items()
        for figure in figures
        if row in expected and figures[figure] < expected[row][figure]
    ]


def ratios():
    """Row name, and torch's time over ours with its 95% interval, interleaved in this process."""
    for name, case in case_rows().items():
        problem = problems.make(case)
        pair = [problems.call(source, problem) for source in (library.ours(), library.native())]
        with problems.grad_mode(case):
            rounds = timing.interleave(pair, RATIO_SECONDS)
        yield name, timing.ratio(*rounds)


def instruction_set():
    """The key of this machine's expectations: the instruction set that the kernels are compiled for."""
    from seqkernels.kernels.cpu import target

    return target.current().name


def read(path=EXPECTED):
    """All expectations: {instruction set: {row: {figure: value}}}."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def record(path=EXPECTED, source=None):
    """Measures, and writes the expectations of this machine's instruction set; returns them."""
    kept = read(path)
    kept[instruction_set()] = measure(source)
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return kept[instruction_set()]
