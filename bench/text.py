"""The text that the language models learn: bytes."""

import sysconfig
from pathlib import Path

import torch

HELD_OUT = 0.1
SKIP = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}


class TextError(Exception):
    """The text cannot be used; the message says why and what is needed."""


def load(path, window):
    """Two uint8 tensors, to train on and held out (the last tenth), and the name of the text.

    path: a file, or None for the sources of the running interpreter's standard library.
    window: bytes that a training example needs; both parts must hold more than that.
    Raises TextError for a text that is unreadable, empty or too short.
    """
    name = str(path) if path else "the sources of Python's standard library"
    data = _file(Path(path)) if path else _standard_library()
    if not data:
        raise TextError(f"the text is empty: {name}")
    needed = int((window + 1) / HELD_OUT) + 1
    if len(data) < needed:
        raise TextError(
            f"the text is too short: {name} has {len(data)} bytes; {needed} are needed, so that the tenth held out is "
            f"longer than a window of {window} bytes"
        )
    cut = int(len(data) * (1 - HELD_OUT))
    whole = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return whole[:cut], whole[cut:], name


def _file(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise TextError(f"the text cannot be read: {path}: {error.strerror}") from error


def _standard_library():
    root = Path(sysconfig.get_path("stdlib"))
    sources = [path for path in sorted(root.rglob("*.py")) if not SKIP & set(path.relative_to(root).parts)]
    if not sources:
        raise TextError(f"no sources of the standard library under {root}: give a text with --text FILE")
    return b"\n".join(_file(path) for path in sources)


def windows(data, batch, length, generator):
    """Random windows: tokens (batch, length) and what follows each token, int64."""
    starts = torch.randint(len(data) - length, (batch,), generator=generator)
    block = torch.stack([data[start : start + length + 1] for start in starts.tolist()]).long()
    return block[:, :-1], block[:, 1:]
