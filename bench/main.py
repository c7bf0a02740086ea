"""The main job: studies one after the other, results as they come, then the report."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import library, machine, report, text
from .records import Records
from .studies import STUDIES, endurance, formats, generation, grid, training


@dataclass(frozen=True)
class Amount:
    """How much is measured: seconds a model trains, last position, last step of the long stream, seconds a pair and
    a cell's step in every format, steps that a model trains whose weights are then put into other formats."""

    training: float
    last_position: int
    last_step: int
    pair: float
    formats: int


AMOUNTS = {
    "quick": Amount(8.0, 2048, 10_000, 0.5, 100),
    "default": Amount(75.0, 16_384, 100_000, 1.5, 500),
    "full": Amount(75.0, 16_384, 1_000_000, 2.5, 1500),
}


def bench(arguments):
    """Runs `seqkernels bench` with parsed arguments; returns the exit status. Races run with each of the numbers of
    threads, everything else with the first."""
    console = Console(soft_wrap=True, highlight=False)
    amount = AMOUNTS[arguments.amount]
    seconds = arguments.seconds or amount.training
    studies = [name for name in STUDIES if name in (arguments.only or STUDIES)]
    torch.set_num_threads(arguments.threads[0])
    try:
        data = text.load(arguments.text, training.WINDOW)
        settings = {"amount": arguments.amount, "studies": studies, "text": data[2], **asdict(amount)}
        settings["training"] = seconds
        records = Records(arguments.out, {"fingerprint": machine.fingerprint(arguments.threads), "settings": settings})
    except text.TextError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"--out cannot be written: {error}")
    if records.resumed:
        console.print(f"Going on with the {len(records.items)} results in {records.path}.")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    start, interrupted = time.perf_counter(), False
    with Progress(*columns, console=console) as progress:
        try:
            _measure(records, studies, data, seconds, amount, arguments, progress)
        except KeyboardInterrupt:
            interrupted = True
    records.add("compilations", "studies", compilations=library.compilations())
    if not interrupted:
        records.finish()
    _tell(console, report.write(arguments.out), Path(arguments.out), time.perf_counter() - start, interrupted)
    return 130 if interrupted else 0


def _refuse(message):
    print(f"seqkernels bench: {message}", file=sys.stderr)
    return 2


def _measure(records, studies, data, seconds, amount, arguments, progress):
    jobs = {
        "training": lambda: training.run(records, data, seconds, progress),
        "generation": lambda: generation.run(records, data, amount.last_position, progress),
        "endurance": lambda: endurance.run(records, amount.last_step, progress),
        "formats": lambda: formats.run(records, data, amount.formats, amount.pair, progress),
        "race": lambda: grid.run(records, arguments.amount, amount.pair, arguments.threads, progress),
    }
    for name in studies:
        jobs[name]()


def _tell(console, data, folder, seconds, interrupted):
    """Prints the headlines."""
    for name, curve in data["generation"]["curves"].items():
        console.print(f"{name}: time a token grows as T^{report.interval(curve['exponent'])}")
    for cross in data["generation"]["crossovers"]:
        words = report.crossing(cross, data["generation"])
        console.print(f"{cross['growing']} costs more a token than {cross['flat']} from T = {words}")
    for name, model in data["training"].items():
        if model["result"]:
            console.print(f"{name}: {model['result']['held_out']:.3f} bits a byte on held-out text")
    wrong = [row["name"] for row in data["race"] if row["status"] != "ok"]
    if wrong:
        console.print(f"without a time, wrong or failed: {', '.join(wrong)}")
    judged = [verdict["holds"] for verdict in data["targets"] if verdict["holds"] is not None]
    console.print(f"{sum(judged)} of {len(judged)} expectations on races hold.")
    if interrupted:
        console.print("Interrupted: the same command goes on from here.")
    console.print(f"{seconds:.0f} s, kernels compiled: {data['compilations']}.")
    console.print(f"Report: {folder / 'report.html'}")
