"""The `seqkernels` command: `bench` measures and reports, `report` reports again, `check` compares exact counters,
`tune` searches for blocks."""

import argparse
import importlib.util
import sys
from pathlib import Path

from .bench.studies import STUDIES as STUDIES_ON_A_CPU

EXTRAS = ("matplotlib", "jinja2", "rich")
STUDIES = {
    "cpu": STUDIES_ON_A_CPU,
    "cuda": ("ceilings", "scan", "attention", "decode", "step", "curves", "names"),
}


def _listed():
    return "; ".join(f"{device}: {', '.join(names)}" for device, names in STUDIES.items())


def _studies(text):
    names = text.split(",")
    unknown = [name for name in names if not any(name in known for known in STUDIES.values())]
    if unknown:
        raise argparse.ArgumentTypeError(f"knows {_listed()}; got {', '.join(unknown)}")
    return names


def _positive(kind):
    def parse(text):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def _threads(text):
    return list(dict.fromkeys(_positive(int)(number) for number in text.split(",")))


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
    bench.add_argument("--device", choices=STUDIES, default="cpu", help="what is measured (default: cpu)")
    bench.add_argument(
        "--out", metavar="DIR", help="where results and report go (default: report; cuda: bench/results)"
    )
    bench.add_argument("--seconds", type=_positive(float), metavar="N", help="training time a model; cuda: of the run")
    bench.add_argument(
        "--threads", type=_threads, default=[1], metavar="N", help="or N,N,...: races with each (default: 1)"
    )
    bench.add_argument(
        "--only", action="append", metavar="STUDY", type=_studies, help=f"these alone, a,b or repeated: {_listed()}"
    )
    report = commands.add_parser("report", help="write the report of recorded results again")
    report.add_argument("folder", metavar="DIR", help="holds results.jsonl; or a file, of --device cuda")
    report.add_argument("--readme", metavar="FILE", help="put the results into the block that FILE keeps for them")
    check = commands.add_parser("check", help="compare exact counters with what is recorded")
    check.add_argument("--ratios", action="store_true", help="speeds relative to torch's, in the place of counters")
    check.add_argument("action", nargs="?", choices=("record",), help="record what is measured as the expectation")
    tune = commands.add_parser("tune", help="search for attention's blocks on the GPU at hand")
    tune.add_argument("--seconds", type=_positive(float), default=400.0, metavar="N", help="in all (default: 400)")
    return top


def _missing():
    return [name for name in EXTRAS if importlib.util.find_spec(name) is None]


def _bench(arguments):
    arguments.only = [name for names in arguments.only or () for name in names]
    foreign = [name for name in arguments.only if name not in STUDIES[arguments.device]]
    if foreign:
        print(f"seqkernels bench: --device {arguments.device} has no study {', '.join(foreign)}", file=sys.stderr)
        return 2
    if arguments.device == "cuda":
        from .bench.cuda import main

        return main.bench(arguments.only or None, arguments.out or "bench/results", arguments.seconds)
    from .bench import main

    arguments.out = arguments.out or "report"
    return main.bench(arguments)


def _report(arguments):
    from .bench import readme, report

    if Path(arguments.folder).is_file() and not arguments.readme:
        print("seqkernels report: a recording of a GPU goes into a README: --readme FILE", file=sys.stderr)
        return 2
    try:
        if Path(arguments.folder).is_file():
            readme.fill_gpu(arguments.readme, arguments.folder)
            return 0
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

    if arguments.ratios:
        return _check_ratios(arguments)
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


def _check_ratios(arguments):
    from .bench import ratios

    if arguments.action == "record":
        rows = ratios.record()
        for row, recorded in rows.items():
            print(f"{row}: {recorded['ratio']:.3f} times torch's speed, at least {ratios.margin(recorded):.3f}")
        print(f"{len(rows)} rows recorded in {ratios.RECORDED}")
        return 0
    recorded = ratios.read().get(ratios.circumstances())
    problems = ratios.missing(recorded)
    verdicts = [] if problems else ratios.check(recorded)
    for verdict in verdicts:
        if verdict.holds:
            print(verdict)
        else:
            problems.append(str(verdict))
    for message in problems:
        print(message, file=sys.stderr)
    print(f"{len(verdicts)} ratios judged for {ratios.circumstances()}, {len(problems)} problems")
    return 1 if problems else 0


def _tune(arguments):
    from .bench import tune

    return tune.run(arguments.seconds)


def main(argv=None):
    """Runs the command and returns its exit status: 0 well, 1 a check failed, 2 bad input, 130 interrupted."""
    arguments = parser().parse_args(argv)
    missing = _missing() if getattr(arguments, "device", "cpu") == "cpu" else []
    if missing and arguments.command not in ("check", "tune"):
        needed = f"needs {', '.join(missing)}: pip install 'seqkernels[bench]'"
        print(f"seqkernels {arguments.command} {needed}", file=sys.stderr)
        return 2
    return {"bench": _bench, "report": _report, "check": _check, "tune": _tune}[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
