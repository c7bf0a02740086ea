"""The compilations of compile_only.py beside the other tests: minutes of a core, which wait for nobody."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TEST = "test_triton_compile.py"  # who wants the reports


class Compilations:
    """A process that compiles, from now on."""

    def __init__(self):
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        program = Path(__file__).with_name("compile_only.py")
        self._out, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  closed by `end`
        pipes = {"stdout": self._out, "stderr": self._errors}
        self._process = subprocess.Popen([sys.executable, program], env=environment, **pipes)

    def reports(self):
        """The reports by name, when all are there."""
        status = self._process.wait(timeout=1200)
        self._out.seek(0)
        self._errors.seek(0)
        assert status == 0, self._errors.read()[-2000:]
        return {report["name"]: report for report in map(json.loads, self._out)}

    def end(self):
        """Stops it, wherever it is."""
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._errors.close()
