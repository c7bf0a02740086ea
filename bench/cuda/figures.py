"""What a row of a recording comes to: rates, the fastest of each side, shares of what there is."""

import numpy as np

from .. import timing


def rate(record):
    """(median seconds, first quartile, third quartile) of a row with one set of rounds."""
    return tuple(np.quantile(record["rounds"], [0.5, 0.25, 0.75]).tolist())


def best(record, group):
    """The fastest of "ours" or "peers" in a contest: its name and rounds, or None where none has a time."""
    timed = [(np.median(record["members"][name]["rounds"]), name) for name in record[group] if _timed(record, name)]
    return (min(timed)[1], record["members"][min(timed)[1]]["rounds"]) if timed else None


def _timed(record, name):
    return "rounds" in record["members"][name]


def duel(record):
    """{"ours", "peer": (name, median, quartiles), "ratio": ours to the fastest peer, with its interval}; None for a
    side without a time."""
    found = {"ours": best(record, "ours"), "peer": best(record, "peers"), "ratio": None}
    if found["ours"] and found["peer"]:
        found["ratio"] = timing.ratio(found["ours"][1], found["peer"][1])
    for side in ("ours", "peer"):
        found[side] = found[side] and (found[side][0], *rate({"rounds": found[side][1]}))
    return found


def bandwidth(fingerprint, items, size):
    """Bytes a second that were read from what holds `size` bytes, the second cache or memory; None where not measured.

    The second cache holds what is at most half its size.
    """
    level_two = fingerprint.get("level_two", 0)
    reads = [i for i in items if i["key"].startswith("read-") and i["status"] == "ok"]
    cached = size <= level_two / 2
    rates = [i["bytes"] / np.median(i["rounds"]) for i in reads if (i["bytes"] <= level_two / 2) == cached]
    return float(max(rates)) if rates else None


def figure(fingerprint, items, item):
    """What a row's target is about: microseconds a step, or a share; None where it has no time.

    items: all rows of the recording, for the ceilings among them.
    """
    ours = best(item, "ours") if "members" in item else None
    if ours is None:
        return None
    seconds = float(np.median(ours[1]))
    if item["stage"] == "scan":
        return seconds / item["case"]["T"] * 1e6
    if item["stage"] == "attention":
        peer = best(item, "peers")
        return peer and timing.ratio(ours[1], peer[1])[0]
    size = item["bytes"] if item["cache"] == "warm" else float("inf")
    ceiling = bandwidth(fingerprint, items, size)
    return ceiling and item["bytes"] / seconds / ceiling


def words(item, value):
    """A figure as text."""
    if value is None:
        return "–"
    return f"{value:.3g} µs a step" if item["stage"] == "scan" else f"{value:.0%}"
