"""Records -> what the report says, as plain data (report.json)."""

import numpy as np

from . import fits, timing
from .cases import GRID, TARGETS, Case
from .runners import CURVES

CROSSOVERS = [
    ("GPT with cache, seqkernels", "LSTM, seqkernels.Stream"),
    ("GPT with cache, torch", "LSTM, torch.nn.LSTMCell"),
    ("GPT recomputing, seqkernels", "LSTM, seqkernels.Stream"),
    ("GPT recomputing, torch", "LSTM, torch.nn.LSTMCell"),
]


def summarise(header, items):
    """header: fingerprint and settings. items: the records. Returns the report's content, plain data."""
    by_kind = {}
    for item in items:
        by_kind.setdefault(item["kind"], []).append(item)
    rows = race_rows(by_kind.get("race", []))
    return {
        **{key: header[key] for key in ("fingerprint", "settings")},
        "complete": "finished" in by_kind,
        "training": training(by_kind),
        "generation": generation(by_kind),
        "endurance": endurance(by_kind),
        "race": rows,
        "targets": targets(rows),
        "absent": {item["key"]: item["reason"] for item in by_kind.get("absent", [])},
        "compilations": sum(item.get("compilations", 0) for item in items),
    }


def training(by_kind):
    """Model -> {"points": [...], "result": the final record or None}."""
    found = {}
    for item in by_kind.get("training_point", []):
        point = {key: item[key] for key in ("seconds", "steps", "train", "held_out")}
        found.setdefault(item["key"], {"points": [], "result": None})["points"].append(point)
    for item in by_kind.get("training", []):
        found[item["key"]]["result"] = {key: value for key, value in item.items() if key not in ("kind", "key")}
    return found


def generation(by_kind):
    """Curves, their exponents, and crossovers."""
    samples, size = {}, {}
    for item in by_kind.get("generation", []):
        for name, curve in item["curves"].items():
            samples.setdefault(name, {})[item["key"]] = curve["seconds"]
            size.setdefault(name, {})[item["key"]] = {"measured": curve["bytes"], "formula": curve["formula"]}
    stops = {item["key"]: item for item in by_kind.get("generation_stop", [])}
    curves = {}
    for name in (name for name in CURVES if name in samples):
        part = sorted(fits.asymptotic(samples[name]))
        curves[name] = {
            "seconds": {p: timing.median_interval(values) for p, values in sorted(samples[name].items())},
            "bytes": dict(sorted(size[name].items())),
            "exponent": fits.exponent(samples[name]),
            "fitted": [part[0], part[-1]],
            "stop": stops.get(name),
        }
    crossovers = [
        {"growing": growing, "flat": flat, "position": fits.crossover(samples[growing], samples[flat])}
        for growing, flat in CROSSOVERS
        if growing in samples and flat in samples
    ]
    last = max((p for curve in samples.values() for p in curve), default=None)
    first = min((p for curve in samples.values() for p in curve), default=None)
    return {"curves": curves, "crossovers": crossovers, "first": first, "last": last}


def endurance(by_kind):
    """The long stream: seconds and resident bytes at each position, the exponent, and what a step leaves behind."""
    points = by_kind.get("endurance", [])
    if not points:
        return None
    samples = {item["key"]: item["seconds"] for item in points}
    return {
        "seconds": {p: timing.median_interval(values) for p, values in samples.items()},
        "resident": {item["key"]: item["resident"] for item in points},
        "exponent": fits.exponent(samples, whole=True),
        "left_behind": next((item for item in by_kind.get("left_behind", [])), None),
    }


def race_rows(records):
    """One row a pair: names, status, median seconds of both, ratio with its interval, first calls, errors."""
    rows = []
    for item in records:
        row = {key: item.get(key) for key in ("name", "case", "status", "threads", "reason", "limit")}
        row["peer"] = item["peer"]["provider"]
        for role in ("ours", "peer"):
            for figure in ("error", "first_seconds"):
                row[f"{role}_{figure}"] = item[role].get(figure)
        if item["status"] == "ok":
            pair = item["ours"]["rounds"], item["peer"]["rounds"]
            row |= {"ours_seconds": float(np.median(pair[0])), "peer_seconds": float(np.median(pair[1]))}
            row |= {"ratio": timing.ratio(*pair), "rounds": pair}
        rows.append(row)
    return rows


def against(peer, rows):
    """The rows against a peer, one a case; "best": against the fastest, or one without a time where there is any."""
    if peer != "best":
        return [row for row in rows if row["peer"] == peer]
    fastest = {}
    for row in rows:
        best = fastest.get(row["name"])
        if best is None or row["status"] != "ok" or (best["status"] == "ok" and row["ratio"][0] < best["ratio"][0]):
            fastest[row["name"]] = row
    return list(fastest.values())


def _figures(target, rows):
    """(row name, figure, peer, why there is none) for each row of a target, or for the mean over them."""
    contest = against(target.peer, [row for row in rows if target.covers(Case(**row["case"]))])
    good = [row for row in contest if row["status"] == "ok"]
    yield from ((row["name"], None, row["peer"], row["status"]) for row in contest if row["status"] != "ok")
    if target.mean and good:
        everything = sum(target.covers(case) for case in GRID)
        why = "" if len(good) == everything else "needs every shape: --full"
        figure = timing.geometric_mean([row["rounds"] for row in good])
        yield f"{len(good)} of {everything} shapes", figure, target.peer, why
    if not target.mean:
        yield from ((row["name"], row["ratio"], row["peer"], "") for row in good)


def targets(rows):
    """One verdict a target and row (or a target and mean): figure with interval, whether it holds (None: open)."""
    verdicts = []
    for target in TARGETS:
        for name, figure, peer, why in _figures(target, rows):
            holds = timing.holds(figure, target.ratio) if figure else False
            verdict = why or ("holds" if holds else "does not hold")
            judged = {"row": name, "figure": figure, "peer": peer, "verdict": verdict}
            holds = None if figure and why else holds
            verdicts.append({"target": target.text, "needed": target.ratio, "holds": holds, **judged})
    return verdicts
