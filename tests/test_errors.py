"""Bad input: torch.nn's error types and messages, and no crash inside a kernel."""

import pytest
import torch

import seqkernels
from seqkernels import functional, nn

I, H = 3, 4


def outcome(module, *given):
    """What a call raises, as (type, message), or its result."""
    try:
        return module(*given)
    except Exception as error:  # the point of the comparison is that it may be any
        return type(error), str(error)


def z(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


BAD = {
    "width": (z(2, 2, 5),),
    "four dimensions": (z(2, 2, 2, I),),
    "one dimension": (z(I),),
    "no time": (z(0, 2, I),),
    "double": (z(2, 2, I, dtype=torch.float64),),
    "integers": (z(2, 2, I, dtype=torch.int64),),
    "meta": (z(2, 2, I, device="meta"),),
    "state of another batch": (z(2, 2, I), z(1, 3, H)),
    "state of another width": (z(2, 2, I), z(1, 2, 5)),
    "state of another depth": (z(2, 2, I), z(2, 2, H)),
    "unbatched state": (z(2, 2, I), z(1, H)),
    "batched state": (z(2, I), z(1, 1, H)),
    "state on another device": (z(2, 2, I), z(1, 2, H, device="meta")),
}


@pytest.mark.parametrize("grad", (True, False))
@pytest.mark.parametrize("given", BAD.values(), ids=BAD)
@pytest.mark.parametrize("kind", ("RNN", "LSTM", "GRU"))
def test_errors_are_torchs(kind, given, grad):
    if kind == "LSTM":
        given = tuple((s, s) if i else s for i, s in enumerate(given))
    with torch.set_grad_enabled(grad):
        ours, theirs = outcome(getattr(nn, kind)(I, H), *given), outcome(getattr(torch.nn, kind)(I, H), *given)
    assert isinstance(theirs[0], type)
    assert ours == theirs


@pytest.mark.parametrize("given", BAD.values(), ids=BAD)
def test_sigmoid_has_torchs_errors(given):
    ours = outcome(nn.RNN(I, H, nonlinearity="sigmoid"), *given)
    theirs = outcome(torch.nn.RNN(I, H), *given)
    assert issubclass(ours[0], Exception)
    if "dimensions" in str(theirs) or "size" in str(theirs) or "D" in str(theirs):
        assert ours == theirs


@pytest.mark.parametrize("kind", ("RNNCell", "LSTMCell", "GRUCell"))
def test_cell_errors_are_torchs(kind):
    bad = [(z(2, 5),), (z(2, 2, I),), (z(2, I, dtype=torch.float64),), (z(2, I), z(3, H)), (z(2, I), z(2, 5)), (z(5),)]
    for given in bad:
        if kind == "LSTMCell":
            given = tuple((s, s) if i else s for i, s in enumerate(given))
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                ours, theirs = outcome(getattr(nn, kind)(I, H), *given), outcome(getattr(torch.nn, kind)(I, H), *given)
            assert isinstance(theirs[0], type)
            assert ours == theirs


def test_mixed_states_of_an_lstm():
    lstm, x = nn.LSTM(I, H), z(2, 2, I)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 4\), got \[1, 3, 4\]"):
        lstm(x, (z(1, 2, H), z(1, 3, H)))
    with pytest.raises(RuntimeError, match="same dtype, got input torch.float32 and hx torch.float64"):
        lstm(x, (z(1, 2, H, dtype=torch.float64), z(1, 2, H)))
    with pytest.raises(IndexError):
        lstm(x, (z(1, 2, H),))


def test_state_of_another_dtype_names_it():
    for kind in ("RNN", "GRU"):
        with pytest.raises(RuntimeError, match="same dtype, got input torch.float32 and hx torch.float64"):
            getattr(nn, kind)(I, H)(z(2, 2, I), z(1, 2, H, dtype=torch.float64))
        with pytest.raises(RuntimeError, match="same dtype"):
            getattr(nn, kind + "Cell")(I, H)(z(2, I), z(2, H, dtype=torch.float64))


CONSTRUCTIONS = {
    "hidden_size 0": ((I, 0), {}),
    "float input_size": ((1.5, H), {}),
    "dropout 2": ((I, H), {"dropout": 2}),
    "layers 0": ((I, H, 0), {}),
    "bias 1": ((I, H), {"bias": 1}),
    "no sizes": ((), {}),
}


@pytest.mark.parametrize("args, options", CONSTRUCTIONS.values(), ids=CONSTRUCTIONS)
@pytest.mark.parametrize("kind", ("RNN", "LSTM", "GRU"))
def test_constructors_refuse_as_torchs(kind, args, options):
    ours = outcome(lambda: getattr(nn, kind)(*args, **options))
    assert ours == outcome(lambda: getattr(torch.nn, kind)(*args, **options))
    assert isinstance(ours[0], type)


def test_unknown_nonlinearity():
    with pytest.raises(ValueError, match="'tanh', 'relu' or 'sigmoid'"):
        nn.RNN(I, H, nonlinearity="gelu")
    with pytest.raises(RuntimeError, match="Unknown nonlinearity"):
        nn.RNNCell(I, H, nonlinearity="gelu")(z(1, I))


def test_weights_of_another_shape_do_not_crash():
    """Also when a right one has been packed before, and when the attributes lie."""
    for change in (
        lambda m: setattr(m, "weight_ih_l0", torch.nn.Parameter(z(2, 2))),
        lambda m: setattr(m.weight_hh_l0, "data", z(4, 4)),
        lambda m: setattr(m, "hidden_size", 64),
        lambda m: setattr(m, "bias_ih_l0", torch.nn.Parameter(z(1))),
    ):
        for called in (True, False):
            module = nn.LSTM(I, H)
            with torch.no_grad():
                if called:
                    module(z(2, 2, I))
                change(module)
                with pytest.raises(RuntimeError):
                    module(z(2, 2, I))
    module = nn.GRU(I, H)
    with torch.no_grad():
        module(z(2, 2, I))
        module.input_size = 50
        with pytest.raises(RuntimeError):
            module(z(2, 2, 50))


