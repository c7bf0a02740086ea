"""The report's plots, as PNG files that a lecture hall can read."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

STYLE = {
    "font.size": 17,
    "axes.titlesize": 20,
    "axes.labelsize": 18,
    "legend.fontsize": 14,
    "legend.handlelength": 3.5,
    "lines.linewidth": 3,
    "lines.markersize": 8,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SIZE, DPI = (13, 7.5), 110
RATIOS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
# Colour-blind safe (Okabe and Ito); the line's style tells ours (solid) from torch's (dashed).
COLOURS = {"LSTM": "#0072B2", "GPT": "#D55E00", "GPT with cache": "#D55E00", "GPT recomputing": "#009E73"}
PEERS = {
    **{"torch": "#D55E00", "torch-cell": "#E69F00", "compiled": "#CC79A7"},
    **{"onnxruntime": "#009E73", "openvino": "#56B4E9"},
}
UNITS = {
    "s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
}


def readable(value, unit):
    """A figure in the unit that suits it: 0.0042, "s" -> "4.2 ms"."""
    for size, name in UNITS[unit]:
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:g} {unit}"


def _axis(axis, unit):
    axis.set_major_formatter(FuncFormatter(lambda value, _: readable(value, unit)))
    axis.set_minor_locator(NullLocator())


def _positions(axes, positions):
    axes.set_xscale("log", base=2)
    axes.set_xticks(positions, [f"{p:,}" for p in positions], rotation=30)
    axes.xaxis.set_minor_locator(NullLocator())


def _line(name):
    kind = name.split(",")[0]
    style = "-" if "seqkernels" in name else ":" if name.endswith("Cell") else "--"
    marker = {"LSTM": "o", "GPT with cache": "s"}.get(kind, "^")
    return {"color": COLOURS[kind], "linestyle": style, "marker": marker, "label": name}


def training(axes, data):
    """Bits a byte against seconds of training, for held-out text and the text that is learnt."""
    for name, model in data["training"].items():
        for figure, style, label in (("held_out", "o-", "held out"), ("train", "--", "training text")):
            points = [(p["seconds"], p[figure]) for p in model["points"] if p[figure] is not None]
            if points:
                axes.plot(*zip(*points), style, color=COLOURS[name], label=f"{name}, {label}")
    axes.set(
        xlabel="training time (s)", ylabel="loss (bits per byte)", title="Same text, time and number of parameters"
    )
    axes.legend()


def time_a_token(axes, data):
    """Seconds of one more token against its position, with 95% intervals."""
    drawn = []
    for name, curve in data["generation"]["curves"].items():
        positions = [int(p) for p in curve["seconds"]]
        middle, low, high = zip(*curve["seconds"].values())
        line = _line(name)
        if curve["exponent"]:
            line["label"] += f"  ∝ T^{curve['exponent'][0]:.2f}"
        axes.plot(positions, middle, **line)
        drawn += middle
        axes.fill_between(positions, low, high, color=line["color"], alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(min(drawn) / 2, 3 * max(drawn))
    _positions(axes, _all_positions(data))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    _axis(axes.yaxis, "s")
    axes.set(xlabel="position T of the token", ylabel="time a token", title="One more token at position T")
    axes.legend(loc="upper left")


def state_a_token(axes, data):
    """Bytes carried against position: points are measured, lines are the formula."""
    shown = {}
    for name, curve in data["generation"]["curves"].items():
        shown.setdefault(name.split(",")[0], curve)
    what = {"LSTM": "h and c", "GPT with cache": "keys and values", "GPT recomputing": "tokens"}
    for kind, curve in shown.items():
        positions = [int(p) for p in curve["bytes"]]
        for figure, style in (("formula", "-"), ("measured", "o")):
            amounts = [amount[figure] for amount in curve["bytes"].values()]
            axes.plot(positions, amounts, style, color=COLOURS[kind], label=f"{kind}: {what[kind]}, {figure}")
    axes.set_yscale("log", base=2)
    _positions(axes, _all_positions(data))
    _axis(axes.yaxis, "B")
    axes.set(xlabel="position T of the token", ylabel="state", title="What must be kept to go on")
    axes.legend()


def _all_positions(data):
    return sorted({int(p) for curve in data["generation"]["curves"].values() for p in curve["seconds"]})


def endurance(axes, data):
    """Seconds a step of a long stream."""
    stream = data["endurance"]
    positions = [int(p) for p in stream["seconds"]]
    middle, low, high = zip(*stream["seconds"].values())
    label = "seqkernels.Stream, LSTM with H=128"
    if stream["exponent"]:
        label += f"  ∝ T^{stream['exponent'][0]:.3f}"
    axes.errorbar(
        positions,
        middle,
        [[m - l for m, l in zip(middle, low)], [h - m for m, h in zip(middle, high)]],
        color=COLOURS["LSTM"],
        marker="o",
        capsize=6,
        label=label,
    )
    axes.set_xscale("log")
    axes.set_ylim(0, 2 * max(middle))
    _axis(axes.yaxis, "s")
    axes.set(xlabel="step", ylabel="time a step", title="A long stream")
    axes.legend()


def race(axes, data):
    """Ratio to the best peer, a bar a case from level (1) on, with 95% intervals."""
    rows = [row["best"] for row in data["table"] if row["best"]["status"] == "ok"][::-1]
    for peer, colour in PEERS.items():
        chosen = [(place, row["ratio"]) for place, row in enumerate(rows) if row["peer"] == peer]
        if chosen:
            places, ratios = zip(*chosen)
            middle, low, high = zip(*ratios)
            spread = [[m - l for m, l in zip(middle, low)], [h - m for m, h in zip(middle, high)]]
            axes.barh(places, [m - 1 for m in middle], left=1, color=colour, label=f"against {peer}")
            axes.errorbar(middle, places, xerr=spread, fmt="none", ecolor="black", elinewidth=1.5, capsize=3)
    axes.axvline(1, color="black", linewidth=2)
    axes.set_xscale("log")
    ends = [end for row in rows for end in row["ratio"]] + [0.9, 1.2]
    axes.set_xticks([tick for tick in RATIOS if min(ends) <= tick <= max(ends)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=13)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("time of the peer / time of seqkernels")
    axes.set_title("Best peers: right of 1× seqkernels is faster", pad=80)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


def draw(data, folder):
    """Draws every plot that the data can fill into `folder`; returns {name: path}."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = data["generation"]["curves"]
    races = sum(row["best"]["status"] == "ok" for row in data["table"])
    wanted = {
        "training": (training, data["training"], SIZE),
        "time": (time_a_token, curves, SIZE),
        "state": (state_a_token, curves, SIZE),
        "endurance": (endurance, data["endurance"], SIZE),
        "race": (race, races, (13, 2.5 + 0.42 * races)),
    }
    made = {}
    for name, (plot, filled, size) in wanted.items():
        if filled:
            with plt.rc_context(STYLE):
                figure, axes = plt.subplots(figsize=size, layout="constrained")
                plot(axes, data)
                made[name] = folder / f"{name}.png"
                figure.savefig(made[name], dpi=DPI)
                plt.close(figure)
    return made
