"""What races are expected to show, and whether they do."""

from collections.abc import Callable
from dataclasses import dataclass

from . import timing
from .cases import GRID, LAYERS, Case
from .race_rows import against, against_floor, against_one_thread, timed, with_threads

PEERS = {"best": "best peer", "floor": "the floor's speed", "one thread": "the speed of one thread"}


@dataclass(frozen=True)
class Target:
    """At least this ratio, the time of the peer / our time, in the geometric mean over the rows of the grid that are
    covered; or, with each, in every one of them.

    covers: of a Case. peer: the name of a provider, "best" for the fastest peer of a row, "floor" for the least time
    that the machine allows (floors.py), "one thread" for our own time, asked of several.
    """

    text: str
    ratio: float
    covers: Callable
    peer: str = "best"
    each: bool = False

    @property
    def needed(self):
        """What is asked for, in few words."""
        return f"{'each' if self.each else 'mean'} ≥ {self.ratio:g}× {PEERS.get(self.peer, self.peer)}"

    def rows(self, rows, threads):
        """What is judged of so many threads: a row a case, with the ratio to the peer."""
        covered = [row for row in rows if self.covers(Case(**row["case"]))]
        mine = [row for row in covered if row["threads"] == threads]
        if self.peer == "floor":
            return against_floor(mine)
        if self.peer == "one thread":
            return against_one_thread(mine, [row for row in covered if row["threads"] == 1]) if threads > 1 else []
        return against(self.peer, mine)


def _cases(operations, modes, dtype="float32", ragged=False, **same):
    """covers(case) of these operations and modes, with these values of other fields."""

    def covers(case):
        fits = case.operation in operations and case.mode in modes and (case.dtype, case.ragged) == (dtype, ragged)
        return fits and all(getattr(case, name) == value for name, value in same.items())

    return covers


def _large(mode):
    """covers(case) where the multiplier is what the time goes to."""
    fits = _cases(LAYERS, [mode])
    return lambda case: fits(case) and case.B >= 32 and case.H >= 256


STEPPING = (*LAYERS, *(f"{operation}_cell" for operation in LAYERS))
TARGETS = [
    Target("every row", 1.0, lambda case: True, each=True),
    Target("LSTM, inference", 1.2, _cases(["lstm"], ["forward"])),
    Target("GRU, inference", 1.3, _cases(["gru"], ["forward"])),
    Target("RNN, inference", 3.0, _cases(["rnn"], ["forward"])),
    Target("LSTM, training", 1.3, _cases(["lstm"], ["training"])),
    Target("GRU, training", 3.0, _cases(["gru"], ["training"])),
    Target("RNN, training", 3.0, _cases(["rnn"], ["training"])),
    Target("single steps, of cells and of layers", 2.0, _cases(STEPPING, ["step"])),
    Target("nn.LSTM with T=1, B=1", 20.0, _cases(["lstm"], ["step"], B=1), peer="torch"),
    Target("attention, inference", 2.4, _cases(["attention"], ["forward"])),
    Target("attention, inference, bfloat16", 4.0, _cases(["attention"], ["forward"], "bfloat16")),
    Target("attention, backward and training", 2.5, _cases(["attention"], ["backward", "training"])),
    Target("decode, 16384 keys", 2.0, _cases(["decode"], ["forward"], T=16384)),
    Target("LSTM, bfloat16", 1.0, _cases(["lstm"], ["forward", "training"], "bfloat16")),
    Target("ragged rows against PackedSequence", 8.0, _cases(LAYERS, ["forward", "training"], ragged=True), "torch"),
    Target("inference, B ≥ 32, H ≥ 256", 0.85, _large("forward"), "floor", each=True),
    Target("training, B ≥ 32, H ≥ 256", 0.75, _large("training"), "floor", each=True),
    Target("inference and steps, B = 1", 0.8, _cases(STEPPING, ["forward", "step"], B=1), "floor", each=True),
    Target("threads on inference, B ≥ 32, H ≥ 256", 1.7, _large("forward"), "one thread", each=True),
]


def verdicts(rows):
    """One a target and number of threads, plain data: what is needed, how many rows have a time, of how many in the
    grid, and how many of them have the ratio; the mean and the least ratio, and the latter's row; whether it holds, and
    that in words. None, and open, where rows are missing."""
    made = []
    for threads in sorted({row["threads"] for row in rows}):
        for target in TARGETS:
            covered = target.rows(rows, threads)
            if covered:
                judged = _judge(target, covered)
                asked = {"target": target.text, "label": target.text + with_threads(threads), "needed": target.needed}
                made.append({**asked, "threads": threads, **judged})
    return made


def _judge(target, covered):
    good, expected = timed(covered), sum(map(target.covers, GRID))
    kept = sum(timing.holds(row["ratio"], target.ratio) for row in good)
    mean = timing.geometric_mean([row["rounds"] for row in good]) if good else None
    least = min(good, key=lambda row: row["ratio"][0], default=None)
    if len(good) < len(covered) or (target.each and kept < len(good)):
        holds = False
    elif len(good) < expected:
        holds = None
    else:
        holds = target.each or timing.holds(mean, target.ratio)
    return {
        **{"rows": len(good), "expected": expected, "kept": kept, "mean": mean},
        **{"least": least and least["ratio"], "least_row": least and least["name"], "holds": holds},
        "verdict": {True: "holds", False: "does not hold", None: "needs every row: --full"}[holds],
    }
