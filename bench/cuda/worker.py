"""The process that measures rows, so that what hangs or breaks CUDA ends with it.

`python -m seqkernels.bench.cuda.worker DEVICE [smoke]` reads requests, one line of JSON each, and writes as many
replies; it ends with its standard input, whatever it is doing then.
"""

import json
import os
import queue
import sys
import threading

from .row import Row, message


def serve(device, modules, smoke, replies):
    """Says what the device is, then measures what is asked for: {"stage", "key", "rank", "arguments"} a request."""
    requests = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    _reply(replies, {"fingerprint": device.fingerprint()})
    while True:
        row = Row(**requests.get())
        module = modules[row.stage]
        arguments = module.smoke(row) if smoke else row.arguments
        try:
            record = module.measure(device, **arguments)
        except Exception as error:
            record = {"status": "failed", "reason": message(error)}
        try:
            device.wait()
            device.clear()
        except Exception as error:
            record = {"reason": message(error), **record, "restart": True}
        _reply(replies, record)


def _listen(requests):
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def _reply(replies, record):
    replies.write(json.dumps(record) + "\n")
    replies.flush()


def private_output():
    """The standard output as a file of its own: what others print goes to standard error."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return kept


def main(device, smoke=""):
    """Serves the stages of the table."""
    from . import table
    from .devices import DEVICES

    serve(DEVICES[device](), table.MODULES, bool(smoke), private_output())


if __name__ == "__main__":
    main(*sys.argv[1:])
