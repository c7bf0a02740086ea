"""How close is close enough: the error against float64, relative to the largest value of the tensor."""

import torch


def error(value, exact):
    """The largest difference, relative to the largest exact value."""
    assert value.shape == exact.shape, (value.shape, exact.shape)
    largest = exact.abs().max().item()
    return (value.double() - exact).abs().max().item() / (largest or 1.0)


def assert_agree(ours, exact, theirs):
    """float64: 1e-12. Others: twice the error that torch itself makes, or 4 eps of the dtype where torch is luckier.

    Three dictionaries of tensors with the same names; `exact` in float64, `theirs` torch's in the dtype of ours.
    """
    assert ours.keys() == exact.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        allowed = 1e-12
        if value.dtype != torch.float64:
            allowed = max(2 * error(theirs[name], exact[name]), 4 * torch.finfo(value.dtype).eps)
        got = error(value, exact[name])
        assert got <= allowed, f"{name}: {got:.2e} of the largest value, allowed {allowed:.2e}"
