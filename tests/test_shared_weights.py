"""Weights' gradients that are gathered over a graph's steps, in whichever way autograd runs them: as torch's."""

import gc
import weakref
from threading import Thread

import pytest
import torch
from cell_loop import CELLS, close, gradients, loop, make, steps
from torch.utils.checkpoint import checkpoint

from seqkernels.ops import gathered_rows_cpu
from seqkernels.ops.shared_weights import SharedWeights


def test_backward_twice_through_one_graph():
    ours, theirs = make("LSTMCell")
    results = []
    for cell in (ours, theirs):
        loss = loop(cell, steps())
        parameters = list(cell.parameters())
        first = torch.autograd.grad(loss, parameters, retain_graph=True)
        results.append((*first, *torch.autograd.grad(2 * loss, parameters)))
    close(*results)


def test_losses_of_one_graph_one_after_another():
    """Truncated in the user's way: the steps before are shared by two backward passes."""
    results = []
    for cell in make("GRUCell"):
        xs = steps()
        h = cell(xs[0])
        first = loop(cell, xs[1:4], h)
        second = loop(cell, xs[4:], h)
        first.backward(retain_graph=True)
        second.backward()
        results.append([p.grad for p in cell.parameters()])
    close(*results)


@pytest.mark.parametrize("kind", CELLS)
def test_what_is_asked_for_alone(kind):
    ours, theirs = make(kind)
    xs = steps().requires_grad_()
    results = []
    for cell in (ours, theirs):
        weight = [p for name, p in cell.named_parameters() if name == "weight_hh"]
        alone = torch.autograd.grad(loop(cell, xs), xs)
        results.append((*alone, *torch.autograd.grad(loop(cell, xs), weight)))
    close(*results)


@pytest.mark.parametrize("kind", CELLS)
def test_second_gradients(kind):
    ours, theirs = make(kind, dtype=torch.float64)
    xs = steps(3, dtype=torch.float64).requires_grad_()
    results = []
    for cell in (ours, theirs):
        parameters = list(cell.parameters())
        loss = loop(cell, xs)
        firsts = torch.autograd.grad(loss, [*parameters, xs], create_graph=True)
        results.append((*firsts, *torch.autograd.grad(sum(g.square().sum() for g in firsts), [*parameters, xs])))
    close(*results, tolerance=1e-10)


def test_frozen_weights():
    ours, theirs = make("LSTMCell")
    xs = steps()
    for name in ("weight_ih", "bias_hh"):
        for cell in (ours, theirs):
            loop(cell, xs).backward()
            getattr(cell, name).requires_grad_(False)
    for cell in (ours, theirs):
        loop(cell, xs).backward()
        cell.requires_grad_(True)
        loop(cell, xs).backward()
    close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


def functional(cell, weights, xs):
    return loop(lambda x, state: torch.func.functional_call(cell, weights, (x, state)), xs)


def test_other_tensors_of_the_same_memory():
    """Each set of tensors gets its own gradients, leaves or not, though they show the same weights."""
    results = []
    for cell in make("GRUCell"):
        first, second = ({n: p.detach().requires_grad_() for n, p in cell.named_parameters()} for _ in range(2))
        views = {n: p.view_as(p) for n, p in cell.named_parameters()}
        loss, xs = 0, steps()
        for k, weights in enumerate((first, second, views, first)):
            loss = loss + (k + 1) * functional(cell, weights, xs)
        results.append(torch.autograd.grad(loss, [*first.values(), *second.values(), *cell.parameters()]))
    close(*results)


def test_a_pass_that_does_not_reach_the_weights_keeps_nothing(monkeypatch):
    gathered = []
    make_rows = gathered_rows_cpu.GatheredRows.__init__
    monkeypatch.setattr(
        gathered_rows_cpu.GatheredRows,
        "__init__",
        lambda self, *given: (gathered.append(1), make_rows(self, *given))[1],
    )
    ours, theirs = make("LSTMCell")
    xs = steps().requires_grad_()
    loss = loop(ours, xs)
    for _ in range(3):
        alone = torch.autograd.grad(loss, [xs], retain_graph=True)
    assert not gathered
    close(alone, torch.autograd.grad(loop(theirs, xs), [xs]))
    torch.autograd.grad(loss, list(ours.parameters()))
    assert len(gathered) == 1


