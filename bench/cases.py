"""The named grid of cases, and what each is expected to show.

T time, B batch, I input, H hidden, L layers, N heads, D head size. I = H wherever it is not given.
"""

from dataclasses import asdict, dataclass, replace

LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
MODULES = LAYERS | {f"{name}_cell": f"{kind}Cell" for name, kind in LAYERS.items()}
ATTENTION = ("attention", "decode")
SUBSETS = ("quick", "default", "full")


@dataclass(frozen=True)
class Case:
    """One row of the grid: an operation at a shape, in a mode.

    mode: "forward" (inference), "training" (forward and backward; of a cell over T steps in a loop), "backward" (of
    attention alone) or "step" (one time step).
    ragged: the rows end at `lengths`, and come as a PackedSequence.
    subset: the smallest of "quick", "default" and "full" that holds the case.
    """

    operation: str
    mode: str = "forward"
    T: int = 1
    B: int = 1
    H: int = 0
    L: int = 1
    bidirectional: bool = False
    N: int = 0
    D: int = 0
    causal: bool = False
    ragged: bool = False
    dtype: str = "float32"
    subset: str = "full"

    @property
    def name(self):
        """The case in one word, for records, tests and tables."""
        batch = f"B{self.B}-" * (self.B > 1)
        attention = f"{batch}N{self.N}-T{self.T}-D{self.D}"
        shape = attention if self.operation in ATTENTION else f"T{self.T}-B{self.B}-H{self.H}"
        extras = [f"L{self.L}"] * (self.L > 1) + ["both"] * self.bidirectional + ["causal"] * self.causal
        extras += ["ragged"] * self.ragged
        return "-".join([self.operation, shape, *extras, self.dtype, self.mode])

    @property
    def cell(self):
        """True for the modules that take one time step without a time dimension."""
        return self.operation.endswith("_cell")

    @property
    def lengths(self):
        """Steps of each row, the longest first: all T, or where they are ragged evenly from T down to T/B."""
        return [max(1, self.T * (self.B - row) // self.B) if self.ragged else self.T for row in range(self.B)]

    @property
    def plain(self):
        """True for what expectations are about: float32, one layer, one direction, rows of one length, the shapes of
        SHAPES and KEYS, one row in a step."""
        if self.operation in ATTENTION:
            shaped = self.B == 1 and self.T in KEYS[self.operation]
        else:
            shaped = self.B == 1 if self.mode == "step" else (self.T, self.B, self.H) in SHAPES
        return shaped and self.dtype == "float32" and self.L == 1 and not self.bidirectional and not self.ragged

    def smoke(self):
        """The same case at a size that runs in a moment."""
        sizes = {"T": 5, "B": 3, "H": 9, "N": 2, "D": 8}
        return replace(self, subset="full", **{name: min(getattr(self, name), most) for name, most in sizes.items()})

    def as_dict(self):
        """Plain data; `Case(**case.as_dict())` gives the case back."""
        return asdict(self)


SHAPES = [(128, 1, 128), (128, 1, 512), (128, 32, 128), (128, 32, 512), (512, 64, 256), (64, 64, 1024)]
KEYS = {"attention": (512, 2048), "decode": (16384,)}
QUICK = {"lstm": SHAPES[2:3], "gru": SHAPES[2:3], "rnn": []}
DEFAULT = {"lstm": SHAPES[:4], "gru": SHAPES[2:3], "rnn": SHAPES[2:3]}
# Rows and units that divide by no vector, tile or thread; a few units; sequences of thousands of steps.
AWKWARD = [(128, 30, 128), (128, 31, 128), (128, 33, 128), (128, 32, 33), (128, 32, 200), (64, 32, 1000)]
FAR = [(128, 8, 64), (2048, 1, 256), (2048, 16, 64)]
MODES = ("forward", "training")


def _sequences():
    for operation in LAYERS:
        for mode in MODES:
            for shape in SHAPES:
                subset = "quick" if shape in QUICK[operation] else "default" if shape in DEFAULT[operation] else "full"
                yield Case(operation, mode, *shape, subset=subset)
            for shape in AWKWARD + FAR:
                if operation == "lstm" or mode == "forward" or shape in ((128, 33, 128), (128, 32, 200), (128, 8, 64)):
                    yield Case(operation, mode, *shape)


def _steps():
    for H in (128, 256, 512, 1024):
        yield Case("lstm", "step", H=H, subset={128: "quick", 512: "default"}.get(H, "full"))
    for operation in LAYERS:
        cell = f"{operation}_cell"
        for H in (64, 128, 256, 512):
            yield Case(cell, "step", H=H, subset="default" if (operation, H) == ("lstm", 128) else "full")
        yield Case(cell, "step", B=32, H=200)
        yield Case(cell, "training", T=16, B=32, H=256)
        yield Case(operation, "step", B=32, H=256)
        if operation != "lstm":
            yield Case(operation, "step", H=512)


def _attention():
    for T in KEYS["attention"]:
        for causal in (False, True):
            subset = "full" if T == 512 else "quick" if causal else "default"
            yield Case("attention", T=T, N=8, D=64, causal=causal, subset=subset)
            yield Case("attention", "backward", T=T, N=8, D=64, causal=causal)
    for causal in (False, True):
        yield Case("attention", "training", T=2048, N=8, D=64, causal=causal)
    yield Case("attention", "training", T=200, B=31, N=8, D=64, causal=True)
    yield Case("attention", T=1000, B=4, N=8, D=64, causal=True)
    yield Case("decode", T=16384, N=8, D=64, subset="quick")
    yield Case("decode", T=1024, N=8, D=64)
    yield Case("decode", T=4096, N=8, D=64)
    yield Case("decode", T=1024, B=32, N=8, D=64)


def _stacks():
    for operation in LAYERS:
        for mode in MODES:
            yield Case(operation, mode, 128, 32, 256, L=2, bidirectional=True)
            yield Case(operation, mode, 128, 32, 256, ragged=True)
        yield Case(operation, "forward", 128, 32, 256, bidirectional=True)
        yield Case(operation, "forward", 128, 32, 256, L=2)
    yield Case("lstm", "training", 512, 8, 256, ragged=True)


def _dtypes():
    yield Case("lstm", "forward", 128, 32, 256, dtype="float64")
    brief = {"dtype": "bfloat16"}
    for operation in LAYERS:
        for mode in MODES:
            yield Case(operation, mode, 128, 32, 512, **brief)
    yield Case("lstm", "forward", 128, 1, 512, **brief)
    yield Case("lstm", "step", H=512, **brief)
    yield Case("lstm_cell", "step", H=512, **brief)
    for causal in (False, True):
        for mode in MODES:
            yield Case("attention", mode, T=2048, N=8, D=64, causal=causal, **brief)
    yield Case("decode", T=16384, N=8, D=64, **brief)


GRID = [*_sequences(), *_steps(), *_attention(), *_stacks(), *_dtypes()]


def select(subset):
    """The cases of a subset: those of the smaller subsets are among them."""
    return [case for case in GRID if SUBSETS.index(case.subset) <= SUBSETS.index(subset)]


@dataclass(frozen=True)
class Target:
    """What rows of the grid are expected to show: ratio = time of the peer / our time, at least `ratio`.

    peer: the name of a provider, or "best" for the fastest peer of the row.
    mean: the geometric mean over the rows is meant, instead of each row.
    """

    text: str
    operation: str
    mode: str
    ratio: float
    peer: str = "best"
    mean: bool = False
    H: tuple = ()

    def covers(self, case):
        """Whether a case is one of this target's rows."""
        same = (case.operation, case.mode) == (self.operation, self.mode)
        return case.plain and same and (not self.H or case.H in self.H)


TARGETS = [
    Target("LSTM forward, each shape", "lstm", "forward", 1.0),
    Target("LSTM forward, geometric mean", "lstm", "forward", 1.15, mean=True),
    Target("LSTM training, each shape", "lstm", "training", 1.15, peer="torch"),
    Target("LSTM training, geometric mean", "lstm", "training", 1.15, peer="torch", mean=True),
    *(
        Target(f"{operation.upper()} {mode}, each shape", operation, mode, 2.0, peer="torch")
        for operation in ("rnn", "gru")
        for mode in ("forward", "training")
    ),
    Target("nn.LSTM with T=1, B=1, H=128", "lstm", "step", 8.0, peer="torch", H=(128,)),
    Target("nn.LSTM with T=1, B=1, H=256 to 1024", "lstm", "step", 20.0, peer="torch", H=(256, 512, 1024)),
    Target("nn.LSTMCell with B=1, H=64 to 512", "lstm_cell", "step", 1.5, peer="torch"),
    Target("attention forward, causal and full, N=8, D=64", "attention", "forward", 2.0, peer="torch"),
    Target("decode, one query, N=8, D=64, 16384 keys", "decode", "forward", 1.3, peer="torch"),
]
