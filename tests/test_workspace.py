"""Memory that is used again: never by two tensors at once, and bounded."""

import gc
import sys
import threading

import pytest
import torch

from seqkernels.ops import workspace

LARGE = 8 << 20  # bytes
FLOATS = LARGE // 4


@pytest.fixture(autouse=True)
def no_idle_blocks():
    workspace._idle.clear()
    yield
    workspace._idle.clear()


def test_memory_comes_back_when_the_tensor_is_gone_and_not_before():
    first = workspace.leased((FLOATS,), torch.float32)
    address = first.data_ptr()
    view = first.view(2, -1)[1]
    del first
    second = workspace.leased((FLOATS,), torch.float32)
    assert second.data_ptr() != address  # the view still holds it
    del view
    gc.collect()
    again = workspace.leased((LARGE // 8,), torch.float64)
    assert again.data_ptr() == address
    assert again.dtype == torch.float64 and again.numel() == LARGE // 8


def test_autograd_gives_the_memory_back_after_backward():
    x = torch.randn(FLOATS, requires_grad=True)

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            kept = workspace.leased((x.numel(),), x.dtype)
            ctx.save_for_backward(kept)
            return x.sum()

        @staticmethod
        def backward(ctx, g):
            (kept,) = ctx.saved_tensors
            return g.expand(kept.numel())

    y = Keep.apply(x)
    assert not workspace._idle
    y.backward()
    del y
    assert len(workspace._idle) == 1


def test_much_larger_blocks_are_not_spent_on_small_tensors():
    del (large := [workspace.leased((4 * FLOATS,), torch.float32)])[0]
    assert not large and len(workspace._idle) == 1
    kept = workspace.leased((FLOATS,), torch.float32)
    assert kept.numel() == FLOATS and len(workspace._idle) == 1


def test_idle_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(workspace._Lease.__del__, "__defaults__", (workspace._idle, 2 * LARGE))
    leases = [workspace.leased((FLOATS,), torch.float32) for _ in range(5)]
    leases.clear()
    assert sum(block.nbytes for block in workspace._idle.values()) <= 2 * LARGE


def test_threads_never_share_memory():
    """Also where they take turns in the middle of taking a block, each two at a time."""
    wrong, before = [], sys.getswitchinterval()

    def work(value):
        for _ in range(500):
            tensors = [workspace.leased((FLOATS,), torch.float32) for _ in range(2)]
            for sign, tensor in zip((1, -1), tensors):
                tensor[:64] = sign * value
            if any(bool((tensor[:64] != sign * value).any()) for sign, tensor in zip((1, -1), tensors)):
                wrong.append(value)

    torch.use_deterministic_algorithms(False)  # the memory is not filled, which takes longer than all the rest
    workers = [threading.Thread(target=work, args=(value,)) for value in range(1, 9)]
    sys.setswitchinterval(1e-6)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


def test_a_block_that_another_thread_takes_first_is_left_to_it(monkeypatch):
    class Taken(dict):
        def values(self):
            seen = list(super().values())
            self.clear()
            return seen

    block = torch.empty(LARGE, dtype=torch.uint8).numpy()
    monkeypatch.setattr(workspace, "_idle", Taken({id(block): block}))
    assert workspace.leased((FLOATS,), torch.float32).data_ptr() != block.ctypes.data


def test_scratch_is_kept_per_thread():
    assert workspace.workspace(1000, torch.float32).data_ptr() == workspace.workspace(10, torch.float64).data_ptr()
    other = []
    worker = threading.Thread(target=lambda: other.append(workspace.workspace(1000, torch.float32)))
    worker.start()
    worker.join()
    assert other[0].data_ptr() != workspace.workspace(1000, torch.float32).data_ptr()
