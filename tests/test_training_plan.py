"""Calls of a module with a gradient, from the second of a kind on: found again when alike, and only then."""

import copy
import pickle

import pytest
import torch

from seqkernels import nn

KINDS = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


def make(kind, **options):
    torch.manual_seed(0)
    ours, theirs = (getattr(library, kind)(5, 33, **options) for library in (nn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def inputs(kind, B=3, T=7, requires_grad=True, seed=0):
    torch.manual_seed(seed)
    steps, lead = ((), ()) if kind.endswith("Cell") else ((T,), (1,))
    x = torch.randn(*steps, B, 5, requires_grad=requires_grad)
    states = [torch.randn(*lead, B, 33, requires_grad=requires_grad) for _ in range(1 + kind.startswith("LSTM"))]
    return x, states


def run(module, x, states, scale=1.0):
    """(outputs, gradients of x, the states and the parameters), the inputs being taken anew."""
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in (x, *states)]
    hx = tuple(leaves[1:]) if len(states) == 2 else leaves[1] if states else None
    module.zero_grad()
    outputs = flat(module(leaves[0], hx))
    sum((o * scale).sin().sum() for o in outputs).backward()
    return [o.detach() for o in outputs], [t.grad for t in (*leaves, *module.parameters())]


def flat(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else [t for part in outputs for t in flat(part)]


def check(ours, theirs, *given):
    for mine, wanted in zip(run(ours, *given), run(theirs, *given)):
        for a, b in zip(mine, wanted, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def plans(module):
    return () if module._training_plans is None else module._training_plans._plans


@pytest.mark.parametrize("kind", KINDS)
def test_calls_alike_are_planned_once_and_agree(kind):
    ours, theirs = make(kind)
    for seed in range(4):
        check(ours, theirs, *inputs(kind, seed=seed))
        assert len(plans(ours)) == 1
    check(ours, theirs, inputs(kind)[0], [])  # zero states
    check(ours, theirs, inputs(kind)[0], [])
    assert len(plans(ours)) == 2


@pytest.mark.parametrize("kind", ("LSTM", "GRUCell"))
def test_other_calls_are_not_taken_for_it(kind):
    ours, theirs = make(kind)
    for _ in range(2):
        for B in (3, 1, 17):
            check(ours, theirs, *inputs(kind, B=B))
        check(ours, theirs, *inputs(kind, requires_grad=False))
        wide = torch.randn(*inputs(kind)[0].shape[:-1], 10)
        check(ours, theirs, wide[..., ::2], inputs(kind)[1])
        if kind == "LSTM":
            check(ours, theirs, *inputs(kind, T=1))
    assert len(plans(ours)) == 4  # the last few
    with torch.no_grad():
        assert not any(o.requires_grad for o in flat(ours(inputs(kind)[0])))


@pytest.mark.parametrize("kind", ("RNN", "LSTMCell"))
def test_weights_may_change_in_every_way(kind):
    ours, theirs = make(kind)
    given = inputs(kind)

    def both(change):
        for module in (ours, theirs):
            with torch.no_grad():
                change(module)
        check(ours, theirs, *given)
        check(ours, theirs, *given)

    name = "weight_hh_l0" if kind == "RNN" else "weight_hh"
    both(lambda m: None)
    both(lambda m: getattr(m, name).mul_(0.5))
    both(lambda m: getattr(m, name).data.mul_(0.5))
    both(lambda m: getattr(m, name).set_(getattr(m, name) * 3))
    both(lambda m: setattr(m, name, torch.nn.Parameter(getattr(m, name) * 2)))
    both(lambda m: getattr(m, name).requires_grad_(False))
    both(lambda m: m.requires_grad_(False))


@pytest.mark.parametrize("kind", ("LSTM", "RNNCell"))
def test_a_weight_of_another_shape_is_refused(kind):
    ours, _ = make(kind)
    given = inputs(kind)
    run(ours, *given)
    name = "weight_hh_l0" if kind == "LSTM" else "weight_hh"
    weight = getattr(ours, name)
    setattr(ours, name, torch.nn.Parameter(torch.randn(weight.shape[0], 32)))
    with pytest.raises(RuntimeError):
        run(ours, *given)


def test_a_loop_of_a_cell_keeps_its_plans_and_packs_once():
    from seqkernels.ops import packing

    ours, theirs = make("LSTMCell")
    x = torch.randn(20, 3, 5)

    def loop(cell):
        cell.zero_grad()
        state, total = None, 0
        for x_t in x:
            state = cell(x_t, state)
            total = total + state[0].sin().sum()
        total.backward()
        return [p.grad for p in cell.parameters()]

    loop(ours)
    before = packing.pack_count()
    mine, wanted = loop(ours), loop(theirs)
    assert packing.pack_count() == before
    assert len(plans(ours)) == 2  # the first step's state needs no gradient
    for a, b in zip(mine, wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ("LSTM", "GRUCell"))
def test_second_gradients_of_a_planned_call(kind):
    ours, theirs = (module.double() for module in make(kind))
    x, states = inputs(kind)
    results = []
    for module in (ours, ours, theirs):
        leaf = x.detach().double().requires_grad_()
        hx = [s.detach().double() for s in states]
        y = flat(module(leaf, tuple(hx) if len(hx) == 2 else hx[0]))[0]
        (first,) = torch.autograd.grad(y.sin().sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), [leaf, *module.parameters()]))
    for mine in results[:2]:
        for a, b in zip(mine, results[2]):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ("GRU", "LSTMCell"))
def test_outputs_may_be_written_to(kind):
    """Dropout in place and the like: an output is nobody's view, and what the backward needs lies elsewhere."""
    results = []
    for module in make(kind):
        for _ in range(2):
            x, states = inputs(kind)
            outputs = flat(module(x, tuple(states) if len(states) == 2 else states[0]))
            for o in outputs:
                o.mul_(2)
            module.zero_grad()
            sum(o.sin().sum() for o in outputs).backward()
            results.append([x.grad, *(p.grad.clone() for p in module.parameters())])
    for mine in results[:2]:
        for a, b in zip(mine, results[2]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("again", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))))
def test_copies_have_no_plan(again):
    ours, theirs = make("LSTM")
    check(ours, theirs, *inputs("LSTM"))
    other = again(ours)
    assert plans(other) == ()
    check(other, theirs, *inputs("LSTM"))


def test_bfloat16_is_planned():
    ours, theirs = (module.bfloat16() for module in make("LSTM"))
    x, states = inputs("LSTM")
    given = x.detach().bfloat16().requires_grad_(), [s.detach().bfloat16().requires_grad_() for s in states]
    for _ in range(2):
        for mine, wanted in zip(run(ours, *given), run(theirs, *given)):
            for a, b in zip(mine, wanted):
                assert a.dtype == b.dtype == torch.bfloat16
                torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * b.abs().max().item())
    assert len(plans(ours)) == 1
