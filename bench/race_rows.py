"""Races as rows: one a pair, case and number of threads, plain data."""

import numpy as np

from . import floors, providers, timing
from .cases import Case


def rows(records, ceilings=None):
    """One row a record: names, status, median seconds of both, ratio with its interval, first calls, errors; and, where
    the machine's ceilings are known, the case's floor in seconds and how much of our time it is."""
    made = []
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
        made.append(row)
    return made


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


def against_floor(rows):
    """One row a case, with the machine's floor as the peer; none where that is not known."""
    return [_against_time(row, row["floor_seconds"]) for row in against("best", rows) if row["floor_seconds"]]


def against_one_thread(rows, alone):
    """One row a case, with the median of our own time in those of `alone`, of one thread, as the peer."""
    times = {row["name"]: row["ours_seconds"] for row in timed(against("best", alone))}
    return [_against_time(row, times[row["name"]]) for row in against("best", rows) if row["name"] in times]


def _against_time(row, seconds):
    if row["status"] != "ok":
        return row
    pair = row["rounds"][0], [seconds]
    return {**row, "rounds": pair, "ratio": timing.ratio(*pair)}


def timed(found):
    """The rows that have a time."""
    return [row for row in found if row["status"] == "ok"]


def table(rows):
    """One entry a case: its row against the best peer, that against torch, the best peer's name, and whether the ratio
    to it lies wholly below 1."""
    torch = {row["label"]: row for row in against("torch", rows)}
    return [
        {
            "best": row,
            "torch": torch.get(row["label"]),
            "peer": providers.PEERS[row["peer"]].label,
            "lost": row["status"] == "ok" and not timing.holds(row["ratio"], 1.0),
        }
        for row in against("best", rows)
    ]
