"""Shapes that nobody thought of: the scan and attention at sizes that hypothesis draws, against float64."""

import attention_cases
import torch
from agreement import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_problem import RaggedProblem
from scan_problem import Problem
from seqkernels.kernels.cells import CELLS

from seqkernels.ops import attention_cpu


@settings(max_examples=60)
@given(
    cell=st.sampled_from(sorted(CELLS)),
    T=st.integers(1, 12),
    B=st.integers(1, 40),
    I=st.integers(1, 70),
    H=st.integers(1, 90),
    D=st.integers(1, 2),
    batch_first=st.booleans(),
    bias=st.booleans(),
)
def test_scan(cell, T, B, I, H, D, batch_first, bias):
    problem = Problem(cell, (T, B, I, H, D, batch_first, bias), torch.float64)
    exact = problem.by_reference(torch.float64)
    assert_agree(problem.ours(), exact, exact)


@settings(max_examples=60)
@given(
    cell=st.sampled_from(sorted(CELLS)),
    T=st.integers(1, 12),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    ends=st.booleans(),
    marks=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 39)), max_size=60),
    I=st.integers(1, 70),
    H=st.integers(1, 90),
    D=st.integers(1, 2),
    batch_first=st.booleans(),
)
def test_ragged_scan(cell, T, lengths, ends, marks, I, H, D, batch_first):
    B, lengths = len(lengths), [min(T, length) for length in lengths] if ends else None
    marks = [(step, row) for step, row in marks if step < T and row < B] or None
    problem = RaggedProblem(cell, (T, B, I, H, D, batch_first, True), torch.float64, lengths, marks)
    exact = problem.by_reference(torch.float64)
    assert_agree(problem.ours(), exact, exact)


@settings(max_examples=60)
@given(
    B=st.integers(1, 2),
    groups=st.integers(1, 3),
    heads=st.integers(1, 2),
    T=st.integers(1, 140),
    S=st.integers(1, 140),
    D=st.integers(1, 70),
    E=st.integers(1, 70),
    causal=st.booleans(),
    masked=st.booleans(),
)
def test_attention(B, groups, heads, T, S, D, E, causal, masked):
    sizes = ((groups * heads, T, D), (heads, S, D), (heads, S, E))
    q, k, v = (torch.randn(B, *size, dtype=torch.float64) for size in sizes)
    mask = torch.rand(B, 1, T, S) < 0.8 if masked and not causal else None
    attention_cases.check(attention_cpu.forward, q, k, v, mask, causal)
