"""The precision of float32 products on a GPU: what is chosen, and that it reaches torch's products and is undone."""

import subprocess
import sys

import pytest

import seqkernels
from seqkernels import precision


@pytest.fixture(autouse=True)
def unset():
    yield
    seqkernels.set_float32_precision(None)


def test_torchs_setting_counts_until_one_is_chosen():
    assert [precision.float32_precision(t) for t in ("tf32", "ieee", "none")] == ["tf32", "ieee", "ieee"]
    for chosen in precision.CHOICES:
        seqkernels.set_float32_precision(chosen)
        assert {precision.float32_precision(t) for t in ("tf32", "ieee", "none")} == {chosen}
    seqkernels.set_float32_precision(None)
    assert precision.float32_precision("tf32") == "tf32"


@pytest.mark.parametrize("wrong", ("bf16", "TF32", 3))
def test_what_is_no_precision_is_refused(wrong):
    seqkernels.set_float32_precision("ieee")
    with pytest.raises(ValueError, match=f"precision must be None or one of ieee, tf32, tf32x3, got {wrong!r}"):
        seqkernels.set_float32_precision(wrong)
    assert precision.float32_precision("tf32") == "ieee"


@pytest.mark.parametrize("legacy", (None, "highest", "high", "medium"))
@pytest.mark.parametrize("chosen", precision.CHOICES)
def test_torchs_products_follow_and_get_their_setting_back(chosen, legacy):
    program = f"""
import torch
from seqkernels import precision
settings, legacy = torch.backends.cuda.matmul, {legacy!r}
if legacy:
    torch.set_float32_matmul_precision(legacy)
before = settings.fp32_precision, torch.get_float32_matmul_precision(), settings.allow_tf32
try:
    with precision.products({chosen!r}):
        assert (settings.fp32_precision == "tf32") == settings.allow_tf32 == {chosen == "tf32"}
        raise KeyError
except KeyError:
    assert (settings.fp32_precision, torch.get_float32_matmul_precision(), settings.allow_tf32) == before
settings.fp32_precision = "tf32"  # the newer setting alone
with precision.products({chosen!r}):
    assert (settings.fp32_precision == "tf32") == {chosen == "tf32"}
assert settings.fp32_precision == "tf32"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
