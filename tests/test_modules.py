"""Drop-in parity with torch.nn: results, gradients, state dicts, pickles, parametrizations; which path a call takes."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence

import seqkernels
from seqkernels import nn

KINDS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
OPTIONS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "deep both ways": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False, "num_layers": 2, "batch_first": True},
}
I, H = 5, 33


def pair(kind, *args, dtype=torch.float64, **options):
    """Our module and torch's with the same weights."""
    ours = getattr(nn, kind)(*(args or (I, H)), **options, dtype=dtype)
    theirs = getattr(torch.nn, kind)(*(args or (I, H)), **options, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def states_like(out):
    return tuple(torch.randn_like(s) for s in out) if isinstance(out, tuple) else torch.randn_like(out)


def gradients(module, out, inputs):
    flat = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    wanted = [t for t in [*torch.utils._pytree.tree_leaves(inputs), *module.parameters()] if t.requires_grad]
    return torch.autograd.grad(sum((i + 1) * t.sin().sum() for i, t in enumerate(flat)), wanted)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def assert_same(ours, theirs, given):
    """Results and gradients, and on the kernels without one."""
    a, b = ours(*given), theirs(*given)
    close(a, b)
    close(gradients(ours, a, given), gradients(theirs, b, given))
    with torch.no_grad():
        close(ours(*given), b)
        assert seqkernels.explain(ours, *given).path == "kernel"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_are_torchs(kind, options):
    ours, theirs = pair(kind, **options)
    for shape in ((3, 2, I), (1, 1, I), (63, I)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        expected = theirs(x)
        close(ours(x), expected)
        hx = states_like(expected[1])
        for state in (hx, None):
            assert_same(ours, theirs, (x,) if state is None else (x, state))


@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_torchs(kind):
    for bias in (True, False):
        ours, theirs = pair(kind, bias=bias)
        for shape in ((3, I), (20, I), (I,)):
            x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
            hx = states_like(theirs(x))
            for given in ((x,), (x, hx)):
                assert_same(ours, theirs, given)


@pytest.mark.parametrize("kind", KINDS)
def test_views_and_float32(kind):
    """Inputs that are not dense, states that are not contiguous."""
    ours, theirs = pair(kind, dtype=torch.float32)
    x = torch.randn(I, 7, 4).permute(2, 1, 0)
    state = torch.randn(7, 1, H).transpose(0, 1)
    hx = (state, state) if kind == "LSTM" else state
    for given in ((x,), (x[::2],), (x[:, ::3],), (torch.randn(1, 7, I).expand(4, 7, I),), (x, hx)):
        with torch.no_grad():
            torch.testing.assert_close(ours(*given), theirs(*given))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_final_states_only(kind):
    ours, theirs = pair(kind)
    x = torch.randn(4, 2, I, dtype=torch.float64, requires_grad=True)
    close(gradients(ours, ours(x)[1], x), gradients(theirs, theirs(x)[1], x))


def test_dropout_between_layers():
    """Same seed, same masks as torch, whose layers drop out the same tensors in the same order."""
    ours, theirs = pair("LSTM", num_layers=3, dropout=0.5)
    x = torch.randn(4, 2, I, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        results.append(module(x))
    close(*results)
    with torch.no_grad():
        torch.manual_seed(1)
        close(ours(x), results[1])
    close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("kind", (*KINDS, *CELLS, "MultiheadAttention"))
def test_construction_and_persistence(kind):
    args = (8, 2) if kind == "MultiheadAttention" else (I, H)
    ours, theirs = pair(kind, *args)
    assert isinstance(ours, getattr(torch.nn, kind))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 2, args[0], dtype=torch.float64) if kind not in CELLS else torch.randn(2, I, dtype=torch.float64)
    given = (x, x, x) if kind == "MultiheadAttention" else (x,)
    with torch.no_grad():
        expected = ours(*given)
        for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), ours.to(torch.float64)):
            close(copied(*given), expected)
    assert "_packed" not in "".join(vars(ours))


