"""A hash of tensors' contents that notices weights written behind PyTorch's back.

Tensors of up to WHOLE elements are hashed whole. Of a larger one a sample is: enough to notice that it was rescaled,
set or loaded anew, not that a few of its elements were changed.
"""

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from .inner import inner
from .memory import integers

ARGUMENTS = ("tensors", "count")  # count pairs (address, elements)
WHOLE = 1024
_SAMPLES = 16


def _view(kind):
    @intrinsic
    def view(typing, address):
        pointer = types.CPointer(kind)

        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(pointer))

        return pointer(types.intp), generate

    return view


def build(size):
    """A function that returns the 64-bit hash. `size`: bytes of an element, 2, 4 or 8; all of them count."""
    words = _view({2: types.int16, 4: types.int32, 8: types.int64}[size])
    odd = np.int64(-7046029254386353131)  # 2^64 divided by the golden ratio (Knuth): its multiples spread evenly

    @inner
    def mixed(word, place):
        """A term of the sum; no linear function, which scaling by a power of two could leave as it was."""
        x = (np.int64(word) + place) * odd
        return (x ^ (x >> np.int64(32))) * odd

    @inner
    def hash_of(address, elements):
        data = carray(words(address), (elements,))
        value = np.int64(0)
        if elements <= WHOLE:
            for i in range(elements):
                value += mixed(data[i], i)
        else:
            for i in range(_SAMPLES):
                place = ((i * odd) >> np.int64(32) & np.int64(0x7FFFFFFF)) * elements >> np.int64(31)
                value += mixed(data[place], i)
        return value

    @inner
    def fingerprint(tensors, count):
        value = np.int64(0)
        for t in range(count):
            address, elements = integers(tensors + 16 * t, 2)
            value = value * odd + hash_of(address, elements)
        return value

    return fingerprint