def test_weights_of_mixed_dtype_do_not_crash():
    module = nn.GRU(I, H)
    module.bias_hh_l0.data = module.bias_hh_l0.data.double()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, ValueError)):
            module(z(2, 2, I))


def test_functions_name_the_argument():
    x, h = z(3, 2, I), z(1, 2, H)
    weights = [z(H, I), z(H, H)]
    cases = {
        "unknown cell": lambda: functional.scan("elman", x, h, None, weights),
        "x must have 3": lambda: functional.scan("gru", x[0], h, None, weights),
        r"weights\[1\] size \(4, 4\)": lambda: functional.scan("rnn_tanh", x, h, None, [weights[0], z(H, 5)]),
        "needs c_0": lambda: functional.scan("lstm", x, h, None, weights),
        "no c": lambda: functional.scan("gru", x, h, h, weights),
        "weights for 1": lambda: functional.scan("rnn_tanh", x, h, None, weights[:1]),
        r"weights\[0\] must have": lambda: functional.scan("rnn_tanh", x, h, None, [weights[0].double(), weights[1]]),
        "lengths must be 2": lambda: functional.scan("rnn_tanh", x, h, None, weights, lengths=torch.ones(3).long()),
        "from 0 to 3": lambda: functional.scan("rnn_tanh", x, h, None, weights, lengths=torch.tensor([1, 4])),
        "reset must be bool": lambda: functional.scan("rnn_tanh", x, h, None, weights, reset=torch.ones(3, 2)),
        "impl must be": lambda: functional.scan("rnn_tanh", x, h, None, weights, impl="cuda"),
        "h must have 2": lambda: functional.step("rnn_tanh", x[0], h, None, weights),
        "larger than 0": lambda: functional.scan("rnn_tanh", x[:0], h, None, weights),
    }
    for message, call in cases.items():
        with pytest.raises((ValueError, RuntimeError), match=message):
            call()


def test_operators_check_before_the_kernel():
    scan, attention = torch.ops.seqkernels.scan, torch.ops.seqkernels.attention
    with pytest.raises(RuntimeError, match="h_0"):
        scan("rnn_tanh", z(3, 2, I), z(1, 5, H), None, [z(H, I), z(H, H)], False, False)
    with pytest.raises(NotImplementedError, match="int"):
        i = torch.int64
        scan(
            "rnn_tanh",
            z(3, 2, I, dtype=i),
            z(1, 2, H, dtype=i),
            None,
            [z(H, I, dtype=i), z(H, H, dtype=i)],
            False,
            False,
        )
    with pytest.raises(RuntimeError, match="do not fit"):
        attention(z(1, 2, 3, 4), z(1, 2, 3, 5), z(1, 2, 3, 4), None, False, None)
    with pytest.raises(RuntimeError, match="attn_mask"):
        attention(*[z(1, 2, 3, 4)] * 3, z(2, 3), False, None)


def test_stream_errors():
    with pytest.raises(TypeError, match="Linear"):
        seqkernels.Stream(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="bidirectional"):
        seqkernels.Stream(nn.LSTM(I, H, bidirectional=True))
    with pytest.raises(ValueError, match="eval"):
        seqkernels.Stream(nn.LSTM(I, H, 2, dropout=0.5))
    stream = seqkernels.Stream(nn.LSTM(I, H))
    for x in (z(2, 5), z(2, 2, I)):
        with pytest.raises(RuntimeError, match="Expected x size"):
            stream(x)
    stream(z(2, I))
    with pytest.raises(RuntimeError, match="reset"):
        stream(z(3, I))
    with pytest.raises(RuntimeError, match="out size"):
        stream(z(2, I), out=z(2, 5))
    with pytest.raises(RuntimeError, match=r"state\[1\] size \(1, 2, 4\), got \[1, 3, 4\]"):
        stream.reset((z(1, 2, H), z(1, 3, H)))
    with pytest.raises(RuntimeError, match=r"state\[0\] size \(1, 2, 4\), got \[2, 2, 4\]"):
        stream.reset((z(2, 2, H), z(2, 2, H)))
    with pytest.raises(RuntimeError, match="2 tensors, got 1"):
        stream.reset((z(1, 2, H),))
    with pytest.raises(ValueError, match=r"state\[0\] must have .* torch.float32, got torch.float64"):
        stream.reset([z(1, 2, H, dtype=torch.float64)] * 2)
    for state in (z(1, 2, H), (z(1, 2, H), None)):
        with pytest.raises(TypeError, match="a pair of tensors"):
            stream.reset(state)
    stream.reset([z(1, 3, H)] * 2)
    with pytest.raises(RuntimeError, match=r"state\[0\]"):
        stream(z(2, I))


def test_not_a_number_flows_through():
    for kind in ("RNN", "LSTM", "GRU"):
        ours, theirs = getattr(nn, kind)(I, H), getattr(torch.nn, kind)(I, H)
        theirs.load_state_dict(ours.state_dict())
        for value in (float("nan"), float("inf"), -float("inf")):
            x = torch.randn(4, 3, I)
            x[1, 1, 0] = value
            with torch.no_grad():
                torch.testing.assert_close(ours(x), theirs(x), equal_nan=True)
