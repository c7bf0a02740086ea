"""README.md says what is so: its example runs, its support table is what the package reports, its map is the tree."""

import re
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from seqkernels import nn

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
INPUTS = {
    "RNN": (3, 2, 4),
    "LSTM": (3, 2, 4),
    "GRU": (3, 2, 4),
    "RNNCell": (2, 4),
    "LSTMCell": (2, 4),
    "GRUCell": (2, 4),
}


def table(after):
    """The rows of the first table after some text, as lists of cells, the header first."""
    lines = README.partition(after)[2].strip().splitlines()
    rows = [line.strip("|").split("|") for line in takewhile(lambda line: line.startswith("|"), lines)]
    return [[cell.strip() for cell in row] for row in rows if set(row[0]) != {"-"}]


def support():
    (_, *columns), *rows = table("<!-- support:begin -->")
    return {re.search(r"nn\.(\w+)", row[0])[1]: dict(zip(columns, row[1:])) for row in rows}


def test_support_table_has_every_module_of_ours():
    ours = {name for name in dir(nn) if getattr(nn, name) is not getattr(torch.nn, name, None)}
    assert set(support()) == {name for name in ours if isinstance(getattr(nn, name), type)}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", INPUTS)
def test_support_table_is_what_the_package_reports(name, dtype):
    kind = getattr(torch, dtype)
    reason = getattr(nn, name)(4, 5, dtype=kind).fallback_reason(torch.zeros(INPUTS[name], dtype=kind))
    assert ("kernels" if reason is None else "torch") == support()[name][dtype]


def test_no_operator_has_a_cuda_kernel_while_the_table_says_torch():
    operators = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("seqkernels::")]
    assert operators
    on_cuda = [name for name in operators if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")]
    assert not on_cuda and {row["CUDA"] for row in support().values()} == {"torch"}


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_example_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_map_names_what_is_there():
    paths = [re.search(r"`(.+?)`", row[0])[1] for row in table("## Map of the repository")[1:]]
    assert paths and all((ROOT / path).exists() for path in paths)
