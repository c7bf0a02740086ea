"""What pip installs: the wheel's files, imports from elsewhere, a stranger named `kernels`, and a read-only install."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {"kernels": "seqkernels/kernels", "bench": "seqkernels/bench", "seqkernels": "seqkernels"}


def run(*arguments, path=(), cwd=None, **environment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PIP_NO_INDEX": "1", **environment}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Another distribution with a top-level package `kernels`, hooked into every build, as the one on PyPI is."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text("")
    writer = "from pathlib import Path\n\ndef write(*_):\n    Path(__file__).with_name('called').touch()\n"
    (folder / "kernels" / "locking.py").write_text(writer)
    (folder / "kernels-1.dist-info").mkdir()
    (folder / "kernels-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 1\n")
    entry_points = "[egg_info.writers]\nkernels.lock = kernels.locking:write\n"
    (folder / "kernels-1.dist-info" / "entry_points.txt").write_text(entry_points)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, stranger):
    """The wheel, built from a copy of the sources without network, in the stranger's presence."""
    source = tmp_path_factory.mktemp("source")
    for folder in MAPPED:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", source / "dist", source)
    run(*command, path=[stranger])
    assert (stranger / "kernels" / "called").exists()
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    """A folder that the wheel is installed into."""
    target = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", target, wheel)
    return target


def test_wheel_holds_every_source_and_one_top_level_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"seqkernels"}
    for folder, package in MAPPED.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".typed") or path.parent.name == "templates":
                assert f"{package}/{path.relative_to(ROOT / folder).as_posix()}" in names
    assert [name for name in names if name.endswith("/LICENSE")]


def test_wheel_imports_from_elsewhere_beside_the_stranger(installed, stranger, tmp_path):
    program = (
        "import kernels, seqkernels, seqkernels.bench, seqkernels.kernels.cells as cells;"
        "print(kernels.__file__, seqkernels.__file__, seqkernels.bench.__file__, cells.__file__, len(cells.CELLS))"
    )
    theirs, *ours, cells = run("-c", program, path=[installed, stranger], cwd=tmp_path)
    assert Path(theirs).is_relative_to(stranger)
    assert all(Path(place).is_relative_to(installed) for place in ours)
    assert int(cells) > 0


def test_the_folder_refuses_a_bare_import():
    program = "try:\n    import kernels\nexcept ImportError as error:\n    print(error)"
    assert "seqkernels.kernels;" in run("-c", program, path=[ROOT], cwd=ROOT)


def test_read_only_install_keeps_compiled_kernels_elsewhere(installed, tmp_path):
    """No file is written beside the sources; a home that cannot hold the cache leaves the temporary directory."""
    files = {path: path.stat().st_mtime_ns for path in installed.rglob("*")}
    program = (
        "import torch; from seqkernels import nn; from seqkernels.kernels.cpu import compile;"
        "y, _ = nn.GRU(3, 5)(torch.randn(2, 1, 3)); print(compile.directory(), bool(y.isfinite().all()))"
    )
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": "", "SEQKERNELS_CACHE_DIR": "", "PYTHONDONTWRITEBYTECODE": "1"}
    for path in [installed, *files]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        directory, finite = run("-c", program, path=[installed], cwd=tmp_path, TMPDIR=str(tmp_path), **nowhere)
    finally:
        for path in [installed, *files]:
            path.chmod(path.stat().st_mode | 0o200)
    assert Path(directory).is_relative_to(tmp_path) and list(Path(directory).glob("*.py"))
    assert finite == "True"
    assert {path: path.stat().st_mtime_ns for path in installed.rglob("*")} == files
