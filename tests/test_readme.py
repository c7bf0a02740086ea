"""README.md says what is so: its example runs, its support table is what `explain` reports, its map is the tree."""

import re
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence

from seqkernels import explain, nn

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table(after):
    """The rows of the first table after some text, as lists of cells, the header first."""
    lines = README.partition(after)[2].strip().splitlines()
    rows = [line.strip("|").split("|") for line in takewhile(lambda line: line.startswith("|"), lines)]
    return [[cell.strip() for cell in row] for row in rows if set(row[0]) != {"-"}]


def support():
    (_, *columns), *rows = table("<!-- support:begin -->")
    return {row[0]: dict(zip(columns, row[1:])) for row in rows}


def explained(call, device, dtype):
    """The path that `explain` reports for a row of the support table, on a device that need not be there."""
    name, option = re.fullmatch(r"`nn\.(\w+)`(?:, (\w+))?", call).groups()
    kind, options = getattr(nn, name), {"nonlinearity": option} if name.startswith("RNN") and option else {}
    attention = name == "MultiheadAttention"
    shape = (3, 2, 8) if attention else (2, 4) if name.endswith("Cell") else (3, 2, 4)
    module = kind(8 if attention else 4, 2, **options)
    with FakeTensorMode(), torch.set_grad_enabled(option != "inference"):
        for part in module.modules():
            for name, p in part.named_parameters(recurse=False):
                part.register_parameter(name, torch.nn.Parameter(torch.empty(p.shape, device=device, dtype=dtype)))
        x = torch.empty(shape, device=device, dtype=dtype)
        if option == "PackedSequence":
            order = torch.arange(2)
            x = PackedSequence(x.flatten(0, 1), torch.tensor([2, 2, 2]), order, order)
        keywords = {"need_weights": option == "inference"} if attention else {}
        return explain(module, *([x] * (3 if attention else 1)), **keywords).path


def test_support_table_has_every_module_of_ours():
    ours = {name for name in dir(nn) if getattr(nn, name) is not getattr(torch.nn, name, None)}
    assert {re.search(r"nn\.(\w+)", call)[1] for call in support()} == ours


@pytest.mark.parametrize("column", ["float32", "float64", "float16", "bfloat16", "CUDA"])
@pytest.mark.parametrize("call", support())
def test_support_table_is_what_explain_reports(call, column):
    if column != "CUDA":
        assert explained(call, "cpu", getattr(torch, column)) == support()[call][column]
        return
    for dtype in ("float32", "float16", "bfloat16"):
        assert explained(call, "cuda", getattr(torch, dtype)) == support()[call][column]
    assert explained(call, "cuda", torch.float64) != "kernel"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_example_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_map_names_what_is_there():
    paths = [re.search(r"`(.+?)`", row[0])[1] for row in table("## Map of the repository")[1:]]
    assert paths and all((ROOT / path).exists() for path in paths)
