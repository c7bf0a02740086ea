"""Threads that take the steps of one scan together, each its share of the units, and meet after every step.

A crew's memory is `WORDS` integers, a cache line each: how many members are wanted, the leader among them; for how
many nanoseconds the leader waits for them to enlist; for how many, for one that is late; then zeros. One thread leads:
it closes the crew after a moment, and whoever has not enlisted by then is not waited for, ever. After its share of a
step a member says so and waits for the word to go on; the leader waits for all members, then gives it. If one of them
keeps it waiting for too long, for the system has taken that thread away, the leader dismisses the crew with the next
word and goes on alone. So a thread that is missing costs time, once, and nothing else.
"""

from .atomics import acquire, fetch_add, give_way, nanoseconds, pause, publish
from .inner import inner

MOST = 64  # members, the leader among them
WORD = 64  # bytes from one integer to the next
GO = 3  # which integer gives the word
DISMISSED = -1
_WANTED, _MOMENT, _PATIENCE, _GO, _ENLISTED, _SIZE, _DONE = (i * WORD for i in range(7))
WORDS = 6 + MOST
_CLOSED = 1 << 32
_SPINS = 2000  # pauses before a thread that waits gives way, some 20 to 60 microseconds


def _wait(address, least, patience):
    """Until the integer is at least `least` or DISMISSED; gives it as it is after `patience` ns, if that is not 0."""
    value, spins, since = acquire(address), 0, 0
    while value < least and value != DISMISSED:
        if spins < _SPINS:
            pause()
        else:
            if spins == _SPINS:
                since = nanoseconds()
            elif patience and nanoseconds() - since > patience:
                return value
            give_way()
        spins += 1
        value = acquire(address)
    return value


def functions():
    """join(crew, leads) and meet(crew, member, size, step) of a kernel that is being built. crew: the address of its
    memory."""
    wait = inner(_wait)

    @inner
    def join(crew, leads):
        """(member, size), member 0 for the leader; size 0 for a thread that came too late."""
        if leads:
            wait(crew + _ENLISTED, acquire(crew + _WANTED) - 1, acquire(crew + _MOMENT))
            size = fetch_add(crew + _ENLISTED, _CLOSED) + 1
            publish(crew + _SIZE, size)
            publish(crew + _GO, 1)
            return 0, size
        member = fetch_add(crew + _ENLISTED, 1) + 1
        if member >= _CLOSED:
            return member, 0
        wait(crew + _GO, 1, 0)
        return member, acquire(crew + _SIZE)

    @inner
    def meet(crew, member, size, step):
        """After the share of a step (0, 1, ...): the crew's size for the next, 0 for a member that is dismissed."""
        if member:
            publish(crew + _DONE + WORD * member - WORD, step + 1)
            return 0 if wait(crew + _GO, step + 2, 0) == DISMISSED else size
        if size == 1:  # the word may be that of dismissal, which stands
            return 1
        late = False
        for other in range(1, size):
            place = crew + _DONE + WORD * (other - 1)
            if wait(place, step + 1, acquire(crew + _PATIENCE)) < step + 1:
                late = True
                wait(place, step + 1, 0)
        publish(crew + _GO, DISMISSED if late else step + 2)
        return 1 if late else size

    return join, meet
