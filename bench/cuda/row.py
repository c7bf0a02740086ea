"""One row of the table that a GPU's benchmark fills, and why it has no time."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """stage: the module that measures it. key: its name. rank: the lower, the sooner. arguments: plain data for the
    stage's `measure`."""

    stage: str
    key: str
    rank: int
    arguments: dict


def message(error):
    """An exception in a few words."""
    return without_folders(f"{type(error).__name__}: {error}")[:600]


def without_folders(text):
    """Text whose paths have lost their folders, which say nothing on another machine."""
    return re.sub(r"(/[\w.@+-]+)+/", "", text)