@pytest.mark.parametrize("kind", CELLS)
def test_hooks_of_saved_tensors_may_change_strides(kind):
    def unpack(tensor):
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor

    ours, theirs = make(kind)
    for T in (1, 5):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            loss = loop(ours, steps(T))
        close(torch.autograd.grad(loss, list(ours.parameters())), gradients(theirs, steps(T)))


def test_training_steps_in_place():
    ours, theirs = make("GRUCell")
    xs = steps()
    for cell in (ours, theirs):
        optimizer = torch.optim.SGD(cell.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            loop(cell, xs).backward()
            optimizer.step()
    close(list(ours.parameters()), list(theirs.parameters()))


def test_a_weight_changed_before_the_backward_is_refused():
    for cell in make("LSTMCell"):
        loss = loop(cell, steps())
        with torch.no_grad():
            cell.weight_hh.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_backward_that_fails_half_way_leaves_nothing():
    ours, theirs = make("LSTMCell")
    xs = steps()

    def fail(gradient):
        raise ArithmeticError("half way")

    h, c = ours(xs[0])
    state, hook = (h, c), h.register_hook(fail)
    loss = loop(ours, xs[1:], state)
    with pytest.raises(ArithmeticError, match="half way"):
        loss.backward(retain_graph=True)
    hook.remove()
    ours.zero_grad()
    loop(ours, xs[1:], state).backward()
    wanted = torch.autograd.grad(loop(theirs, xs[1:], theirs(xs[0])), list(theirs.parameters()))
    close([p.grad for p in ours.parameters()], wanted)


@pytest.mark.parametrize("use_reentrant", (False, True))
def test_checkpoints(use_reentrant):
    """A reentrant one runs a backward pass inside another."""

    def run(cell, xs, h):
        for x in xs:
            h = cell(x, h)
        return h

    results = []
    for cell in make("GRUCell"):
        xs = steps().requires_grad_()
        h = cell(xs[0])
        for part in (xs[1:4], xs[4:]):
            h = checkpoint(run, cell, part, h, use_reentrant=use_reentrant)
            h = cell(part[0], h)
        h.sin().sum().backward()
        results.append([xs.grad, *(p.grad for p in cell.parameters())])
    close(*results)


def test_hooks_of_a_weight_see_the_sum_once():
    ours, theirs = make("RNNCell")
    seen = []
    ours.weight_ih.register_hook(seen.append)
    loop(ours, steps()).backward()
    assert len(seen) == 1
    close(seen, torch.autograd.grad(loop(theirs, steps()), [theirs.weight_ih]))


def test_backward_passes_in_threads():
    """Graphs of several threads that share the weights, run at once, and one more of all of them."""
    ours, theirs = make("LSTMCell", 16, 64)
    xs = torch.randn(8, 20, 4, 16)
    losses = [loop(ours, x) for x in xs]
    made = [None] * len(losses)

    def run(i):
        made[i] = torch.autograd.grad(losses[i], list(ours.parameters()), retain_graph=True)

    threads = [Thread(target=run, args=(i,)) for i in range(len(losses))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, x in zip(made, xs):
        close(mine, torch.autograd.grad(loop(theirs, x), list(theirs.parameters())))
    together = torch.autograd.grad(sum(losses), list(ours.parameters()))
    close(together, torch.autograd.grad(sum(loop(theirs, x) for x in xs), list(theirs.parameters())))


def test_steps_share_while_their_graph_lives(monkeypatch):
    made = []
    begin = SharedWeights.__init__
    monkeypatch.setattr(
        SharedWeights, "__init__", lambda self, *given: (made.append(weakref.ref(self)), begin(self, *given))[1]
    )
    ours, _ = make("LSTMCell")
    loss = loop(ours, steps())
    loop(ours, steps())
    assert len(made) == 1 and made[0]() is not None
    loss.backward()
    weight = weakref.ref(ours.weight_hh)
    del loss, ours
    gc.collect()
    assert made[0]() is None and weight() is None


def test_no_rows():
    for cell in make("LSTMCell"):
        for _ in range(2):
            loss = loop(cell, torch.empty(3, 0, 5))
            loss.backward()
        assert all(not p.grad.any() for p in cell.parameters())