def test_sigmoid_rnn():
    """torch has no such module: its equation, in every path."""
    for args, options in (((I, H, 2, "sigmoid"), {}), ((I, H, 2), {"nonlinearity": "sigmoid"})):
        module = nn.RNN(*args, **options, bidirectional=True, dtype=torch.float64)
        assert "sigmoid" in repr(module)
    x = torch.randn(4, 3, I, dtype=torch.float64)
    y, h_n = module(x)
    state, first = torch.zeros(3, H, dtype=torch.float64), []
    for t in range(4):
        state = torch.sigmoid(
            x[t] @ module.weight_ih_l0.T + module.bias_ih_l0 + state @ module.weight_hh_l0.T + module.bias_hh_l0
        )
        first.append(state)
    close(h_n[0], state)
    packed, h_packed = module(pack_sequence([x[:2, 0], x[:, 1], x[:4, 2]], enforce_sorted=False))
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)
    assert lengths.tolist() == [2, 4, 4]
    close(padded[:, 1:], y[:, 1:])
    close(h_packed[:, 1:], h_n[:, 1:])
    close(padded[:2, 0], module(x[:2, 0])[0])
    close(torch.vmap(module)(x.unsqueeze(2))[0], torch.stack([module(row)[0] for row in x.unsqueeze(2)]))
    cell = nn.RNNCell(I, H, nonlinearity="sigmoid", dtype=torch.float64)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in module.state_dict().items() if k.endswith("l0")})
    close(cell(x[0]), first[0])
    close(torch.vmap(cell)(x[0]), first[0])


@pytest.mark.parametrize("kind", KINDS)
def test_learned_initial_state(kind):
    ours = getattr(nn, kind)(I, H, 2, bidirectional=True, learn_initial_state=True, dtype=torch.float64)
    theirs = getattr(torch.nn, kind)(I, H, 2, bidirectional=True, dtype=torch.float64)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k not in ("h_0", "c_0")})
    x = torch.randn(3, 4, I, dtype=torch.float64)
    close(ours(x), theirs(x))
    names = ("h_0", "c_0") if kind == "LSTM" else ("h_0",)
    for name in names:
        torch.nn.init.normal_(getattr(ours, name))
    states = [getattr(ours, name).unsqueeze(1).expand(-1, 4, -1) for name in names]
    close(ours(x), theirs(x, tuple(states) if kind == "LSTM" else states[0]))
    with torch.no_grad():
        close(ours(x), theirs(x, tuple(s.contiguous() for s in states) if kind == "LSTM" else states[0].contiguous()))
    ours(x)[0].sum().backward()
    assert all(getattr(ours, name).grad.abs().sum() > 0 for name in names)
    assert ours(x[:, 0])[0].shape == (3, 2 * H)
    ours.reset_parameters()
    assert not ours.h_0.any()


@pytest.mark.parametrize(
    "wrap", (parametrizations.weight_norm, parametrizations.spectral_norm, torch.nn.utils.weight_norm)
)
def test_parametrized_weights(wrap):
    ours, theirs = pair("LSTM")
    torch.manual_seed(0)
    ours = wrap(ours, "weight_hh_l0")
    torch.manual_seed(0)
    theirs = wrap(theirs, "weight_hh_l0")
    ours.eval(), theirs.eval()
    x = torch.randn(4, 2, I, dtype=torch.float64, requires_grad=True)
    a, b = ours(x), theirs(x)
    close(a, b)
    close(gradients(ours, a, x), gradients(theirs, b, x))
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters()):
            p.mul_(1.5), q.mul_(1.5)
        close(ours(x), theirs(x))


def test_changed_weights_are_seen():
    """The packed form is renewed however a weight changes."""
    ours, theirs = pair("GRU")
    x = torch.randn(3, 2, I, dtype=torch.float64)
    changes = (
        lambda m: m.weight_hh_l0.mul_(2),
        lambda m: m.weight_hh_l0.data.mul_(0.5),
        lambda m: setattr(m.weight_ih_l0, "data", m.weight_ih_l0.data * 2),
        lambda m: setattr(m, "bias_ih_l0", torch.nn.Parameter(m.bias_ih_l0 + 1)),
    )
    with torch.no_grad():
        for change in changes:
            ours(x)
            change(ours), change(theirs)
            close(ours(x), theirs(x))
        swapped = {k: v * 2 for k, v in ours.named_parameters()}
        close(torch.func.functional_call(ours, swapped, x), torch.func.functional_call(theirs, swapped, x))
        close(ours(x), theirs(x))


def test_every_name_of_torch_nn():
    missing = [name for name in dir(torch.nn) if not hasattr(nn, name)]
    assert not missing
    assert nn.Linear is torch.nn.Linear
    assert nn.functional is torch.nn.functional
    namespace = {}
    exec("from seqkernels.nn import *", namespace)
    assert namespace["LSTM"] is nn.LSTM
