"""Packaging. `kernels/` and `bench/` lie at the top of the repository and import as `seqkernels.kernels` and `seqkernels.bench`."""

from setuptools import find_packages, setup


def mapped(folder):
    """Every package under `folder`, named below `seqkernels`."""
    return [f"seqkernels.{name}" for name in [folder, *(f"{folder}.{p}" for p in find_packages(folder))]]


BENCH = ["matplotlib", "jinja2", "rich", "scipy"]

setup(
    name="seqkernels",
    version="0.1.0.dev0",
    description="Fast recurrent networks and attention for PyTorch: Numba kernels on CPUs, Triton kernels on GPUs",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["seqkernels", "seqkernels.*"]) + mapped("kernels") + mapped("bench"),
    package_dir={"seqkernels.kernels": "kernels", "seqkernels.bench": "bench"},
    package_data={"seqkernels": ["py.typed"], "seqkernels.bench": ["templates/*", "*.json"]},
    install_requires=["torch>=2.11", "numba>=0.61", "numpy>=1.26"],
    extras_require={
        "gpu": ["triton>=3.6"],
        "bench": BENCH,
        "dev": [*BENCH, "pytest", "pytest-benchmark", "hypothesis", "expecttest", "triton>=3.6", "ruff"],
    },
    entry_points={"console_scripts": ["seqkernels = seqkernels.cli:main"]},
)
