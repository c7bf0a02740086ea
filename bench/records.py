"""Results, appended to a JSONL file as they come, so that an interrupted run loses nothing."""

import json
from pathlib import Path

FILE = "results.jsonl"


class Records:
    """Records of one run in `folder`/results.jsonl.

    The first line holds the machine's fingerprint and the settings. An unfinished file with the same first line is
    resumed; any other one is kept beside it as results.previous.jsonl and a new one is begun.

    folder: where to write. header: {"fingerprint": ..., "settings": ...}, plain data. file: another name.
    """

    def __init__(self, folder, header, file=FILE):
        self.path = Path(folder) / file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.header = json.loads(json.dumps({"kind": "header", **header}))
        found = read(self.path)
        self.resumed = bool(found) and found[0] == self.header and found[-1]["kind"] != "finished"
        self.items = found[1:] if self.resumed else []
        if self.resumed:
            self._rewrite()
        else:
            if self.path.exists():
                self.path.replace(self.path.with_suffix(".previous.jsonl"))
            self._append(self.header)

    def add(self, kind, key, **data):
        """Appends a record; `kind` and `key` name it."""
        item = {"kind": kind, "key": key, **data}
        self._append(item)
        self.items.append(item)

    def find(self, kind, key=None):
        """The records of a kind, or those of one key."""
        return [item for item in self.items if item["kind"] == kind and key in (None, item["key"])]

    def drop(self, kind, key):
        """Forgets what an interrupted attempt left of one key."""
        kept = [item for item in self.items if (item["kind"], item["key"]) != (kind, key)]
        if len(kept) < len(self.items):
            self.items = kept
            self._rewrite()

    def finish(self):
        """Marks the run as complete: the next one starts afresh."""
        self.add("finished", "")

    def _append(self, item):
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(item) + "\n")

    def _rewrite(self):
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(item) + "\n" for item in (self.header, *self.items)), encoding="utf-8")
        fresh.replace(self.path)


def read(path):
    """The records of a file, header first; [] without a file. A line cut off by an interruption ends it."""
    found = []
    path = Path(path)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return found
