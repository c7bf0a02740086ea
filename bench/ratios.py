"""Performance checks on ratios: `seqkernels check record --ratios` and `seqkernels check --ratios`.

A row's figure is torch's time over ours, in one process, so that it says how fast we are on a machine whose own speed
changes. A measurement is a fresh process, which goes through the rows block after block: a block is a short interleaved
race, its figure the median of the rounds' paired ratios. The blocks of a row are thus spread over the whole measurement
and what disturbs the machine for a moment spoils few of them; the row's figure is their median.

A process has a speed of its own, by where its memory lies. Recorded are therefore several processes: the median of
their figures and their spread, the largest distance of one's from it, in logarithms. The margin below the recorded
figure is two and a half times the spread, and 5% at least. A row whose figure is below it is measured again, longer, in
one process and then another, and fails only where in each of these the whole 95% interval of its blocks is below: more
blocks of one unlucky process would only make it surer of itself.
"""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from . import library, machine, problems, timing
from .check import case_rows, instruction_set

RECORDED = Path(__file__).with_name("ratios.json")
REFRESH = "seqkernels check record --ratios"
BLOCKS, BLOCK_SECONDS = 21, 0.05
PROCESSES = 7  # that a recording takes its spread from
RETRIES, MORE = 2, 3  # further processes for a row that is below its margin; how many times the blocks each has
LEAST_MARGIN, SPREADS = math.log(1.05), 2.5
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Verdict:
    """A row's figure with its interval (median, low, high), the least that it may be, and what was recorded."""

    row: str
    figure: tuple
    margin: float
    recorded: float
    holds: bool

    def __str__(self):
        measured = "{:.3f} ({:.3f} to {:.3f})".format(*self.figure)
        words = f"{self.row}: {measured} times torch's speed, recorded {self.recorded:.3f}, at least {self.margin:.3f}"
        return words if self.holds else f"{words}. If this is meant, refresh what is recorded with: {REFRESH}"


def blocks(cases, count, seconds=BLOCK_SECONDS):
    """{row: figures of its blocks} in this process, with one thread. cases: {row: Case}."""
    torch.set_num_threads(1)
    calls = {}
    for row, case in cases.items():
        problem = problems.make(case)
        with problems.grad_mode(case):
            calls[row] = [problems.call(source, problem) for source in (library.ours(), library.native())]
    figures = {row: [] for row in cases}
    for _ in range(count):
        for row, case in cases.items():
            with problems.grad_mode(case):
                figures[row].append(timing.ratio(*timing.interleave(calls[row], seconds))[0])
    return figures


def measure(rows, count=BLOCKS):
    """{row: figures of its blocks} of a fresh process. Raises RuntimeError with what it said where it fails."""
    order = json.dumps({"rows": list(rows), "count": count})
    command = [sys.executable, "-m", "seqkernels.bench.ratios", order]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    if done.returncode:
        raise RuntimeError(f"ratios could not be measured: {done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def recording(runs):
    """What is recorded of several processes, each {row: figures of its blocks}: {row: {"ratio", "spread"}}."""
    made = {}
    for row in runs[0]:
        logs = [math.log(timing.median_interval(run[row])[0]) for run in runs]
        middle = timing.median_interval(logs)[0]
        spread = max(abs(one - middle) for one in logs)
        made[row] = {"ratio": round(math.exp(middle), 4), "spread": round(spread, 4)}
    return made


def margin(recorded):
    """The least figure that a row may have."""
    return recorded["ratio"] * math.exp(-max(LEAST_MARGIN, SPREADS * recorded["spread"]))


def judge(row, figures, recorded):
    """The Verdict on the figures of a row's blocks: it does not hold where their whole interval is below the margin."""
    figure = timing.median_interval(figures)
    return Verdict(row, figure, margin(recorded), recorded["ratio"], timing.holds(figure, margin(recorded)))


def check(recorded, measure=measure):
    """A Verdict a row. recorded: {row: {"ratio", "spread"}}. measure: (rows, count) -> {row: figures of blocks}."""
    rows = list(case_rows())
    figures = measure(rows, BLOCKS)
    verdicts = {row: judge(row, figures[row], recorded[row]) for row in rows}
    below = [row for row in rows if verdicts[row].figure[0] < verdicts[row].margin]
    for _ in range(RETRIES):
        again = measure(below, MORE * BLOCKS) if below else {}
        verdicts |= {row: judge(row, again[row], recorded[row]) for row in below}
        below = [row for row in below if not verdicts[row].holds]
    return list(verdicts.values())


def circumstances():
    """The key of this machine's recording: another instruction set, processor or torch has other ratios."""
    found = machine.fingerprint([1])
    return ", ".join((instruction_set(), found["cpu"], f"torch {found['versions']['torch']}"))


def read(path=RECORDED):
    """All recordings: {circumstances: {row: {"ratio", "spread"}}}."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def record(path=RECORDED, measure=measure):
    """Measures all rows in several processes and writes the recording of these circumstances; returns it."""
    made = recording([measure(case_rows(), BLOCKS) for _ in range(PROCESSES)])
    path.write_text(json.dumps(read(path) | {circumstances(): made}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return made


def missing(recorded):
    """Messages: one where nothing is recorded in these circumstances, or for each row that is not."""
    if not recorded:
        return [f"no ratios are recorded for {circumstances()}. Record them with: {REFRESH}"]
    rows = [row for row in case_rows() if row not in recorded]
    return [f"{row}: no ratio is recorded. Record it with: {REFRESH}" for row in rows]


def _main(order):
    order = json.loads(order)
    rows = case_rows()
    print(json.dumps(blocks({row: rows[row] for row in order["rows"]}, order["count"])))


if __name__ == "__main__":
    _main(sys.argv[1])
