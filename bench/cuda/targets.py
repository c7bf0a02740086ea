"""What is asked of the kernels on a GPU, and whether a recording has it."""

from dataclasses import dataclass

from .. import timing
from ..cases import Case
from .figures import best, figure


@dataclass(frozen=True)
class Target:
    """kind: "step time" (microseconds, at most), "mean ratio", or "share" of the best there is (both at least)."""

    text: str
    kind: str
    needed: float
    stage: str
    mode: str

    def covers(self, item):
        """Whether a row is one of this target's."""
        if item["stage"] != self.stage or "case" not in item:
            return False
        case = Case(**item["case"])
        if self.kind == "step time":
            wanted = Case("lstm", self.mode, case.T, 16, 768, dtype="bfloat16")
            return case == wanted
        if self.stage == "step":
            return item["graph"]
        return case.mode == self.mode and case.L == 1 and not case.bidirectional


TARGETS = (
    Target("LSTM forward, B=16, H=768, bfloat16: at most 2 µs a step", "step time", 2.0, "scan", "forward"),
    Target("LSTM training, B=16, H=768, bfloat16: at most 5.1 µs a step", "step time", 5.1, "scan", "training"),
    Target("layers forward, mean: at least 2 times cuDNN's speed", "mean ratio", 2.0, "scan", "forward"),
    Target("layers training, mean: at least 2 times cuDNN's speed", "mean ratio", 2.0, "scan", "training"),
    Target("attention forward: at least 65% of the best backend's speed", "share", 0.65, "attention", "forward"),
    Target("attention backward: at least 55% of the best backend's speed", "share", 0.55, "attention", "backward"),
    Target("decode: at least 80% of the memory's bandwidth", "share", 0.8, "decode", "forward"),
    Target("step in a graph: at least 80% of the bandwidth of what holds the weights", "share", 0.8, "step", "forward"),
)


def verdicts(fingerprint, items):
    """One a target: its text, the figure in words, and "holds", "does not hold" or "not measured".

    A target on several rows holds where all that were measured have it, and none was wrong or failed.
    """
    made = []
    for target in TARGETS:
        mine = [item for item in items if target.covers(item)]
        figures = [figure(fingerprint, items, item) for item in mine]
        known = [value for value in figures if value is not None]
        if target.kind == "mean ratio":
            said, kept = _mean(target, mine)
        elif target.kind == "step time":
            said, kept = ", ".join(f"{value:.3g} µs" for value in known), [value <= target.needed for value in known]
        else:
            kept = [value >= target.needed for value in known]
            said = f"{sum(kept)} of {len(mine)} rows, the least {min(known):.0%}" if known else ""
        bad = [item["status"] for item in mine if item["status"] != "ok"]
        said = ", ".join([*filter(None, [said]), *(f"{bad.count(s)} {s}" for s in dict.fromkeys(bad))])
        verdict = (
            "not measured" if not known and not bad else "holds" if all(kept) and kept and not bad else "does not hold"
        )
        made.append({"target": target.text, "figure": said or "–", "verdict": verdict})
    return made


def _mean(target, items):
    pairs = [(best(item, "ours"), best(item, "peers")) for item in items if "members" in item]
    pairs = [(ours[1], peer[1]) for ours, peer in pairs if ours and peer]
    if not pairs:
        return "", []
    mean = timing.geometric_mean(pairs)
    return "{:.2f} ({:.2f} to {:.2f})".format(*mean) + f" over {len(pairs)} rows", [timing.holds(mean, target.needed)]
