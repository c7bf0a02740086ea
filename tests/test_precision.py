"""The precision of float32 products on a GPU: what is chosen, and that it reaches torch's products and is undone."""

import pytest
import torch

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


def test_torchs_products_follow_and_get_their_setting_back():
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    for chosen, expected in (("tf32", "tf32"), ("ieee", "ieee"), ("tf32x3", "ieee")):
        with pytest.raises(KeyError), precision.products(chosen):
            assert settings.fp32_precision == expected
            raise KeyError
        assert settings.fp32_precision == before
