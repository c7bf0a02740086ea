"""Which path a call takes, what `explain` says of it, and that every other path than the kernels' is right."""

import pytest
import torch
from test_errors import outcome
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import seqkernels
from seqkernels import nn

KINDS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
I, H = 5, 33


def pair(kind, dtype=torch.float64):
    """Our module and torch's with the same weights."""
    ours, theirs = (getattr(namespace, kind)(I, H, dtype=dtype) for namespace in (nn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def path(module, *given, **keywords):
    return str(seqkernels.explain(module, *given, **keywords))


def test_explain_names_the_reason():
    x = torch.randn(3, 2, I)
    lstm = nn.LSTM(I, H)
    assert "kernel" in path(lstm, x)
    assert "kernel" in path(lstm, pack_sequence([x[:, 0]]))
    assert "proj_size" in path(nn.LSTM(I, H, proj_size=2), x)
    assert "float16" in path(lstm.half(), x.half())
    assert "float32" in path(lstm, x)
    lstm.float()
    with torch.autocast("cpu"):
        assert "autocast" in path(lstm, x)
    seen = []
    torch.vmap(lambda v: seen.append(path(lstm, v)) or v)(x.unsqueeze(2))
    assert "torch.func" in seen[0]
    assert "device" in path(lstm, x.to("meta"))
    assert "empty" in path(lstm, x[:, :0])
    assert "torch's own module" in path(torch.nn.LSTM(I, H), x)
    attention = nn.MultiheadAttention(8, 2, dropout=0.1)
    q = torch.randn(3, 2, 8)
    assert "dropout" in path(attention, q, q, q)
    assert "gradient" in path(attention.eval(), q, q, q)
    with torch.no_grad():
        assert "kernel" in path(attention, q, q, q)
        assert "add_bias_kv" in path(nn.MultiheadAttention(8, 2, add_bias_kv=True), q, q, q)
    with pytest.raises(TypeError, match="Linear"):
        seqkernels.explain(torch.nn.Linear(1, 1), x)


def test_what_is_no_tensor_gets_torchs_error_from_the_module_and_from_explain():
    q = torch.zeros(3, 2, 8)
    given = [(None,) * 3, (q, None, None), (q, q, 3), (q, q, q, [1]), (q, q, q, None, True, [1])]
    for dropout in (0, 0.1):
        ours, theirs = nn.MultiheadAttention(8, 2, dropout=dropout), torch.nn.MultiheadAttention(8, 2, dropout=dropout)
        for arguments in given:
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    raised = outcome(theirs, *arguments)
                    assert isinstance(raised[0], type)
                    assert outcome(ours, *arguments) == raised
                    assert outcome(seqkernels.explain, ours, *arguments) == raised
    for module, arguments in ((nn.LSTM(I, H), (None,)), (nn.GRU(I, H), (q, 3)), (nn.LSTMCell(I, H), (3,))):
        raised = outcome(module, *arguments)
        assert isinstance(raised[0], type)
        assert outcome(seqkernels.explain, module, *arguments) == raised


FALLBACKS = {
    "packed": lambda m, x: m(pack_sequence([x[:2, 0], x[:, 1]], enforce_sorted=False)),
    "per-sample gradients": lambda m, x: torch.func.grad(lambda v: m(v)[0].sum())(x),
    "forward mode": lambda m, x: torch.func.jvp(lambda v: m(v)[0], (x,), (x,)),
    "jit trace": lambda m, x: torch.jit.trace(m, x)(x),
    "empty batch": lambda m, x: m(x[:, :0]),
}


@pytest.mark.parametrize("call", FALLBACKS.values(), ids=FALLBACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_kernels_do_not_serve_is_torchs(kind, call):
    ours, theirs = pair(kind)
    x = torch.randn(3, 2, I, dtype=torch.float64)
    a, b = call(ours, x), call(theirs, x)
    close(torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b))


@pytest.mark.parametrize("kind", (*KINDS, *CELLS))
def test_fx_keeps_a_module_whole_where_the_tracer_says_so(kind):
    """What README.md says of torch.fx and torch.jit.script."""

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, getattr(nn, kind)) or super().is_leaf_module(module, name)

    model, x = torch.nn.Sequential(pair(kind)[0]), torch.randn(3, I, dtype=torch.float64)
    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    close(traced(x), model(x))
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(model)
    with pytest.raises(RuntimeError, match="seqkernels"):
        torch.jit.script(model)


def test_autocast_is_torchs():
    ours, theirs = pair("GRU", dtype=torch.float32)
    x = torch.randn(3, 2, I)
    with torch.autocast("cpu"):
        a, b = ours(x), theirs(x)
    assert a[0].dtype == b[0].dtype
    torch.testing.assert_close(a, b)


def test_modes_see_the_operator():
    """A dispatch mode is shown one operator a layer, not a result from nowhere."""

    class Names(TorchDispatchMode):
        seen = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen += (str(function),)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Names() as names:
        nn.LSTM(I, H, 2)(torch.randn(3, 2, I))
    assert sum("seqkernels.scan" in name for name in names.seen) == 2


def test_tensors_in_disguise():
    """A negated view has other memory than it shows; a subclass wants to see the call."""
    ours, theirs = pair("LSTM", dtype=torch.float32)
    x = torch.randn(3, 2, I, dtype=torch.complex64)
    with torch.no_grad():
        assert x.conj().imag.is_neg()
        torch.testing.assert_close(ours(x.conj().imag), theirs(x.conj().imag))

        class Counted(torch.Tensor):
            calls = 0

            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                cls.calls += "seqkernels" in str(function)
                return super().__torch_function__(function, types, args, kwargs)

        ours(x.real.as_subclass(Counted))
    assert Counted.calls


def test_inference_mode():
    ours, theirs = pair("LSTM")
    x = torch.randn(3, 2, I, dtype=torch.float64)
    with torch.inference_mode():
        y, (h, c) = ours(x)
        close((y, (h, c)), theirs(x))
    with torch.inference_mode():
        inside = nn.GRU(I, H, dtype=torch.float64)
        before = inside(x)[0].clone()
        inside.weight_hh_l0.mul_(2)
        assert not torch.equal(inside(x)[0], before)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("kind", (*KINDS, *CELLS))
def test_vmap_is_a_loop(kind):
    """torch's own operators have no batching rule: these run in plain operators, per-sample gradients included."""
    module = getattr(nn, kind)(I, H, dtype=torch.float64)
    x = torch.randn(3, 2, I, dtype=torch.float64)

    def loss(weights, row):
        out = torch.func.functional_call(module, weights, row)
        return sum(t.sin().sum() for t in torch.utils._pytree.tree_leaves(out))

    weights = {name: p.detach() for name, p in module.named_parameters()}
    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for b, row in enumerate(x):
        one = torch.func.grad(loss)(weights, row)
        for name in weights:
            close(per_sample[name][b], one[name])


MASKS = ("none", "bool", "float", "per head", "padding", "bool and padding", "everything hidden")


@pytest.mark.parametrize("need_weights, average", ((False, True), (True, True), (True, False)))
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", ("batch_first", "time_first", "unbatched"))
def test_multihead_attention_is_torchs(layout, mask, need_weights, average):
    options = {"batch_first": layout == "batch_first", "kdim": 6 if mask == "float" else None}
    ours, theirs = (
        m(8, 2, **options, dtype=torch.float64) for m in (nn.MultiheadAttention, torch.nn.MultiheadAttention)
    )
    theirs.load_state_dict(ours.state_dict())
    B, T, S = 1 if layout == "unbatched" else 3, 5, 7
    q, k, v = (torch.randn(B, n, e, dtype=torch.float64) for n, e in ((T, 8), (S, options["kdim"] or 8), (S, 8)))
    padding = torch.rand(B, S) < 0.3 if "padding" in mask else None
    masks = {
        "float": torch.randn(T, S, dtype=torch.float64),
        "per head": torch.randn(2 * B, T, S, dtype=torch.float64),
        "everything hidden": torch.ones(T, S, dtype=torch.bool),
    }
    attn_mask = torch.rand(T, S) < 0.3 if "bool" in mask else masks.get(mask)
    if layout == "unbatched":
        q, k, v, padding = q[0], k[0], v[0], None if padding is None else padding[0]
    elif layout == "time_first":
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    given = (q, k, v, padding, need_weights, attn_mask, average)
    with torch.no_grad():
        assert seqkernels.explain(ours, *given).path == "kernel"
        torch.testing.assert_close(ours(*given), theirs(*given), equal_nan=True)


@pytest.mark.parametrize("batch_first", (True, False))
@pytest.mark.parametrize("training", (True, False))
def test_a_query_that_sees_no_key_is_zero_in_every_mode(training, batch_first):
    """Without weights; torch's fast path in eval mode has NaN."""
    module, x = nn.MultiheadAttention(8, 2, batch_first=batch_first).train(training), torch.randn(2, 2, 8)
    torch.nn.init.normal_(module.out_proj.bias)
    hidden = torch.ones(2, 2, dtype=torch.bool)
    for masks in ({"key_padding_mask": hidden}, {"attn_mask": hidden}):
        with torch.no_grad():
            y, _ = module(x, x, x, need_weights=False, **masks)
            torch.testing.assert_close(y, module.out_proj.bias.expand_as(y))


@pytest.mark.parametrize("need_weights", (False, True))
def test_causal_hint(need_weights):
    ours, theirs = (m(8, 2, batch_first=True) for m in (nn.MultiheadAttention, torch.nn.MultiheadAttention))
    theirs.load_state_dict(ours.state_dict())
    x, mask = torch.randn(2, 6, 8), torch.nn.Transformer.generate_square_subsequent_mask(6)
    with torch.no_grad():
        results = [m.eval()(x, x, x, None, need_weights, mask, is_causal=True) for m in (ours, theirs)]
        torch.testing.assert_close(*results)
        with pytest.raises(RuntimeError, match="Need attn_mask"):
            ours.train()(x, x, x, is_causal=True)
