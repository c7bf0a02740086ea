"""Records -> what the report says, as plain data (report.json)."""

from . import fits, providers, race_rows, targets, timing
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
    rows = race_rows.rows(by_kind.get("race", []), ceilings)
    return {
        **{key: header[key] for key in ("fingerprint", "settings")},
        "complete": "finished" in by_kind,
        "training": training(by_kind),
        "generation": generation(by_kind),
        "endurance": endurance(by_kind),
        "formats": {item["key"]: item for item in by_kind.get("formats", [])},
        "format_steps": format_steps(by_kind),
        "ceilings": ceilings,
        "race": rows,
        "peers": [peer.label for name, peer in providers.PEERS.items() if any(row["peer"] == name for row in rows)],
        "targets": targets.verdicts(rows),
        "table": race_rows.table(rows),
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


def format_steps(by_kind):
    """Cell -> its units; seconds a step with float32 weights, and the other formats' speeds over theirs."""
    found = {}
    for item in by_kind.get("format_steps", []):
        rounds = dict(item["seconds"])
        plain = rounds.pop("float32")
        ratios = {name: timing.ratio(own, plain) for name, own in rounds.items()}
        found[item["key"]] = {"units": item["units"], "seconds": timing.median_interval(plain), "ratios": ratios}
    return found


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
