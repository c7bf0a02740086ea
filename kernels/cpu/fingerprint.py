"""A cheap sample of tensors' contents: enough to notice that weights were written behind PyTorch's back."""

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

ARGUMENTS = ("tensors", "count", "result")  # count pairs (address, 4-byte words); result: where the 64-bit hash goes
_SAMPLES = 16


@intrinsic
def _words(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.int32)))

    return types.CPointer(types.int32)(types.intp), generate


@intrinsic
def _longs(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.int64)))

    return types.CPointer(types.int64)(types.intp), generate


def build():
    multiplier = np.int64(6364136223846793005)  # Knuth, MMIX

    @njit(nogil=True)
    def fingerprint(tensors, count, result):
        pairs = carray(_longs(tensors), (count, 2))
        value = np.int64(0)
        for t in range(count):
            size = pairs[t, 1]
            words = carray(_words(pairs[t, 0]), (size,))
            for sample in range(min(size, _SAMPLES)):
                value = value * multiplier + words[sample * size // min(size, _SAMPLES)] + 1
        carray(_longs(result), (1,))[0] = value

    return fingerprint
