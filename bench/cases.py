"""The named grid of cases.

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
    for T in (512, 2048):
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
