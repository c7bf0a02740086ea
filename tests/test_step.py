"""Single steps: a module keeps how it took the last one, and takes it so again only where nothing else is meant."""

import copy
from itertools import product

import pytest
import torch
from torch.overrides import TorchFunctionMode

from seqkernels import nn

I, H = 5, 33
MODULES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
kinds = pytest.mark.parametrize("kind", MODULES)


def pair(kind, **options):
    """Our module and torch's with the same weights."""
    ours, theirs = (getattr(namespace, kind)(I, H, **options) for namespace in (nn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def given(kind, shape, dtype=torch.float32):
    """x, and a state for it, for a single step; shape: of x without I, for a layer its batch."""
    cell = kind.endswith("Cell")
    state = shape if cell else (1, *shape)
    x = torch.randn(*(shape if cell else (1, *shape)), I, dtype=dtype)
    h, c = torch.randn(2, *state, H, dtype=dtype)
    return x, (h.clone(), c.clone()) if "LSTM" in kind else h.clone()


def leaves(result):
    return torch.utils._pytree.tree_leaves(result)


def agree(ours, theirs, *arguments):
    """The first call makes a plan, the second follows it."""
    for _ in range(2):
        torch.testing.assert_close(ours(*arguments), theirs(*arguments))


@kinds
@pytest.mark.parametrize("options", ({}, {"bias": False}, {"dtype": torch.float64}), ids=str)
def test_every_form_of_a_step(kind, options):
    ours, theirs = pair(kind, **options)
    with torch.no_grad():
        for shape in ((), (1,), (2,), (7,), (15,), (16,), (40,), (2,)):
            x, hx = given(kind, shape, options.get("dtype", torch.float32))
            agree(ours, theirs, x, hx)
            agree(ours, theirs, x)
            agree(ours, theirs, x[..., :0].new_zeros(*x.shape[:-1], 2 * I)[..., ::2], hx)
            if "LSTM" in kind:
                agree(ours, theirs, x, (hx[0], hx[0]))
                torch.testing.assert_close(ours(x, list(hx)), theirs(x, hx))


@pytest.mark.parametrize("kind", MODULES[:3])
@pytest.mark.parametrize("options", ({"batch_first": True}, {"num_layers": 2}, {"bidirectional": True}), ids=str)
def test_layers_with_one_step(kind, options):
    ours, theirs = pair(kind, **options)
    shape = (3, 1, I) if "batch_first" in options else (1, 3, I)
    with torch.no_grad():
        agree(ours, theirs, torch.randn(shape))


@kinds
def test_states_and_rows_that_are_not_dense(kind):
    ours, theirs = pair(kind)
    x, hx = given(kind, (4,))
    wide = torch.randn(*x.shape[:-1], 3 * I)[..., I : 2 * I]
    spread = [torch.stack([s, s], -1)[..., 0] for s in leaves(hx)]
    with torch.no_grad():
        agree(ours, theirs, wide, hx)
        agree(ours, theirs, x, tuple(spread) if "LSTM" in kind else spread[0])


@kinds
def test_results_are_the_callers_own(kind):
    """A later step changes no earlier result, and no two results share memory."""
    ours = pair(kind)[0]
    x, hx = given(kind, (2,))
    with torch.no_grad():
        ours(x, hx)
        first, second = leaves(ours(x, hx)), leaves(ours(2 * x, hx))
        kept = [t.clone() for t in first]
        for t in second:
            t.zero_()
        assert all(map(torch.equal, first, kept))
        for t in first[1:]:
            t.zero_()
        assert torch.equal(first[0], kept[0])


@kinds
def test_a_step_that_records_a_gradient_is_no_plain_one(kind):
    ours, theirs = pair(kind, dtype=torch.float64)
    x, hx = given(kind, (2,), torch.float64)
    with torch.no_grad():
        agree(ours, theirs, x, hx)
    for module in (ours, theirs):
        sum(t.sum() for t in leaves(module(x, hx))).backward()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    for p in (*ours.parameters(), *theirs.parameters()):
        p.requires_grad_(False)
    agree(ours, theirs, x, hx)
    assert not leaves(ours(x, hx))[0].requires_grad
    next(ours.parameters()).requires_grad_()
    assert leaves(ours(x, hx))[0].requires_grad
    assert leaves(ours(x.clone().requires_grad_(), hx))[0].requires_grad


@kinds
def test_other_weights_are_other_steps(kind):
    ours, theirs = pair(kind)
    x, hx = given(kind, (2,))
    with torch.no_grad():
        agree(ours, theirs, x, hx)
        for name, p in theirs.named_parameters():
            p.mul_(1.5)
            setattr(ours, name, torch.nn.Parameter(p.clone()))
            agree(ours, theirs, x, hx)
        substitutes = {name: torch.randn_like(p) for name, p in theirs.named_parameters()}
        before = ours(x, hx)
        swapped = torch.func.functional_call(ours, substitutes, (x, hx))
        torch.testing.assert_close(ours(x, hx), before)
        theirs.load_state_dict(substitutes)
        torch.testing.assert_close(swapped, theirs(x, hx))
        ours.load_state_dict(substitutes)
        agree(ours, theirs, x, hx)
        torch.testing.assert_close(copy.deepcopy(ours)(x, hx), theirs(x, hx))


@kinds
def test_who_asks_to_see_the_call_sees_it(kind):
    """Function modes, wrong arguments, and inference mode switched on and off."""
    ours, theirs = pair(kind)
    x, hx = given(kind, (2,))

    class Seen(TorchFunctionMode):
        names = ()

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.names += (str(function),)
            return function(*args, **(kwargs or {}))

    with torch.no_grad():
        agree(ours, theirs, x, hx)
        with Seen() as seen:
            ours(x, hx)
        assert any("seqkernels" in name for name in seen.names)
        for wrong in ((x[..., 1:], hx), (x.double(), hx), (x, leaves(hx)[0][..., 1:]), (None, hx), (x, 3)):
            raised = []
            for module in (ours, theirs):
                with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError, IndexError)) as error:
                    module(*wrong)
                raised.append(error.type)
            assert raised[0] is raised[1]
        agree(ours, theirs, x, hx)
    for mode, again in product((torch.inference_mode, torch.no_grad), repeat=2):
        with mode():
            agree(ours, theirs, x, hx)
        with again():
            agree(ours, theirs, x)
