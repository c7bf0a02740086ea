"""Loops over a cell, or over single steps of a module, whose weights' gradients are gathered: as torch's."""

import pytest
import torch
from cell_loop import CELLS, close, gradients, loop, make, steps

from seqkernels.ops import gathered_rows_cpu


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("batch", (1, 3, 40, 300))  # 4 and fewer steps of 40 rows are gathered, of 300 one
@pytest.mark.parametrize("kind", CELLS)
def test_a_loop_agrees(kind, batch, bias):
    ours, theirs = make(kind, bias=bias)
    xs = steps(batch=batch).requires_grad_()
    for _ in range(2):
        close(gradients(ours, xs), gradients(theirs, xs))


@pytest.mark.parametrize("kind", CELLS)
def test_batches_may_shrink_and_grow(kind):
    def take(cell, x, state):
        rows = len(x)
        if state is not None:
            kept = [torch.cat((s, s, s))[:rows] for s in (state if isinstance(state, tuple) else (state,))]
            state = tuple(kept) if len(kept) > 1 else kept[0]
        return cell(x, state)

    ours, theirs = make(kind)
    sizes = (200, 100, 7, 20, 60, 150, 1, 1)
    results = []
    for cell in (ours, ours, theirs):
        loss = loop(cell, [x[:rows] for x, rows in zip(steps(len(sizes), 200), sizes)], take=take)
        results.append(torch.autograd.grad(loss, list(cell.parameters())))
    close(results[0], results[2])
    close(results[1], results[2])


@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("kind", ("RNN", "LSTM", "GRU"))
def test_single_steps_of_a_module_agree(kind, batch_first):
    def run(module, last_only):
        state, total = None, 0
        for x in steps().requires_grad_():
            y, state = module(x.unsqueeze(int(batch_first)), state)
            total = total + y.sin().sum()  # of y alone; in the end of the state as well
        states = state if isinstance(state, tuple) else (state,)
        total = (0 if last_only else total) + sum(s.cos().sum() for s in states)
        return torch.autograd.grad(total, list(module.parameters()))

    ours, theirs = make(kind, batch_first=batch_first)
    for last_only in (False, True):
        for _ in range(2):
            close(run(ours, last_only), run(theirs, last_only))


@pytest.mark.parametrize("kind", CELLS)
def test_bfloat16(kind):
    ours, theirs = make(kind, dtype=torch.bfloat16)
    xs = steps(5, 41, dtype=torch.bfloat16)
    exact = [g.float() for g in gradients(theirs.float(), xs.float())]
    for a, b in zip(gradients(ours, xs), exact):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize("kind", CELLS)
def test_an_input_that_is_not_dense(kind):
    ours, theirs = make(kind)
    wide = steps(I=10)
    for xs in (wide[..., :5], steps(batch=5).transpose(1, 2).contiguous().transpose(1, 2)):
        close(gradients(ours, xs), gradients(theirs, xs))


@pytest.mark.parametrize("batch, products", ((40, 5), (1, 1), (300, 20)))
def test_a_product_is_of_many_steps(monkeypatch, batch, products):
    """Of as many rows as a chunk of a scan has, whole steps and one at least."""
    calls, run = [], gathered_rows_cpu.threads.run
    monkeypatch.setattr(
        gathered_rows_cpu.threads, "run", lambda kernel, given: (calls.append(kernel), run(kernel, given))
    )
    ours, _ = make("GRUCell")
    gradients(ours, steps(20, batch))
    kernel = gathered_rows_cpu.compiled().kernel("weight_rows", cell="gru", size=4, stored=4)
    assert calls.count(kernel) == products
