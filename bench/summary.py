"""Records -> what the report says, as plain data (report.json)."""

import numpy as np

from . import fits, floors, providers, timing
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
    ceilings = next(iter(by_kind.get("ceilings", [])), None)
    rows = race_rows(by_kind.get("race", []), ceilings)
    verdicts = targets(rows)
    return {
        **{key: header[key] for key in ("fingerprint", "settings")},
        "complete": "finished" in by_kind,
        "training": training(by_kind),
        "generation": generation(by_kind),
        "endurance": endurance(by_kind),
        "formats": {item["key"]: item for item in by_kind.get("formats", [])},
        "ceilings": ceilings,
        "race": rows,
        "peers": [peer.label for name, peer in providers.PEERS.items() if any(row["peer"] == name for row in rows)],
        "targets": verdicts,
        "table": table(rows, verdicts),
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


def race_rows(records, ceilings=None):
    """One row a pair: names, status, median seconds of both, ratio with its interval, first calls, errors; and, where
    the machine's ceilings are known, the case's floor in seconds and how much of our time it is."""
    rows = []
    for item in records:
        row = {key: item.get(key) for key in ("name", "case", "status", "threads", "reason", "limit")}
        row["label"] = row["name"] + with_threads(row["threads"])
        row["peer"] = item["peer"]["provider"]
        row["floor_seconds"] = ceilings and floors.seconds(Case(**row["case"]), ceilings, row["threads"])
        for role in ("ours", "peer"):
            for figure in ("error", "first_seconds"):
                row[f"{role}_{figure}"] = item[role].get(figure)
        if item["status"] == "ok":
            pair = item["ours"]["rounds"], item["peer"]["rounds"]
            row |= {"ours_seconds": float(np.median(pair[0])), "peer_seconds": float(np.median(pair[1]))}
            row |= {"ratio": timing.ratio(*pair), "rounds": pair}
            row["of_floor"] = ceilings and row["floor_seconds"] / row["ours_seconds"]
        rows.append(row)
    return rows


def with_threads(number):
    """What names of rows and groups end with: nothing for one thread."""
    return f", {number} threads" * (number > 1)


def against(peer, rows):
    """The rows against a peer, one a case; "best": against the fastest, or one without a time where there is any."""
    if peer != "best":
        return [row for row in rows if row["peer"] == peer]
    fastest = {}
    for row in rows:
        best = fastest.get(row["label"])
        if best is None or row["status"] != "ok" or (best["status"] == "ok" and row["ratio"][0] < best["ratio"][0]):
            fastest[row["label"]] = row
    return list(fastest.values())


def _figures(target, rows):
    """(row label, figure, peer, why there is none) for each row of a target, or for the mean over them."""
    contest = against(target.peer, [row for row in rows if target.covers(Case(**row["case"]))])
    good = [row for row in contest if row["status"] == "ok"]
    yield from ((row["label"], None, row["peer"], row["status"]) for row in contest if row["status"] != "ok")
    if target.mean and good:
        everything = sum(target.covers(case) for case in GRID)
        why = "" if len(good) == everything else "needs every shape: --full"
        figure = timing.geometric_mean([row["rounds"] for row in good])
        label = f"{len(good)} of {everything} shapes" + with_threads(good[0]["threads"])
        yield label, figure, target.peer, why
    if not target.mean:
        yield from ((row["label"], row["ratio"], row["peer"], "") for row in good)


def targets(rows):
    """One verdict a target and row (or a target and mean), for each number of threads: figure with interval, whether it
    holds (None: open)."""
    verdicts = []
    for threads in sorted({row["threads"] for row in rows}):
        mine = [row for row in rows if row["threads"] == threads]
        for target in TARGETS:
            for label, figure, peer, why in _figures(target, mine):
                holds = timing.holds(figure, target.ratio) if figure else False
                verdict = why or ("holds" if holds else "does not hold")
                judged = {"row": label, "figure": figure, "peer": peer, "verdict": verdict, "threads": threads}
                holds = None if figure and why else holds
                verdicts.append({"target": target.text, "needed": target.ratio, "holds": holds, **judged})
    return verdicts


def needed(target):
    """What a target asks for, in few words: "H=128: each ≥ 8× torch"."""
    sizes = "" if not target.H else f"H={target.H[0]}" + f" to {target.H[-1]}" * (len(target.H) > 1) + ": "
    peer = "best peer" if target.peer == "best" else target.peer
    return f"{sizes}{'mean' if target.mean else 'each'} ≥ {target.ratio:g}× {peer}"


def table(rows, verdicts):
    """One entry a case: its row against the best peer, that against torch, the peer's name, and the verdicts."""
    asked = {target.text: needed(target) for target in TARGETS}
    torch = {row["label"]: row for row in against("torch", rows)}
    made = []
    for row in against("best", rows):
        words = [f"{asked[v['target']]}: {v['verdict']}" for v in verdicts if v["row"] == row["label"]]
        if row["status"] == "ok" and row["ratio"][2] < 1:
            words.append("the peer is faster")
        label = providers.PEERS[row["peer"]].label
        made.append({"best": row, "torch": torch.get(row["label"]), "peer": label, "verdicts": words})
    return made
