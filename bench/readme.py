"""The README's blocks of results, each from a recorded run, between two marks that name its folder."""

import statistics
from pathlib import Path

from . import records, report, timing
from .cases import MODULES, Case
from .cuda import summary
from .race_rows import against, timed, with_threads
from .studies import STUDIES

GPU_MARKS = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NOTHING_ON_A_GPU = "Nothing has been measured on a GPU, and no figure is claimed for one."


def marks(name):
    """What the block of the results in the folder `name` lies between."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def fill(readme, folder):
    """Writes the block of the results in `folder`, which lies beside or below the README, between its two marks."""
    _fill(readme, folder, marks, block)


def fill_gpu(readme, path):
    """The same for the recording of a GPU in the file `path`."""
    _fill(readme, path, lambda _: GPU_MARKS, gpu_block)


def _fill(readme, source, marks, make):
    readme = Path(readme)
    text = readme.read_text(encoding="utf-8")
    place, root = Path(source).resolve(), readme.resolve().parent
    if not place.is_relative_to(root):
        raise report.ReportError(f"the results must be in the folder of {readme}, which names them; got {source}")
    name = place.relative_to(root).as_posix()
    first, last = marks(name)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not end:
        raise report.ReportError(f"{readme} needs the lines {first} and {last}, in this order")
    made = make(source, name)
    readme.write_text(f"{before}{begin}\n{made}\n{end}{after}", encoding="utf-8")


def block(folder, name):
    """The block for the results in `folder`, called by `name`, as Markdown."""
    data = report.load(folder)
    return report.render(
        "readme.md.j2", data=data, groups=groups(data), name=name, command=_command(data, name)
    ).strip()


def _command(data, name):
    """What records such results again, in the folder `name`."""
    settings, threads = data["settings"], data["fingerprint"]["threads"]
    studies = settings.get("studies", STUDIES)
    words = ["seqkernels bench"] + [f"--{settings['amount']}"] * (settings["amount"] != "default")
    words += [f"--only {','.join(studies)}"] * (len(studies) < len(STUDIES))
    threads = [threads] if isinstance(threads, int) else threads
    words += [f"--threads {','.join(map(str, threads))}"] * (threads != [1])
    return " ".join([*words, f"--out {name}"])


def gpu_block(path, name):
    """The block for the recording of a GPU in the file `path`, called by `name`, as Markdown."""
    found = records.read(path)
    if not found or "device" not in found[0].get("fingerprint", {}):
        raise report.ReportError(f"{path} is no recording of a GPU: seqkernels bench --device cuda writes one")
    return report.render("gpu.md.j2", data=summary.summarise(found[0], found[1:]), name=name).strip()


def title(case):
    """The group of races that a case belongs to: operation and mode, and what sets it apart."""
    kind = MODULES.get(case.operation, case.operation)
    words = [kind, "one step" if case.mode == "step" else case.mode]
    return ", ".join(words + [case.dtype] * (case.dtype != "float32") + ["ragged rows"] * case.ragged)


def groups(data):
    """One entry a group: title, number of cases, mean ratios to the best peer and to torch, slowest case, and the part
    of our time that the floor is, in the mean."""
    found = {}
    for row in data["race"]:
        found.setdefault((row["threads"], title(Case(**row["case"]))), []).append(row)
    return [_group(*group, members) for group, members in sorted(found.items(), key=lambda item: item[0][0])]


def _group(threads, name, members):
    best, torch = (timed(against(peer, members)) for peer in ("best", "torch"))
    parts = [row["of_floor"] for row in best if row["of_floor"]]
    return {
        "title": name + with_threads(threads),
        "cases": len({row["name"] for row in members}),
        "best": timing.geometric_mean([row["rounds"] for row in best]) if best else None,
        "torch": timing.geometric_mean([row["rounds"] for row in torch]) if torch else None,
        "slowest": min((row["ratio"] for row in best), default=None),
        "of_floor": statistics.geometric_mean(parts) if parts else None,
    }
