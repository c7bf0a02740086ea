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

    mode: "forward" (inference), "training" (forward and backward), "backward" (of attention alone) or "step" (one time
    step, batch 1).
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
    dtype: str = "float32"
    subset: str = "full"

    @property
    def name(self):
        """The case in one word, for records, tests and tables."""
        batch = f"B{self.B}-" * (self.B > 1)
        attention = f"{batch}N{self.N}-T{self.T}-D{self.D}"
        shape = attention if self.operation in ATTENTION else f"T{self.T}-B{self.B}-H{self.H}"
        extras = [f"L{self.L}"] * (self.L > 1) + ["both"] * self.bidirectional + ["causal"] * self.causal
        return "-".join([self.operation, shape, *extras, self.dtype, self.mode])

    @property
    def cell(self):
        """True for the modules that take one time step without a time dimension."""
        return self.operation.endswith("_cell")

    @property
    def plain(self):
        """True for what expectations are about: float32, one layer, one direction, the shapes of SHAPES."""
        shaped = self.operation not in LAYERS or self.mode == "step" or (self.T, self.B, self.H) in SHAPES
        return shaped and self.dtype == "float32" and self.L == 1 and not self.bidirectional

    def smoke(self):
        """The same case at a size that runs in a moment."""
        sizes = {"T": 5, "B": 3, "H": 9, "N": 2, "D": 8}
        return replace(self, subset="full", **{name: min(getattr(self, name), most) for name, most in sizes.items()})

    def as_dict(self):
        """Plain data; `Case(**case.as_dict())` gives the case back."""
        return asdict(self)


SHAPES = [(128, 1, 128), (128, 1, 512), (128, 32, 128), (128, 32, 512), (512, 64, 256), (64, 64, 1024)]
QUICK = {"lstm": SHAPES[2:3], "gru": SHAPES[2:3], "rnn": []}
DEFAULT = {"lstm": SHAPES[:4], "gru": SHAPES[2:3], "rnn": SHAPES[2:3]}


def _sequences():
    for operation in LAYERS:
        for mode in ("forward", "training"):
            for shape in SHAPES:
                subset = "quick" if shape in QUICK[operation] else "default" if shape in DEFAULT[operation] else "full"
                yield Case(operation, mode, *shape, subset=subset)


def _steps():
    for H in (128, 256, 512, 1024):
        yield Case("lstm", "step", H=H, subset={128: "quick", 512: "default"}.get(H, "full"))
    for operation in ("lstm_cell", "gru_cell", "rnn_cell"):
        for H in (64, 128, 256, 512):
            yield Case(operation, "step", H=H, subset="default" if (operation, H) == ("lstm_cell", 128) else "full")


def _attention():
    for T in (512, 2048):
        for causal in (False, True):
            subset = "full" if T == 512 else "quick" if causal else "default"
            yield Case("attention", T=T, N=8, D=64, causal=causal, subset=subset)
    yield Case("decode", T=16384, N=8, D=64, subset="quick")


def _others():
    yield Case("lstm", "forward", 128, 32, 200)
    yield Case("lstm", "training", 128, 32, 200)
    yield Case("gru", "forward", 128, 32, 256, bidirectional=True)
    yield Case("lstm", "forward", 128, 32, 256, L=2)
    yield Case("lstm", "training", 128, 32, 256, L=2, bidirectional=True)
    yield Case("lstm", "forward", 128, 32, 256, dtype="float64")


GRID = [*_sequences(), *_steps(), *_attention(), *_others()]


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
