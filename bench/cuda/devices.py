"""Where rows are measured: a CUDA device with events and graphs, or the CPU with a clock, for the tests of all this."""

import subprocess

import torch

from .. import machine, timing

NODES_WARM = 3
PACKAGES = ("seqkernels", "torch", "triton", "numpy")
QUERY = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"


class Cuda:
    """The current CUDA device.

    A sample is the time between two events on the stream, an average over the calls between them.
    """

    def __init__(self):
        self.device = torch.device("cuda")
        self.properties = torch.cuda.get_device_properties(self.device)
        self.level_two = self.properties.L2_cache_size  # bytes
        self.processors = self.properties.multi_processor_count
        self._flush = None

    def fingerprint(self):
        """Plain data on the device, versions and the commit; nothing in it changes from one minute to the next."""
        return {
            "device": self.properties.name,
            "capability": list(torch.cuda.get_device_capability(self.device)),
            "processors": self.processors,
            "memory": self.properties.total_memory,
            "level_two": self.level_two,
            "limits": _limits(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "versions": {name: machine.package_version(name) for name in PACKAGES},
            "commit": machine.commit(),
        }

    def wait(self):
        """Until all work is done; raises where some of it failed, and for good after the worst failures."""
        torch.cuda.synchronize()

    def clear(self):
        """Gives cached memory back."""
        torch.cuda.empty_cache()

    def sample(self, call, repeats):
        """Seconds a call, in a row on data that may be in the second cache."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats

    def cold(self, call, repeats):
        """Seconds a call, each after memory twice the second cache's size was written; the launch is hidden behind
        that."""
        if self._flush is None:
            self._flush = torch.empty(2 * self.level_two, dtype=torch.uint8, device=self.device)
        pairs = []
        for _ in range(repeats):
            pairs.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
            self._flush.zero_()
            pairs[-1][0].record()
            call()
            pairs[-1][1].record()
        self.wait()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3 / repeats

    def graphed(self, call, count=1):
        """`count` calls captured in a CUDA graph: a function that replays it, has `count` as its attribute `calls`, and
        returns what the last call returns."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NODES_WARM):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                results = call()

        def replay():
            graph.replay()
            return results

        replay.calls = count
        return replay


def _limits():
    """What nvidia-smi says of the first device's driver and limits, "" where it cannot be asked."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class Cpu:
    """The same on a CPU: nothing is hidden, nothing is captured. For tests."""

    level_two, processors = 1 << 20, 1

    def __init__(self):
        self.device = torch.device("cpu")
        torch.set_num_threads(1)

    def fingerprint(self):
        return {"device": "A test on a CPU", "processors": self.processors, "commit": machine.commit()}

    def wait(self):
        """Nothing is ever on its way."""

    def clear(self):
        """Nothing is cached."""

    def sample(self, call, repeats):
        return timing.wall(call, repeats)

    cold = sample

    def graphed(self, call, count=1):
        def replay():
            for _ in range(count):
                results = call()
            return results

        replay.calls = count
        return replay


DEVICES = {"cuda": Cuda, "cpu": Cpu}
