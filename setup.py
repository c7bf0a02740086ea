"""Packaging. `kernels/` and `bench/` import as `seqkernels.kernels` and `seqkernels.bench`."""

from pathlib import Path

from setuptools import find_packages, setup


def mapped(folder):
    """Every package under `folder`, named below `seqkernels`."""
    return [f"seqkernels.{name}" for name in [folder, *(f"{folder}.{p}" for p in find_packages(folder))]]


TRITON = "triton>=3.6; platform_system == 'Linux'"
BENCH = ["matplotlib", "jinja2", "rich"]

setup(
    name="seqkernels",
    version="0.1.0.dev0",
    description="Fast recurrent networks and attention for PyTorch: Numba kernels on CPUs, Triton kernels on GPUs",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["seqkernels", "seqkernels.*"]) + mapped("kernels") + mapped("bench"),
    package_dir={"seqkernels.kernels": "kernels", "seqkernels.bench": "bench"},
    package_data={"seqkernels": ["py.typed"], "seqkernels.bench": ["templates/*", "*.json"]},
    install_requires=["torch>=2.11", "numba>=0.61", "numpy>=1.26", "filelock"],
    extras_require={
        "gpu": [TRITON],
        "bench": BENCH,
        "peers": ["onnx", "onnxruntime", "openvino"],
        "dev": [
            *BENCH,
            TRITON,
            *["pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "expecttest", "ruff"],
            "greenlet",  # tests/cooperative.py
            "setuptools>=64",  # tests/test_packaging.py builds without isolation
        ],
    },
    entry_points={"console_scripts": ["seqkernels = seqkernels.cli:main"]},
)
