"""A contest: everyone agrees with float64 first, and those who do are timed in turn."""

import torch

from .. import providers, timing
from ..race import CEILING, FLOOR, relative_error
from .row import message

MOST_ROUNDS = 31
# What a product's operands are rounded to, and its distance from 1 to the next number. Others have race.py's limits.
ROUNDED = {"bfloat16": 2**-7, "float16": 2**-10, "tf32": 2**-10}
# As in race.py: at most twice torch's own error, or FLOOR; CEILING bounds torch's own. Here in units of ROUNDED.
FLOOR_UNITS, CEILING_UNITS = 4, 16


class NotServed(NotImplementedError):
    """No kernel of ours takes the call; the message says why."""


def set_precision(precision):
    """float32 products of ours and of torch: "tf32" or "ieee".

    By the flags that set `fp32_precision` of all operations as well: where the two disagree, torch raises when it asks.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def limit(dtype, precision, own):
    """The error that is allowed, where torch's own is `own`."""
    unit = ROUNDED.get(precision if dtype == "float32" else dtype)
    floor, ceiling = (FLOOR[dtype], CEILING[dtype]) if unit is None else (FLOOR_UNITS * unit, CEILING_UNITS * unit)
    return min(max(floor, 2 * own), ceiling)


def hold(device, ours, peers, truth, judge, dtype, precision, seconds, pick=list, per=1, **timed):
    """Checks and times; returns a record, plain data.

    ours, peers: {name: a function that makes a call}. truth: what every call's results, picked by `pick`, should be,
    float64. judge: the peer whose error is torch's own. per: what the time of a call, or of each call in a graph, is
    divided by. timed: for `timing.interleave`.
    status: "wrong" where one of ours is, "ok" where one has a time; else what became of the first of ours. A member's
    status is "ok", "wrong", "not served" or "failed"; only "ok" has rounds.
    """
    members, calls = {}, {}
    for name, build in {judge: peers[judge], **peers, **ours}.items():
        members[name], calls[name] = _first(device, build, truth, pick)
    own = members[judge].get("error", 0.0)
    allowed = limit(dtype, precision, own)
    for member in members.values():
        if member["status"] == "ok" and not member["error"] <= allowed:
            member["status"] = "wrong"
    good = [name for name, member in members.items() if member["status"] == "ok"]
    rounds = timing.interleave([calls[name] for name in good], seconds, most=MOST_ROUNDS, **timed) if good else []
    for name, times in zip(good, rounds):
        members[name]["rounds"] = each(times, per * getattr(calls[name], "calls", 1))
    statuses = [members[name]["status"] for name in ours]
    status = next((status for status in ("wrong", "ok") if status in statuses), statuses[0])
    return {"status": status, "limit": allowed, "ours": list(ours), "peers": list(peers), "members": members}


def each(times, count):
    """Seconds of one of `count`, five digits."""
    return [float(f"{seconds / count:.5g}") for seconds in times]


def _first(device, build, truth, pick):
    """What a member's first call shows, and the call."""
    try:
        call = build()
        results, seconds = providers.first_call(call, device.wait)
        return {"status": "ok", "error": relative_error(pick(results), truth), "first_seconds": seconds}, call
    except NotImplementedError as error:
        return {"status": "not served", "reason": str(error)}, None
    except Exception as error:
        device.wait()  # raises again where nothing will work any more
        return {"status": "failed", "reason": message(error)}, None


def refuse_unserved(net, *inputs):
    """Raises NotServed where a module of ours would leave the call to torch."""
    import seqkernels

    found = seqkernels.explain(net, *inputs)
    if found.path != "kernel":
        raise NotServed(found.reason)
