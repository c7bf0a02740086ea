"""Order between the programs of one launch, which must all be resident: only NVIDIA promises that a program that waits
does not keep the others from running, and only for a cooperative launch."""

import triton
import triton.language as tl


@triton.jit
def arrive(counter):
    """What this program has stored so far is there for whoever waits for `counter` to have been raised."""
    tl.debug_barrier()  # all threads' stores come before the one thread's release
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait_for(counter, count):
    """Until `counter` is at least `count`."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < count:
        pass
