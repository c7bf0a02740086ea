"""Threads that take the steps of one scan together, each its share of the units (kernels/cpu/crew.py).

Beside threads that take rows apart: the shares are more even, and each reads its part of the weights alone; they meet
after every step.
"""

from array import array

from . import threads
from .compiled import compiled

_STEP_OPERATIONS = 1 << 17  # a step of fewer, with a row's weights at least, takes no longer than a few meetings
_MOMENT = 100_000  # nanoseconds, many times what it takes to hand work to a thread that waits for it
_PATIENCE = 1_000_000  # nanoseconds, beside the step's own time at a byte a nanosecond


def members(B, shape, H, shares):
    """How many threads may take `shares` parts of the steps of a batch of B rows: 1 where that does not pay."""
    if 2 * B * shape.gates * H * H < _STEP_OPERATIONS:
        return 1
    return min(shares, compiled().crew.MOST)


def waits(shape, H, operations):
    """For how many nanoseconds the leader waits for members to enlist, and for one that is late: a fiftieth of the
    time that so many operations take one thread, at 100 a nanosecond, and a little. Who is missing then stays away, and
    of long work a half is lost with it, by a thread that was asleep or that the system had taken away for a moment."""
    worth = int(operations / 100 / 50)
    return _MOMENT + worth, _PATIENCE + shape.size * shape.gates * H * H + worth


def run(kernel, arguments, wanted, waits):
    """kernel(*arguments, crew, leads) by `wanted` threads, this one leading, or by fewer where they do not come. waits:
    as the function of this name gives them."""
    crew = compiled().crew
    memory, line = array("q", bytes(crew.WORDS * crew.WORD)), crew.WORD // 8
    for place, number in enumerate((wanted, *waits)):
        memory[line * place] = number
    address = memory.buffer_info()[0]

    def dismiss():
        memory[line * crew.GO] = crew.DISMISSED

    members = [(*arguments, address, 0)] * (wanted - 1)
    threads.run_led(kernel, (*arguments, address, 1), members, dismiss)
