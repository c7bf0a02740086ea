"""Records of a GPU's benchmark -> what is said of them: lines as they come, verdicts, tables as plain data."""

import numpy as np

from .. import fits
from . import targets
from .figures import duel, figure, rate, words


def line(record):
    """A row in a line of text."""
    words = [f"{record['key']}: {record['status']}"]
    for part in (record, record.get("recurrence"), record.get("attention")):
        if part and "members" in part:
            words += _sides(part)
    if "rounds" in record:
        words.append(_rate(record))
    if record["status"] != "ok":
        words.append(record.get("reason") or next((r for r in _reasons(record)), ""))
    return "; ".join(word for word in words if word)


def _sides(record):
    both = duel(record)
    for side in ("ours", "peer"):
        if both[side]:
            yield f"{both[side][0]} {both[side][1] * 1e6:.4g} µs"
    if both["ratio"]:
        yield "{:.2f} ({:.2f} to {:.2f}) times as fast".format(*both["ratio"])


def _rate(record):
    median = rate(record)[0]
    if "bytes" in record:
        return f"{record['bytes'] / median / 1e9:.4g} GB/s"
    if "operations" in record:
        return f"{record['operations'] / median / 1e12:.4g} TFLOP/s"
    return f"{median * 1e6:.4g} µs"


def _reasons(record):
    for part in (record, record.get("recurrence", {}), record.get("attention", {})):
        for name in (*part.get("ours", ()), *part.get("peers", ())):
            member = part["members"][name]
            if member["status"] != "ok":
                yield f"{name}: {member.get('reason') or 'error {:.2g}'.format(member['error'])}"


def ending(rows, records):
    """What a run has come to, in lines: targets, how many rows have which status, and what is not measured."""
    items = {item["key"]: item for item in records.find("row")}
    for verdict in targets.verdicts(records.header["fingerprint"], list(items.values())):
        yield "{target}: {figure}: {verdict}".format(**verdict)
    for stage in dict.fromkeys(row.stage for row in rows):
        mine = [row.key for row in rows if row.stage == stage]
        missing = [key for key in mine if key not in items]
        found = [items[key]["status"] for key in mine if key in items]
        counts = [f"{found.count(status)} {status}" for status in dict.fromkeys(found)]
        names = f": {', '.join(missing[:4])}{' ...' * (len(missing) > 4)}" if missing else ""
        yield f"{stage}: {', '.join([*counts, f'{len(missing)} not measured'])}{names}"


def summarise(header, items):
    """The content of the README's block, plain data."""
    from . import table

    print_, found = header["fingerprint"], [item for item in items if item["kind"] == "row"]
    stages = {}
    for item in found:
        stages.setdefault(item["stage"], []).append(item)
    return {
        "fingerprint": print_,
        "targets": targets.verdicts(print_, found),
        "ceilings": [(item["key"], _ceiling(item)) for item in stages.get("ceilings", [])],
        "contests": {stage: _table(print_, found, items) for stage, items in stages.items() if _contested(items)},
        "curves": curves(stages.get("curves", [])),
        "rows": len(table.rows()),
        "missing": sum(row.key not in {item["key"] for item in found} for row in table.rows()),
    }


def _ceiling(item):
    if item["status"] != "ok":
        return item["status"]
    return _rate(item) if "rounds" in item else "as it should be"


def _contested(items):
    return any("case" in item for item in items)


def _table(fingerprint, everything, items):
    """One entry a row: name, status, both sides, ratio, and the figure that its stage is about."""
    made = []
    for item in items:
        both = duel(item) if "members" in item else {"ours": None, "peer": None, "ratio": None}
        share = figure(fingerprint, everything, item)
        made.append({"name": item["key"], "status": item["status"], **both, "figure": words(item, share)})
    return made


def curves(items):
    """Exponents of time a token by member, and where attention comes to cost more than the recurrence."""
    samples, state = {}, {}
    for item in items:
        for kind in ("recurrence", "attention"):
            for name, member in item.get(kind, {}).get("members", {}).items():
                if "rounds" in member:
                    key = f"{kind}, {name}"
                    samples.setdefault(key, {})[item["T"]] = member["rounds"]
                    state.setdefault(key, {})[item["T"]] = item[kind]["bytes"]
    entries = [
        {"name": name, "exponent": fits.exponent(curve), **_ends(curve, state[name])} for name, curve in samples.items()
    ]
    pairs = [("attention, seqkernels", "recurrence, seqkernels.Stream"), ("attention, default", "recurrence, cuDNN")]
    crossed = [
        {"growing": growing, "flat": flat, "position": fits.crossover(samples[growing], samples[flat])}
        for growing, flat in pairs
        if growing in samples and flat in samples and samples[growing].keys() & samples[flat].keys()
    ]
    positions = [p for curve in samples.values() for p in curve]
    return {
        "curves": entries,
        "crossovers": crossed,
        "first": min(positions, default=0),
        "last": max(positions, default=0),
    }


def _ends(curve, state):
    first, last = min(curve), max(curve)
    return {"ends": [(p, float(np.median(curve[p])), state[p]) for p in (first, last)]}
