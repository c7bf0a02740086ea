"""How float32 products run on a GPU: exactly, or on tensor cores that read fewer bits of their operands."""

from contextlib import contextmanager

import torch

CHOICES = ("ieee", "tf32", "tf32x3")
_chosen = None


def set_float32_precision(precision):
    """Chooses how float32 products in this package's GPU kernels run, in this process.

    precision: "ieee" (float32 throughout), "tf32" (tensor cores; operands with 10 bits of mantissa), "tf32x3" (three
    products of tf32, which is close to float32), or None, the default: what torch has been told,
    `torch.backends.cudnn.rnn.fp32_precision` for the recurrent layers and `torch.backends.cuda.matmul.fp32_precision`
    for attention. Raises ValueError for anything else. CPU kernels always compute in full precision.
    """
    global _chosen
    if precision is not None and precision not in CHOICES:
        raise ValueError(f"precision must be None or one of {', '.join(CHOICES)}, got {precision!r}")
    _chosen = precision


def float32_precision(torchs):
    """The precision that counts, where torch's own setting for the operation is `torchs`."""
    return _chosen or ("tf32" if torchs == "tf32" else "ieee")


@contextmanager
def products(precision):
    """torch's own float32 products in this precision; tf32x3, which torch does not have, is float32 throughout."""
    settings, wanted = torch.backends.cuda.matmul, precision == "tf32"
    before = settings.fp32_precision
    if (before == "tf32") == wanted:
        yield
        return
    legacy = _legacy_precision()
    settings.allow_tf32 = wanted  # unlike fp32_precision, it changes both of torch's settings, which have to agree
    try:
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        if settings.fp32_precision != before:
            settings.fp32_precision = before


def _legacy_precision():
    """torch's older setting, or None where only the newer one has been used, of which it then complains."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
