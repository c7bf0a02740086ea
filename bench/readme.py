"""The README's block of results, from a recorded run."""

from pathlib import Path

from . import records, report, timing
from .cases import MODULES, TARGETS, Case
from .cuda import summary
from .summary import against, needed, with_threads

MARKS = BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
GPU_MARKS = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NOTHING = "No figure is recorded yet."
NOTHING_ON_A_GPU = "Nothing has been measured on a GPU, and no figure is claimed for one."
OTHERS = "other shapes and dtypes, two layers, both directions, ragged rows"


def fill(readme, folder):
    """Writes the block of the results in `folder`, which lies beside or below the README, between its two marks."""
    _fill(readme, folder, MARKS, block)


def fill_gpu(readme, path):
    """The same for the recording of a GPU in the file `path`."""
    _fill(readme, path, GPU_MARKS, gpu_block)


def _fill(readme, source, marks, make):
    readme = Path(readme)
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not end:
        raise report.ReportError(f"{readme} needs the lines {marks[0]} and {marks[1]}, in this order")
    place, root = Path(source).resolve(), readme.resolve().parent
    if not place.is_relative_to(root):
        raise report.ReportError(f"the results must be in the folder of {readme}, which names them; got {source}")
    made = make(source, place.relative_to(root).as_posix())
    readme.write_text(f"{before}{begin}\n{made}\n{end}{after}", encoding="utf-8")


def block(folder, name):
    """The block for the results in `folder`, called by `name`, as Markdown."""
    data = report.load(folder)
    return report.render("readme.md.j2", data=data, groups=groups(data), name=name).strip()


def gpu_block(path, name):
    """The block for the recording of a GPU in the file `path`, called by `name`, as Markdown."""
    found = records.read(path)
    if not found or "device" not in found[0].get("fingerprint", {}):
        raise report.ReportError(f"{path} is no recording of a GPU: seqkernels bench --device cuda writes one")
    return report.render("gpu.md.j2", data=summary.summarise(found[0], found[1:]), name=name).strip()


def title(case):
    """The group of races that a case belongs to."""
    if not case.plain:
        return OTHERS
    kind = MODULES.get(case.operation, f"{case.operation}, N={case.N} D={case.D}")
    return f"{kind}, one step at B=1" if case.mode == "step" else f"{kind}, {case.mode}"


def groups(data):
    """One entry a group: title, number of cases, mean ratios to the best peer and to torch, slowest case, expected."""
    found = {}
    for row in data["race"]:
        found.setdefault((row["threads"], title(Case(**row["case"]))), []).append(row)
    ordered = sorted(found, key=lambda group: (group[0], group[1] == OTHERS))
    return [_group(*group, found[group], data["targets"]) for group in ordered]


def _group(threads, name, members, verdicts):
    best, torch = (timed(against(peer, members)) for peer in ("best", "torch"))
    covering = [target for target in TARGETS if any(target.covers(Case(**row["case"])) for row in members)]
    mine = [verdict for verdict in verdicts if verdict["threads"] == threads]
    return {
        "title": name + with_threads(threads),
        "cases": len({row["name"] for row in members}),
        "best": timing.geometric_mean([row["rounds"] for row in best]) if best else None,
        "torch": timing.geometric_mean([row["rounds"] for row in torch]) if torch else None,
        "slowest": min((row["ratio"] for row in best), default=None),
        "expected": [held(target, mine) for target in covering],
    }


def timed(found):
    """The rows that have a time."""
    return [row for row in found if row["status"] == "ok"]


def held(target, verdicts):
    """What a target asks for, and how many of its rows have it."""
    mine = [verdict for verdict in verdicts if verdict["target"] == target.text]
    if target.mean:
        return f"{needed(target)}: {' and '.join(dict.fromkeys(verdict['verdict'] for verdict in mine))}"
    kept = sum(verdict["holds"] for verdict in mine)
    return f"{needed(target)}: {kept} of {len(mine)} {'holds' if kept == 1 else 'hold'}"
