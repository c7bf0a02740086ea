"""README.md says what is so: its example runs, its support table is what `explain` reports, its map is the tree."""

import re
from itertools import takewhile
from pathlib import Path

import pytest
import torch

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


def explained(call, dtype):
    """The path that `explain` reports for a row of the support table."""
    name, option = re.fullmatch(r"`nn\.(\w+)`(?:, (\w+))?", call).groups()
    module = getattr(nn, name)
    if name == "MultiheadAttention":
        x = torch.zeros(3, 2, 8, dtype=dtype)
        with torch.set_grad_enabled(option == "training"):
            return explain(module(8, 2, dtype=dtype), x, x, x).path
    x = torch.zeros((2, 4) if name.endswith("Cell") else (3, 2, 4), dtype=dtype)
    return explain(module(4, 5, dtype=dtype, **({"nonlinearity": option} if option else {})), x).path


def test_support_table_has_every_module_of_ours():
    ours = {name for name in dir(nn) if getattr(nn, name) is not getattr(torch.nn, name, None)}
    assert {re.search(r"nn\.(\w+)", call)[1] for call in support()} == ours


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("call", support())
def test_support_table_is_what_explain_reports(call, dtype):
    assert explained(call, getattr(torch, dtype)) == support()[call][dtype]


def test_no_operator_has_a_cuda_kernel_while_the_table_says_none():
    operators = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("seqkernels::")]
    assert operators
    on_cuda = [name for name in operators if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")]
    assert not on_cuda and "kernel" not in {row["CUDA"] for row in support().values()}


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_example_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_map_names_what_is_there():
    paths = [re.search(r"`(.+?)`", row[0])[1] for row in table("## Map of the repository")[1:]]
    assert paths and all((ROOT / path).exists() for path in paths)
