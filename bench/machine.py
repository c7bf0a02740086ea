"""The machine's fingerprint: what a figure depends on besides the code."""

import importlib.util
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

FLAGS = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "sve"}
PACKAGES = ("seqkernels", "torch", "numba", "llvmlite", "numpy", "onnxruntime", "openvino")
CPU = Path("/sys/devices/system/cpu")
CACHES = {"L1": 2**15, "L2": 2**19, "L3": 2**23}  # bytes, where the system does not say


def fingerprint(threads):
    """Plain data on processor, versions, settings and commit. threads: the numbers of threads that are measured."""
    info = _cpuinfo()
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "isa": sorted(FLAGS & set(info.get("flags", info.get("Features", "")).split())),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": list(threads),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "commit": commit(),
        "denormals": "kept" if (torch.tensor(1e-40) * 1).item() else "flushed to zero",
        "huge_pages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")) or "unknown",
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "unset"),
    }


def _cpuinfo():
    text = _read(Path("/proc/cpuinfo"))
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _caches():
    found = {}
    for index in sorted(CPU.glob("cpu0/cache/index*")):
        found[f"L{_read(index / 'level')} {_read(index / 'type')}"] = _read(index / "size")
    return found


def cache_bytes():
    """{"L1": bytes, ...}: the caches that hold data of the first processor, the nearest first."""
    found = {}
    for name, size in sorted(_caches().items()):
        level, kind = name.split(" ")
        if kind != "Instruction" and size:
            found[level] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
    return found or CACHES


def package_version(name):
    """The version of an installed package."""
    if importlib.util.find_spec(name) is None:
        return "not installed"
    try:
        return version(name)
    except PackageNotFoundError:  # on the path, not installed
        return "unknown"


def commit():
    """Commit of the checkout that holds this file, with "+changes" where it has any; "" where none holds it."""

    def git(*words):
        done = subprocess.run(["git", *words], check=False, cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        found = git("ls-files", Path(__file__).name) and git("rev-parse", "--short=12", "HEAD")
        return found and found + "+changes" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except FileNotFoundError:
        return ""


def _read(path):
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
