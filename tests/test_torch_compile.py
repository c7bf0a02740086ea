"""torch.compile(fullgraph=True) and torch.export: one operator a layer, a graph whose size does not know T, and torch's
own modules treated as before. aot_eager everywhere; Inductor where a C++ compiler is found."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from seqkernels import nn

I, H = 4, 6
COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))
KINDS = ("RNN", "LSTM", "GRU")


class Model(torch.nn.Module):
    """A recurrent module between two of torch's."""

    def __init__(self, recurrent):
        super().__init__()
        self.first, self.recurrent, self.last = torch.nn.Linear(I, I), recurrent, torch.nn.Linear(H, 2)

    def forward(self, x):
        return self.last(self.recurrent(self.first(x).relu())[0])


class Subclass(nn.LSTM):
    """A user's own."""

    def forward(self, input, hx=None):
        return super().forward(input.tanh(), hx)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counting(graphs):
    """A backend that records the forward and backward graphs."""

    def compiler(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)


def leaves(out):
    return [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]


def agrees(module, *inputs, backend="aot_eager"):
    """The compiled module gives the eager one's results and gradients."""
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    results = []
    for run in (module, compiled):
        out = leaves(run(*inputs))
        grads = torch.autograd.grad(sum(t.sin().sum() for t in out), [*module.parameters()])
        results.append((out, grads))
    torch.testing.assert_close(results[1], results[0])
    with torch.no_grad():
        torch.testing.assert_close(leaves(compiled(*inputs)), leaves(module(*inputs)))


@pytest.mark.parametrize("root", (True, False), ids=("root", "submodule"))
@pytest.mark.parametrize("kind", KINDS)
def test_fullgraph(kind, root):
    recurrent = getattr(nn, kind)(I, H, 2)
    agrees(recurrent if root else Model(recurrent), torch.randn(3, 2, I))


@pytest.mark.parametrize("kind", ("RNNCell", "LSTMCell", "GRUCell"))
def test_cells(kind):
    agrees(getattr(nn, kind)(I, H), torch.randn(2, I))


def test_variants():
    x = torch.randn(3, 2, I)
    agrees(Subclass(I, H), x)
    agrees(nn.LSTM(I, H, bidirectional=True, batch_first=True, learn_initial_state=True), x)
    agrees(nn.RNN(I, H, nonlinearity="sigmoid"), x, torch.randn(1, 2, H))
    agrees(nn.GRU(I, H), x[:, 0])
    agrees(nn.GRU(I, H, recompute=True), x)


def test_attention():
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    graphs = []
    compiled = torch.compile(module, fullgraph=True, backend=counting(graphs))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, x, x), module(x, x, x))
    assert "seqkernels.attention" in graphs[0].code
    agrees(torch.nn.Sequential(torch.nn.Linear(8, 8), SelfAttention(module)), x)


class SelfAttention(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x, x, x)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_one_operator_a_layer_and_no_word_of_T(kind):
    sizes = []
    for T in (2, 50):
        torch._dynamo.reset()
        graphs = []
        module = Model(getattr(nn, kind)(I, H, 3))
        torch.compile(module, fullgraph=True, backend=counting(graphs))(torch.randn(T, 2, I)).sum().backward()
        forward, backward = graphs
        assert forward.code.count("torch.ops.seqkernels.scan.default") == 3
        assert backward.code.count("torch.ops.seqkernels.scan_backward.default") == 3
        assert "aten.lstm" not in forward.code
        sizes.append([len(g.graph.nodes) for g in graphs])
    assert sizes[0] == sizes[1]


def test_a_new_length_compiles_once_more_only():
    graphs = []
    module = Model(nn.LSTM(I, H))
    compiled = torch.compile(module, fullgraph=True, backend=counting(graphs))
    with torch.no_grad():
        for T in (3, 5, 7, 11, 100):
            x = torch.randn(T, 2, I)
            torch.testing.assert_close(compiled(x), module(x))
    assert len(graphs) == 2


@pytest.mark.parametrize("strict", (True, False))
def test_export_with_any_length(strict):
    module = Model(nn.LSTM(I, H, batch_first=True)).eval()
    T = torch.export.Dim("T", min=2, max=1000)
    program = torch.export.export(module, (torch.randn(2, 3, I),), dynamic_shapes=({1: T},), strict=strict)
    x = torch.randn(2, 20, I)
    torch.testing.assert_close(program.module()(x), module(x))
    assert program.graph_module.code.count("seqkernels.scan") == 1


def test_torchs_modules_are_refused_as_before():
    """And the user's setting is what it was; the rule holds whichever is imported first."""
    assert torch._dynamo.config.allow_rnn is False
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(Model(torch.nn.LSTM(I, H)), fullgraph=True, backend="eager")(torch.randn(3, 2, I))
    agrees(nn.GRU(I, H), torch.randn(3, 2, I))
    assert torch._dynamo.config.allow_rnn is False


@pytest.mark.parametrize("first", ("torch._dynamo", "seqkernels.nn"))
def test_either_import_first(first):
    program = (
        f"import torch, {first}; from seqkernels import nn; "
        "m = torch.compile(nn.LSTM(2, 3), fullgraph=True, backend='eager'); print(m(torch.randn(2, 1, 2))[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "[2, 1, 3]" in done.stdout


def test_what_kernels_do_not_serve_still_compiles():
    """Autocast goes to torch's implementation, which Dynamo traces for these modules."""
    module = Model(nn.GRU(I, H))
    x = torch.randn(3, 2, I)
    compiled = torch.compile(module, backend="aot_eager")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), module(x), rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not COMPILER, reason="Inductor needs a C++ compiler, none is found")
@pytest.mark.parametrize("kind", KINDS)
def test_inductor(kind):
    agrees(Model(getattr(nn, kind)(I, H)), torch.randn(3, 2, I), backend="inductor")
