"""Study (c): ours against each native peer that is present, over the named grid of cases; the machine's ceilings."""

from .. import cases, ceilings, providers, race


def pairs(subset):
    """The (case, peer) of a subset that can be raced, and {peer: reason} for the peers that are not there at all."""
    chosen = cases.select(subset)
    found, absent = [], {}
    for case in chosen:
        for name, peer in providers.PEERS.items():
            if not peer.races(subset):
                continue
            reason = peer.refuses(case)
            if not reason:
                found.append((case, name))
            elif reason.startswith("not installed"):
                absent[name] = reason
    return found, absent


def run(records, subset, seconds, threads, progress):
    """Races every pair that the records do not hold, with each of the numbers of threads: kind "race", a record a pair;
    kind "absent" for missing peers; kind "ceilings", one record."""
    found, absent = pairs(subset)
    if not records.find("ceilings"):
        records.add("ceilings", "one thread", **ceilings.measure())
    for name, reason in absent.items():
        if not records.find("absent", name):
            records.add("absent", name, reason=reason)
    task = progress.add_task("racing", total=len(found) * len(threads))
    for number in threads:
        for case, peer in found:
            key = f"{case.name} {peer} {number}"
            progress.update(task, description=f"racing {case.name}")
            if not records.find("race", key):
                records.add("race", key, **race.run(case, peer, seconds, number))
            progress.update(task, advance=1)
