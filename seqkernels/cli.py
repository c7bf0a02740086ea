"""The `seqkernels` command: `bench` measures and reports, `report` reports again, `check` compares exact counters."""

import argparse
import importlib.util
import sys
from pathlib import Path

EXTRAS = ("matplotlib", "jinja2", "rich", "scipy")


def _positive(kind):
    def parse(text):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def parser():
    """The argument parser of the command."""
    top = argparse.ArgumentParser(prog="seqkernels", description="Fast recurrent networks and attention for PyTorch.")
    commands = top.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench", help="measure this machine on real text and write a report")
    amount = bench.add_mutually_exclusive_group()
    amount.add_argument("--quick", action="store_const", const="quick", dest="amount", help="within two minutes")
    amount.add_argument("--full", action="store_const", const="full", dest="amount", help="every case of the grid")
    bench.set_defaults(amount="default")
    bench.add_argument(
        "--text", metavar="FILE", help="text to learn (default: the sources of Python's standard library)"
    )
    bench.add_argument("--out", metavar="DIR", default="report", help="where results and report go (default: report)")
    bench.add_argument("--seconds", type=_positive(float), metavar="N", help="training time of each model")
    bench.add_argument("--threads", type=_positive(int), default=1, metavar="N", help="for ours and peers (default: 1)")
    bench.add_argument(
        "--only",
        action="append",
        choices=("training", "generation", "endurance", "race"),
        help="this study alone; may be repeated",
    )
    report = commands.add_parser("report", help="write the report of recorded results again")
    report.add_argument("folder", metavar="DIR", help="holds results.jsonl, as seqkernels bench --out DIR wrote it")
    report.add_argument("--readme", metavar="FILE", help="put the results into the block that FILE keeps for them")
    check = commands.add_parser("check", help="compare exact counters with what is recorded")
    check.add_argument("action", nargs="?", choices=("record",), help="record what is measured as the expectation")
    return top


def _missing():
    return [name for name in EXTRAS if importlib.util.find_spec(name) is None]


def _bench(arguments):
    from .bench import main

    return main.bench(arguments)


def _report(arguments):
    from .bench import readme, report

    try:
        report.write(arguments.folder)
        if arguments.readme:
            readme.fill(arguments.readme, arguments.folder)
    except (report.ReportError, OSError) as error:
        print(f"seqkernels report: {error}", file=sys.stderr)
        return 2
    print(f"Report: {Path(arguments.folder) / 'report.html'}")
    return 0


def _check(arguments):
    from .bench import check

    if arguments.action == "record":
        print(f"{len(check.record())} rows recorded in {check.EXPECTED}")
        return 0
    expected = check.read().get(check.instruction_set(), {})
    measured = check.measure()
    for message in check.improvements(measured, expected):
        print(f"better: {message}; record it with: {check.REFRESH}")
    if not _missing():
        for row, (ratio, low, high) in check.ratios():
            print(f"{row}: {ratio:.2f} times torch's speed ({low:.2f} to {high:.2f})")
    problems = check.compare(measured, expected)
    for message in problems:
        print(message, file=sys.stderr)
    print(f"{len(measured)} rows checked on {check.instruction_set()}, {len(problems)} problems")
    return 1 if problems else 0


def main(argv=None):
    """Runs the command and returns its exit status: 0 well, 1 a check failed, 2 bad input, 130 interrupted."""
    arguments = parser().parse_args(argv)
    missing = _missing()
    if missing and arguments.command != "check":
        needed = f"needs {', '.join(missing)}: pip install 'seqkernels[bench]'"
        print(f"seqkernels {arguments.command} {needed}", file=sys.stderr)
        return 2
    return {"bench": _bench, "report": _report, "check": _check}[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
