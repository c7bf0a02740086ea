"""The rules of the house, read from the sources: imports, sizes, handlers, literals, and what an import loads."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "seqkernels", "bench", "tests")

# What a module belongs to, the longest prefix deciding. A module imports from its own rank and below.
RANKS = {
    "seqkernels.kernels": 0,
    "seqkernels._backends": 1,
    "seqkernels._check": 1,
    "seqkernels.dropout": 1,
    "seqkernels.precision": 1,
    "seqkernels.reference": 1,
    "seqkernels.ops": 2,
    "seqkernels.functional": 3,
    "seqkernels.nn": 4,
    "seqkernels": 5,
    "seqkernels.bench": 6,
    "seqkernels.cli": 7,
    "tests": 8,
}
FILE_LINES, FUNCTION_LINES = 250, 60
# "path" or "path::function": why it is longer.
LONGER = {}


@cache
def modules():
    """Dotted name -> (path, syntax tree) of every module of the repository."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            name = ".".join(("seqkernels", *parts) if folder in ("kernels", "bench") else parts)
            found[name] = path, ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(name):
    """(imported name, line, whether at module level) for every import of a module, relative ones resolved."""
    path, tree = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    deferred = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            targets = [f"{base}.{a.name}" if f"{base}.{a.name}" in modules() else base for a in node.names]
        else:
            continue
        for target in targets:
            yield target, node.lineno, id(node) not in deferred


def every_import():
    for name, (path, _) in modules().items():
        for target, line, top in imports(name):
            yield name, target, top, f"{path.relative_to(ROOT)}:{line} imports {target}"


def within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def rank(name):
    return RANKS[max((package for package in RANKS if within(name, package)), key=len)]


def nodes(kind, *folders):
    for path, tree in modules().values():
        if path.relative_to(ROOT).parts[0] in (folders or FOLDERS):
            for node in ast.walk(tree):
                if isinstance(node, kind):
                    yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def test_a_module_imports_only_from_its_own_layer_and_below():
    ours = [i for i in every_import() if within(i[1], "seqkernels")]
    assert not [where for name, target, _, where in ours if rank(target) > rank(name)]


def test_kernels_know_neither_torch_nor_the_package_above_them():
    allowed = {"seqkernels", "numpy", "numba", "llvmlite", "filelock", "triton", *sys.stdlib_module_names}
    inside = [i for i in every_import() if within(i[0], "seqkernels.kernels")]
    assert not [where for _, target, _, where in inside if target.partition(".")[0] not in allowed]
    written = [(w, ast.unparse(node)) for w, node in nodes((ast.Import, ast.ImportFrom), "kernels")]
    assert not [w for w, text in written if "seqkernels" in text], "imports inside kernels/ are relative"


def test_backends_do_not_know_each_other():
    foreign = {"cpu": ("triton", "seqkernels.kernels.gpu"), "gpu": ("numba", "llvmlite", "seqkernels.kernels.cpu")}
    for backend, names in foreign.items():
        inside = [i for i in every_import() if within(i[0], f"seqkernels.kernels.{backend}")]
        assert not [where for _, target, _, where in inside if within(target, *names)]


def test_cells_belong_to_no_backend():
    used = {target.partition(".")[0] for target, _, _ in imports("seqkernels.kernels.cells")}
    assert used <= set(sys.stdlib_module_names)


def test_backends_are_reached_through_drivers_inside_functions():
    """Numba and Triton load at first use: only a driver, ops/*_cpu.py or ops/*_gpu.py, imports one at module level, and
    the kernels that only the benchmark has."""
    probes = "seqkernels.bench.cuda.probes"
    backends = ("numba", "llvmlite", "triton", "seqkernels.kernels.cpu", "seqkernels.kernels.gpu", probes)
    drivers = {name for name in modules() if within(name, "seqkernels.ops") and name.endswith(("_cpu", "_gpu"))}
    wrong = [
        where
        for name, target, top, where in every_import()
        if top
        and not within(name, "seqkernels.kernels", "tests", probes, *drivers)
        and within(target, *backends, *drivers)
    ]
    assert not wrong


def test_the_mapped_folders_are_never_imported_by_their_bare_names():
    assert not [where for _, target, _, where in every_import() if within(target, "kernels", "bench", "tests")]


