"""All programs of a launch at once in Triton's interpreter, which itself runs one after another and so hangs where one
waits for another.

    with cooperative(seed=3, policy="random"):
        kernel[grid](...)

Programs are greenlets that take turns at their accesses to memory. Each access is checked: that it lies in a tensor
argument's storage, and that no access of another program conflicts with it unless release and acquire order the two
(vector clocks, as in Pozniansky and Schuster's DJIT+). A volatile load is relaxed, as in PTX.

Known are loads, stores, and read-modify-writes such as atomic_add, where the arguments are tensors and numbers. Other
atomics order nothing here. Unseen are the threads of a program, and whatever a compiler does.
"""

import contextlib
import inspect
import random
from functools import partial
from unittest import mock

import numpy as np
import torch
import triton.runtime.interpreter as interpreter
from triton._C.libtriton import ir

POLICIES = ("random", "greedy", "round_robin")
SWITCHING = 0.2  # how probably another program continues at an access, except under "greedy"
PATIENCE = 20  # polls of every program, nothing stored meanwhile, that make a deadlock

ACQUIRE = (ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)
RELEASE = (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)

LOAD, STORE, ATOMIC_LOAD, ATOMIC_ADD = KINDS = range(4)
NAMES = ("load", "store", "atomic load", "atomic")
CONFLICTS = {
    LOAD: (STORE, ATOMIC_ADD),
    STORE: KINDS,
    ATOMIC_LOAD: (STORE,),
    ATOMIC_ADD: (LOAD, STORE),
}


class ScheduleError(RuntimeError):
    """What no schedule of a correct kernel leads to."""


class DataRace(ScheduleError):
    """Two programs access the same memory, one of them to write, and nothing orders them."""


class Deadlock(ScheduleError):
    """Every program waits."""


class OutOfBounds(ScheduleError):
    """An access outside the storages of all tensor arguments."""


@contextlib.contextmanager
def cooperative(seed=0, policy="random"):
    """Launches inside run all their programs at once, in an order that depends on the seed and the policy:

    "random"       at any access, a random program may continue
    "greedy"       a program runs for as long as it can: until it has polled in vain
    "round_robin"  at any access, the next program may continue

    A launch raises a ScheduleError, and has then stored part of its results.
    """
    assert policy in POLICIES, policy
    rng, executor_call = random.Random(seed), interpreter.GridExecutor.__call__

    def call(executor, *args, **kwargs):
        arguments = {**dict(zip(executor.arg_names, args)), **kwargs}
        launch = _Launch(executor.fn, Memory(arguments), rng, policy)
        try:
            with mock.patch.object(executor, "fn", launch), launch.observed(interpreter.interpreter_builder):
                executor_call(executor, *args, **kwargs)
        except interpreter.InterpreterError as error:
            raise _origin(error) from None

    with mock.patch.object(interpreter.GridExecutor, "__call__", call):
        yield


def _origin(error):
    """The ScheduleError that the interpreter has wrapped, once for each function it passed, or else the error."""
    cause = error
    while cause is not None and not isinstance(cause, ScheduleError):
        cause = cause.__cause__
    return error if cause is None else cause


class Memory:
    """Where the tensor arguments lie: each byte of their storages has a place, counted through all of them."""

    def __init__(self, arguments):
        storages = {}
        for name, tensor in arguments.items():
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes():
                storage = tensor.untyped_storage()
                entry = storages.setdefault(storage.data_ptr(), (storage.nbytes(), tensor.element_size(), []))
                entry[2].append(name)
        self.starts = np.array(sorted(storages), np.int64)
        self.storages = [storages[start] for start in self.starts.tolist()]
        self.sizes = np.array([nbytes for nbytes, _, _ in self.storages], np.int64)
        self.firsts = np.cumsum(self.sizes) - self.sizes
        self.total = int(self.sizes.sum())

    def places(self, addresses):
        """The places of addresses, or OutOfBounds."""
        index = np.searchsorted(self.starts, addresses, side="right") - 1
        outside = (index < 0) | (addresses - self.starts[index] >= self.sizes[index])
        if outside.any():
            raise OutOfBounds(f"{outside.sum()} addresses outside every tensor, such as {addresses[outside][0]:#x}")
        return self.firsts[index] + addresses - self.starts[index]

    def name(self, place):
        """The tensors, and the element of their storage, at a place."""
        index = np.searchsorted(self.firsts, place, side="right") - 1
        _, itemsize, names = self.storages[index]
        return f"{'/'.join(names)}[{(place - self.firsts[index]) // itemsize}]"


