"""The stages and all rows of the table, the most important first."""

from . import attention, ceilings, curves, names, scan, step

MODULES = {
    "ceilings": ceilings,
    "scan": scan,
    "attention": attention,
    "decode": attention,
    "step": step,
    "curves": curves,
    "names": names,
}


def rows():
    """All rows, by rank; stages take turns within one."""
    modules = dict.fromkeys(MODULES.values())
    return sorted((row for module in modules for row in module.rows()), key=lambda row: row.rank)
