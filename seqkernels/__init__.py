"""Fast recurrent networks and attention for PyTorch.

    from seqkernels import nn                      in the place of `from torch import nn`
    seqkernels.explain(module, *inputs)            which path a call takes, and why
    seqkernels.Stream(lstm)                        step by step, in constant memory
    seqkernels.functional                          scan, step, scaled_dot_product_attention
    seqkernels.reference                           the same in plain torch operators
    seqkernels.set_float32_precision("tf32x3")     how float32 products run on a GPU

Names are imported when they are first used.
"""

import importlib

__all__ = ["Stream", "explain", "functional", "nn", "reference", "set_float32_precision"]

_HOME = {"Stream": ".stream", "explain": ".explanation", "set_float32_precision": ".precision"}


def __getattr__(name):
    if name == "__version__":
        from importlib.metadata import version

        return version("seqkernels")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOME.get(name, f".{name}"), __name__)
    value = getattr(module, name) if name in _HOME else module
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