class Clocks:
    """Happens-before between programs: what each has seen of the others, and when each place was last accessed."""

    def __init__(self, programs, memory):
        self.memory = memory
        self.seen = np.eye(programs, dtype=np.int32)  # [p, q]: up to which time of q, p comes after q
        self.accessed = np.zeros((len(KINDS), programs, memory.total), np.int32)  # each program's time, 0 for never
        self.released = {}  # what was seen by those who released at an address

    def access(self, program, addresses, kind):
        """Checks and records an access to addresses (int64, one dimension)."""
        places, seen = self.memory.places(addresses), self.seen[program]
        for other_kind in CONFLICTS[kind]:
            unordered = self.accessed[other_kind][:, places] > seen[:, None]
            if unordered.any():
                other, i = np.argwhere(unordered)[0]
                raise DataRace(
                    f"{NAMES[kind]} of {self.memory.name(places[i])} by program {program}, "
                    f"{NAMES[other_kind]} by program {other}: neither is ordered before the other"
                )
        self.accessed[kind, program, places] = seen[program]

    def synchronise(self, program, address, semantics):
        """What an atomic access does to the order."""
        seen = self.seen[program]
        if semantics in ACQUIRE:
            np.maximum(seen, self.released.get(address, 0), out=seen)
        if semantics in RELEASE:
            self.released[address] = np.maximum(self.released.get(address, 0), seen)
            seen[program] += 1


class _Launch:
    """Stands for the kernel's function in a launch: collects the programs' calls, and runs them all at the last one."""

    def __init__(self, function, memory, rng, policy):
        self.function, self.memory, self.rng, self.policy = function, memory, rng, policy
        self.calls = []
        # the executor reads these from its function
        self.__name__, self.__globals__ = function.__name__, function.__globals__
        self.__signature__, self.__annotations__ = inspect.signature(function), function.__annotations__

    def __call__(self, **arguments):
        builder = interpreter.interpreter_builder
        self.calls.append((builder.grid_idx, partial(self.function, **arguments)))
        if len(self.calls) == np.prod(builder.grid_dim):
            self._run(builder)

    def _run(self, builder):
        import greenlet  # not on every machine that collects the tests which need it

        self.clocks = Clocks(len(self.calls), self.memory)
        self.scheduler, self.current, self.polling = greenlet.getcurrent(), -1, None
        self.live = {program: greenlet.greenlet(run) for program, (_, run) in enumerate(self.calls)}
        self.polls = dict.fromkeys(self.live, 0)  # of each program, since anyone has stored
        try:
            while self.live:
                self.current, self.polling = self._next(), None
                builder.set_grid_idx(*self.calls[self.current][0])
                self.live[self.current].switch()
                if self.live[self.current].dead:
                    del self.live[self.current]
        finally:
            for program in self.live.values():
                if not program.dead:
                    program.throw()  # ends it

    def _next(self):
        live = list(self.live)
        if self.policy == "round_robin":
            return next((program for program in live if program > self.current), live[0])
        return self.rng.choice(live)

    @contextlib.contextmanager
    def observed(self, builder):
        """The builder's accesses to memory go through this launch."""
        with contextlib.ExitStack() as stack:
            for name in ("masked_load", "masked_store", "atomic_rmw"):
                method = f"create_{name}"
                observer = partial(getattr(self, f"_{name}"), getattr(builder, method))
                stack.enter_context(mock.patch.object(builder, method, observer))
            yield

    # The policies for caches differ from version to version of Triton.
    def _masked_load(self, load, pointers, mask, other, *policies_and_volatile):
        self._access(_addresses(pointers, mask), ATOMIC_LOAD if policies_and_volatile[-1] else LOAD)
        return load(pointers, mask, other, *policies_and_volatile)

    def _masked_store(self, store, pointers, value, mask, *policies):
        self._access(_addresses(pointers, mask), STORE)
        return store(pointers, value, mask, *policies)

    def _atomic_rmw(self, atomic, operation, pointers, value, mask, semantics, scope):
        addresses = _addresses(pointers, mask)
        # to add nothing is to load
        is_load = operation == ir.ATOMIC_OP.ADD and not np.any(value.data)
        self._access(addresses, ATOMIC_LOAD if is_load else ATOMIC_ADD)
        for address in addresses.tolist():
            self.clocks.synchronise(self.current, address, semantics)
        return atomic(operation, pointers, value, mask, semantics, scope)

    def _access(self, addresses, kind):
        """Another program's turn, perhaps; then the check, just before the access itself."""
        poll = addresses.tobytes() if kind == ATOMIC_LOAD else None
        in_vain = poll is not None and poll == self.polling
        if in_vain or (self.policy != "greedy" and self.rng.random() < SWITCHING):
            self.scheduler.switch()
        self.polling = poll
        self.clocks.access(self.current, addresses, kind)
        if kind in (STORE, ATOMIC_ADD):
            self.polls = dict.fromkeys(self.polls, 0)
        elif poll is not None:
            self.polls[self.current] += 1
            if min(self.polls[program] for program in self.live) >= PATIENCE:
                raise Deadlock(f"programs {list(self.live)} all wait, the last one for {self._name(addresses)}")

    def _name(self, addresses):
        return self.memory.name(self.memory.places(addresses)[0])


def _addresses(pointers, mask):
    """The addresses under a mask, a block's or None, in one dimension."""
    addresses = pointers.data.astype(np.int64)
    return addresses.ravel() if mask is None else addresses[np.broadcast_to(mask.data, addresses.shape)]