def test_importing_the_package_loads_torch_and_itself_only():
    program = "import sys, torch; old = set(sys.modules); import seqkernels; print(*sys.modules.keys() - old)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "seqkernels" in loaded
    allowed = ("seqkernels", "torch", *sys.stdlib_module_names)
    slow = ("seqkernels.kernels.cpu", "seqkernels.bench", "torch._dynamo", "torch._inductor", "torch.testing")
    assert not [name for name in loaded if not within(name, *allowed) or within(name, *slow)]


def test_rooms_are_small():
    longer = {}
    for path, _ in modules().values():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES:
            longer[path.relative_to(ROOT).as_posix()] = lines
    for where, node in nodes(ast.FunctionDef):
        lines = node.end_lineno - node.lineno + 1
        if lines > FUNCTION_LINES:
            longer[f"{where.partition(':')[0]}::{node.name}"] = lines
    assert not {place: lines for place, lines in longer.items() if place not in LONGER}
    assert set(LONGER) <= set(longer), "LONGER lists what is short by now"


def test_no_handler_swallows_everything():
    wrong = []
    for where, node in nodes(ast.ExceptHandler):
        caught = "" if node.type is None else ast.unparse(node.type)
        silent = all(isinstance(s, (ast.Pass, ast.Continue)) for s in node.body)
        if not caught or (silent and caught in ("Exception", "BaseException")):
            wrong.append(where)
    assert not wrong


def test_no_skip_without_a_reason():
    skips = ("pytest.skip", "pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail")
    wrong = [w for w, f in nodes(ast.FunctionDef, "tests") if any(ast.unparse(d) in skips for d in f.decorator_list)]
    for where, call in nodes(ast.Call, "tests"):
        name = ast.unparse(call.func)
        given = any(k.arg == "reason" for k in call.keywords) or (name == "pytest.skip" and call.args)
        if name in skips and not given:
            wrong.append(where)
    assert not wrong


def test_only_generated_files_use_numbas_cache():
    """Numba's cache is stale when a callee in another file changes; kernels/cpu/compile.py keys it by every source."""
    calls = nodes(ast.Call, "kernels", "seqkernels", "bench")
    wrong = [w for w, c in calls if any(k.arg == "cache" and "jit" in ast.unparse(c.func) for k in c.keywords)]
    assert not wrong


def test_memory_comes_from_torch():
    """numpy.empty is neither aligned to a vector nor poisoned in these tests."""
    allocators = ("np.empty", "np.empty_like", "numpy.empty", "numpy.empty_like")
    assert not [w for w, c in nodes(ast.Call, "kernels", "seqkernels") if ast.unparse(c.func) in allocators]


def test_fresh_memory_is_poisoned():
    like = torch.ones(3)
    for fresh in (torch.empty(3), torch.empty_like(like), like.new_empty(3), torch.empty_strided((3,), (1,))):
        assert fresh.isnan().all()


def test_cells_have_no_literals():
    """In some backends a literal has a dtype of its own."""
    _, tree = modules()["seqkernels.kernels.cells"]
    cells = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.endswith(("_forward", "_backward"))]
    assert cells
    for function in cells:
        indices = {id(n.slice) for n in ast.walk(function) if isinstance(n, ast.Subscript)}
        literals = [n for n in ast.walk(function) if isinstance(n, ast.Constant) and id(n) not in indices]
        assert not [n.value for n in literals if n.value is not None], function.name


def test_no_path_of_one_machine():
    local = tuple(f"/{folder}/" for folder in ("work", "tmp", "root", "home"))
    files = [path for pattern in ("*.*", "Makefile", ".ci/run") for path in ROOT.glob(pattern) if path.is_file()]
    for path in [*files, *(path for path, _ in modules().values())]:
        text = path.read_text(encoding="utf-8")
        assert not [p for p in local if p in text], path


def test_every_cpu_kernel_is_reached_from_a_test():
    """By imports, those inside functions included, and by the names given to `compile.kernel`, from the tests on."""
    kernels = {name.rpartition(".")[2]: name for name in modules() if within(name, "seqkernels.kernels.cpu")}
    reached, todo = set(), [name for name in modules() if within(name, "tests")]
    while todo:
        name = todo.pop()
        if name not in reached and name in modules():
            reached.add(name)
            todo += [target for target, _, _ in imports(name)]
            strings = [n.value for n in ast.walk(modules()[name][1]) if isinstance(n, ast.Constant)]
            todo += [kernels[s] for s in strings if isinstance(s, str) and s in kernels]
    assert not set(kernels.values()) - reached
