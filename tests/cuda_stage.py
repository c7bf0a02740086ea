"""A stage of rows that end in every way there is, and the worker that serves it: `python cuda_stage.py`."""

import os
import sys
import time

from seqkernels.bench.cuda import worker
from seqkernels.bench.cuda.row import Row

NOTES = os.environ.get("NOTES", os.devnull)


def row(what, rank=0):
    return Row("fake", what, rank, {"what": what})


class Device:
    """A device that an error breaks for good."""

    broken = False

    def fingerprint(self):
        return {"device": "A test on a CPU", "commit": "abc"}

    def clear(self):
        pass

    def wait(self):
        if self.broken:
            raise RuntimeError("an earlier error has broken the device")


def measure(device, what):
    with open(NOTES, "a", encoding="utf-8") as notes:
        notes.write(f"{what} {os.getpid()}\n")
    if what == "hang":
        time.sleep(1000)
    if what == "die":
        print("said before its death", file=sys.stderr)
        os._exit(3)
    if what == "break":
        device.broken = True
        raise RuntimeError("an illegal access in /some/folder/file.py")
    if what == "raise":
        raise ValueError("out of memory")
    if what.startswith("slow"):
        time.sleep(0.5)
    print("what others print")
    return {"status": "ok", "rounds": [2e-6] * 9}


if __name__ == "__main__":
    worker.serve(Device(), {"fake": sys.modules[__name__]}, False, worker.private_output())
