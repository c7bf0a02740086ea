"""Report: records -> report.json, report.md and a self-contained report.html."""

import base64
import json
import math
from pathlib import Path

import jinja2

from . import plots, records
from .summary import summarise

TEMPLATES = Path(__file__).with_name("templates")


def interval(figure, form="{:.2f}"):
    """(value, low, high) -> "1.23 (1.20 to 1.26)"."""
    if figure is None:
        return "not enough points"
    value, low, high = (form.format(number) for number in figure)
    return f"{value} ({low} to {high})"


def seconds(value):
    """Seconds in a suitable unit."""
    return plots.readable(value, "s")


def size(value):
    """Bytes in a suitable unit."""
    return plots.readable(value, "B")


def threads(number):
    """How many threads: a number, or several."""
    numbers = [number] if isinstance(number, int) else number
    return " and ".join(map(str, numbers)) + (" thread" if numbers == [1] else " threads")


def peaks(ceilings):
    """What `ceilings.measure` gave, in words."""
    rates = [f"{name} {rate / 1e9:.3g} GFLOP/s" for name, rate in ceilings["operations"].items()]
    levels = [f"{name} {bandwidth / 1e9:.3g} GB/s" for name, _, bandwidth in ceilings["levels"]]
    return f"{', '.join(rates)}; reading from {', '.join(levels)}"


def side(figures):
    """(name, median, first and third quartile in seconds) of a contest's side, in words."""
    name, *values = figures
    return "{}: {} ({} to {})".format(name, *map(seconds, values))


def crossing(cross, generation):
    """A crossover in words, with its interval."""

    def place(position):
        if position == 0:
            return f"below {generation['first']:,}"
        return f"beyond {generation['last']:,}" if math.isinf(position) else f"{position:,.0f}"

    value, low, high = map(place, cross["position"])
    return value if value == low == high else f"{value} ({low} to {high})"


def rows(verdict):
    """How many rows of an expectation have the ratio, of how many; and how many it needs that have no time."""
    words = f"{verdict['kept']} of {verdict['rows']}"
    missing = verdict["expected"] - verdict["rows"]
    return words + f", {missing} without a time" * (missing > 0)


class ReportError(Exception):
    """There is nothing to report, or no place for it; the message says what is needed."""


def render(template, **content):
    """A template of this package with its content; `.html.j2` escapes."""
    return _environment().get_template(template).render(**content)


def load(folder):
    """The report's content, from the results.jsonl of a folder. Raises ReportError where there is none."""
    found = records.read(Path(folder) / records.FILE)
    if not found:
        raise ReportError(f"no {records.FILE} in {folder}: seqkernels bench --out {folder} writes one")
    return summarise(found[0], found[1:])


def _environment():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": interval, "seconds": seconds, "size": size, "side": side}
    environment.filters |= {"threads": threads, "peaks": peaks, "rows": rows}
    environment.globals |= {"crossing": crossing}
    return environment


def _plain(value):
    """JSON without rounds (results.jsonl has them) and with infinities as text."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items() if key != "rounds"}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write(folder):
    """Writes report.json, report.md, report.html and plots/ into `folder` from its results.jsonl; returns the data."""
    folder = Path(folder)
    data = load(folder)
    drawn = plots.draw(data, folder / "plots")
    inlined = {name: base64.b64encode(path.read_bytes()).decode("ascii") for name, path in drawn.items()}
    files = {name: path.relative_to(folder).as_posix() for name, path in drawn.items()}
    for name, images in (("report.html", inlined), ("report.md", files)):
        (folder / name).write_text(render(f"{name}.j2", data=data, images=images), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(_plain(data), indent=1) + "\n", encoding="utf-8")
    return data
