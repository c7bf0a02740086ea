"""Weights kept in fewer bytes for calls without a gradient: the same as float32 weights that were rounded so."""

import copy
import math

import pytest
import torch
import without_dots
from agreement import assert_agree

from seqkernels import Stream, nn

FORMS = ("bfloat16", "int8")
# T, B, I, H, options of the module
SHAPES = {
    "odd": (5, 3, 7, 33, {"bidirectional": True}),
    "layers": (4, 20, 65, 130, {"num_layers": 2, "bias": False}),
    "row": (70, 1, 33, 40, {"batch_first": True}),
    "step": (1, 2, 9, 70, {}),
    "wide": (1, 40, 30, 20, {}),
    "long": (2, 2, 1100, 18, {}),  # more elements than rows are cut into digits at a time
    "long step": (1, 1, 1030, 18, {}),
}
kinds = pytest.mark.parametrize(
    "kind", ("LSTM", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("GRU", "RNN")))
)
forms = pytest.mark.parametrize("form", FORMS)


def rounded(weight, form):
    """The values that a form can hold."""
    if weight.dim() == 1:
        return weight
    if form == "bfloat16":
        return weight.bfloat16().float()
    scales = weight.abs().amax(1, keepdim=True) / 127
    return torch.where(scales > 0, (weight / scales).round() * scales, 0)


def copied(module, form):
    """torch's module of the same kind with rounded weights."""
    theirs = getattr(torch.nn, type(module).__name__)
    options = {name: getattr(module, name) for name in ("num_layers", "batch_first", "bidirectional", "bias")}
    theirs = theirs(module.input_size, module.hidden_size, **options)
    theirs.load_state_dict({name: rounded(weight, form) for name, weight in module.state_dict().items()})
    return theirs


def leaves(result):
    return {str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(result))}


@kinds
@forms
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_same_as_rounded_weights(kind, form, shape):
    T, B, I, H, options = shape
    module = getattr(nn, kind)(I, H, **options)
    module.weight_format = form
    theirs = copied(module, form)
    x = torch.randn((B, T, I) if options.get("batch_first") else (T, B, I))
    with torch.no_grad():
        exact = leaves(copy.deepcopy(theirs).double()(x.double()))
        for _ in range(2):
            assert_agree(leaves(module(x)), exact, leaves(theirs(x)))


@kinds
@forms
def test_cells_and_streams(kind, form):
    module, cell = getattr(nn, kind)(9, 33), getattr(nn, f"{kind}Cell")(9, 33)
    cell.load_state_dict({name[:-3]: value for name, value in module.state_dict().items()})
    module.weight_format = cell.weight_format = form
    x, stream, state = torch.randn(4, 3, 9), Stream(module), None
    with torch.no_grad():
        y = module(x)[0]
        for t in range(4):
            state = cell(x[t], state)
            torch.testing.assert_close(stream(x[t]), y[t])
            torch.testing.assert_close(state[0] if kind == "LSTM" else state, y[t])


@forms
def test_a_gradient_is_that_of_the_weights_as_they_are(form):
    module, x = nn.GRU(5, 20), torch.randn(4, 2, 5)
    plain = module(x)[0]
    module.weight_format = form
    assert torch.equal(module(x)[0], plain)
    with torch.no_grad():
        assert not torch.equal(module(x)[0], plain)
        module.weight_format = None
        torch.testing.assert_close(module(x)[0], plain)


@forms
def test_changed_weights_are_packed_again(form):
    module, x = nn.LSTM(5, 20), torch.randn(4, 2, 5)
    module.weight_format = form
    with torch.no_grad():
        before = module(x)[0]
        module.weight_hh_l0.mul_(2)
        assert not torch.equal(module(x)[0], before)
        module.weight_hh_l0.data.mul_(0.5)
        torch.testing.assert_close(module(x)[0], before)


def test_rows_of_zeros_and_what_is_not_finite():
    """A row of zeros is zeros; one with a NaN or an infinity is NaN."""
    module = nn.RNN(3, 20, bias=False, nonlinearity="relu")
    module.weight_format = "int8"
    with torch.no_grad():
        module.weight_ih_l0[0] = 0
        module.weight_hh_l0.zero_()
        y = module(torch.ones(1, 1, 3))[0][0, 0]
        assert y[0] == 0 and y[1:].isfinite().all()
        module.weight_ih_l0[3, 1], module.weight_ih_l0[5, 0] = math.nan, math.inf
        y = module(torch.ones(1, 1, 3))[0][0, 0]
        assert y.isnan().nonzero().flatten().tolist() == [3, 5]


@forms
def test_an_input_that_is_not_finite_touches_its_row_alone(form):
    module = nn.LSTM(20, 33)
    module.weight_format = form
    x = torch.randn(3, 3, 20)
    with torch.no_grad():
        finite = module(x)[0]
        x[1, 0, 7], x[1, 2, 19] = math.nan, -math.inf
        y = module(x)[0]
    assert y[1:, 0].isnan().all() and torch.equal(y[:, 1], finite[:, 1]) and torch.equal(y[0], finite[0])
    assert y[:, 2].isfinite().all()


@without_dots.features_and_tests(None, "not without and LSTM", "not without and not refused")
def test_without_the_instructions(features, chosen, kernel_environment):
    without_dots.run(__file__, features, chosen, kernel_environment)


def test_what_is_refused():
    module = nn.LSTM(5, 20)
    with pytest.raises(ValueError, match="weight_format must be None, 'bfloat16' or 'int8', got 'int4'"):
        module.weight_format = "int4"
    module.double().weight_format = "int8"
    with torch.no_grad(), pytest.raises(ValueError, match="for float32 weights, got torch.float64"):
        module(torch.zeros(2, 2, 5).double())
    module = nn.RNN(65537, 2)
    module.weight_format = "int8"
    with torch.no_grad(), pytest.raises(ValueError, match="sizes of up to 65536, got 65537"):
        module(torch.zeros(2, 2, 65537))


def test_it_is_copied_and_shown():
    module = nn.GRU(5, 20)
    module.weight_format = "int8"
    assert copy.deepcopy(module).weight_format == "int8"
    assert "weight_format='int8'" in repr(module)
