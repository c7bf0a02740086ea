"""The rows of a GPU's benchmark, each stage on a CPU at a tiny size, and contests; the command and its messages."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from seqkernels.bench import library, problems
from seqkernels.bench.cases import Case
from seqkernels.bench.cuda import contest, main, summary, table
from seqkernels.bench.cuda.devices import Cpu
from seqkernels.bench.records import read

from seqkernels import cli

FILE = "a-test-on-a-cpu.jsonl"


@pytest.fixture
def precision(monkeypatch):
    """torch.testing, which other tests import, forbids such assignments without it."""
    settings = torch.backends.flags_frozen.__globals__
    monkeypatch.setitem(settings, "__allow_nonbracketed_mutation_flag", True)
    yield contest.set_precision
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True  # torch's own choice


def test_most_important_rows_come_first_and_keys_are_unique():
    rows = table.rows()
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys) and {row.stage for row in rows} == set(table.MODULES)
    assert set(table.MODULES) == set(cli.STUDIES["cuda"])
    after = [key for key in keys if not key.startswith(("copy", "read", "product", "barrier"))]
    targets = [f"lstm-T256-B16-H768-bfloat16-{mode}" for mode in ("forward", "training")]
    assert [key for key in after if key.startswith("lstm")][:2] == targets and after.index(targets[1]) < 8
    assert json.loads(json.dumps([row.arguments for row in rows])) == [row.arguments for row in rows]


SMOKE = [
    *("copy-16MiB", "read-1MiB", "product-tf32", "launch", "node", "transposed", "barrier-33", "cooperative-node"),
    *("lstm-T256-B16-H768-float32-forward-ieee", "gru-T256-B16-H256-L2-both-float32-training-tf32"),
    *("attention-B8-N16-T2048-D128-causal-bfloat16-forward", "attention-B8-N32-T2048-D64-causal-bfloat16-backward"),
    *("decode-B16-N8-T1024-D128-bfloat16-forward", "names-rnn-forward", "token-256"),
    *("step-lstm-T64-B1-H256-bfloat16-forward-graph", "step-lstm-T64-B1-H256-float32-forward-tf32"),
]


@pytest.mark.parametrize("key", SMOKE)
def test_a_row_of_every_stage_is_measured(key, precision):
    (found,) = [row for row in table.rows() if row.key == key]
    module, device = table.MODULES[found.stage], Cpu()
    record = module.measure(device, **module.smoke(found))
    assert record["status"] == "ok", record
    item = json.loads(json.dumps({"key": key, "stage": found.stage, **record}))
    assert summary.line(item).startswith(f"{key}: {record['status']}")
    for member in record.get("members", {}).values():
        assert (member["status"] == "ok") == ("rounds" in member)
    assert all(record["members"][name]["status"] == "ok" for name in record.get("ours", ()))


LSTM = Case("lstm", T=4, B=2, H=5)


def contested(ours, peers=None, **options):
    problem = problems.make(LSTM)
    truth = problems.results(problems.call(library.native(), problem.to(torch.float64)))
    right = partial(problems.call, library.native(), problem)
    members = {"torch": right, **(peers or {})}
    with torch.no_grad():
        return contest.hold(Cpu(), {"ours": ours(problem)}, members, truth, "torch", "float32", "ieee", 0, **options)


def changed(change, problem):
    def build():
        call = problems.call(library.native(), problem)

        def spoilt():
            first, *others = problems.flat(call())
            return [change(first), *others]

        return spoilt

    return build


@pytest.mark.parametrize(
    "change", [lambda y: y * 1.0001, lambda y: y[:-1], lambda y: y / 0 * 0], ids=["scaled", "shape", "nan"]
)
def test_who_is_wrong_gets_no_time(change):
    record = contested(partial(changed, change))
    assert record["status"] == "wrong" and "rounds" not in record["members"]["ours"]
    assert "rounds" in record["members"]["torch"]


def test_time_is_that_of_one_step_of_one_call_in_a_graph():
    def sample(call, repeats):
        return repeats * 1.0

    def graphed(problem):
        return lambda: Cpu().graphed(problems.call(library.native(), problem), 5)

    members = contested(graphed, sample=sample, repeats=3, per=2)["members"]
    assert members["ours"]["rounds"] == [0.3] * 7 and members["torch"]["rounds"] == [1.5] * 7


def refuses(problem):
    def build():
        raise contest.NotServed("no kernel takes it")

    return build


def test_who_does_not_serve_or_fails_says_why():
    def fails():
        raise RuntimeError("CUDA out of memory")

    record = contested(refuses, {"broken": fails})
    assert record["status"] == "not served" and record["members"]["ours"]["reason"] == "no kernel takes it"
    assert record["members"]["broken"] == {"status": "failed", "reason": "RuntimeError: CUDA out of memory"}
    assert "ours: no kernel takes it" in summary.line({"key": "x", **record})


def test_an_error_that_breaks_the_device_is_not_kept_to_the_contest():
    class Broken(Cpu):
        def wait(self):
            raise RuntimeError("nothing works any more")

    problem = problems.make(LSTM)
    with pytest.raises(RuntimeError, match="nothing works"):
        contest.hold(Broken(), {}, {"torch": refuses(problem) and (lambda: 1 / 0)}, [], "torch", "float32", "ieee", 0)


@pytest.mark.parametrize("dtype, precision, own, allowed", [
    ("float32", "ieee", 0.0, 1e-5), ("float32", "ieee", 1.0, 1e-3), ("float32", "ieee", 1e-4, 2e-4),
    ("float32", "tf32", 0.0, 4 * 2**-10), ("bfloat16", "ieee", 0.0, 4 * 2**-7), ("bfloat16", "ieee", 1.0, 16 * 2**-7),
])  # fmt: skip
def test_limits(dtype, precision, own, allowed):
    assert contest.limit(dtype, precision, own) == pytest.approx(allowed)


@pytest.mark.parametrize("name", ["tf32", "ieee"])
def test_both_sides_have_the_precision(precision, name):
    """What torch's products, cuDNN's layers and our kernels ask for."""
    precision(name)
    asked = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision
    assert [answer == "tf32" for answer in asked] == [name == "tf32"] * 2
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (name == "tf32",) * 2


class TestCommand:
    def test_without_cuda(self, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert cli.main(["bench", "--device", "cuda"]) == 2
        assert "--device cuda needs a GPU that torch can use" in capsys.readouterr().err

    def test_without_triton(self, monkeypatch, capsys):
        find = main.importlib.util.find_spec
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(main.importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
        assert cli.main(["bench", "--device", "cuda"]) == 2
        assert "needs triton: pip install 'seqkernels[gpu]'" in capsys.readouterr().err

    def test_studies_of_the_other_device(self, capsys):
        assert cli.main(["bench", "--only", "race,scan"]) == 2
        assert "--device cpu has no study scan" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="2"):
            cli.main(["bench", "--only", "nothing"])

    def test_arguments_arrive(self, monkeypatch):
        seen = []
        monkeypatch.setattr(main, "bench", lambda *arguments: seen.append(arguments) or 0)
        assert cli.main(["bench", "--device", "cuda", "--only", "scan,step", "--seconds", "9"]) == 0
        assert cli.main(["bench", "--device", "cuda", "--out", "x"]) == 0
        assert seen == [(["scan", "step"], "bench/results", 9.0), (None, "x", None)]

    def test_whole_flow_with_torch_triton_and_numpy_alone(self, tmp_path):
        absent = ("rich", "jinja2", "matplotlib", "scipy", "pandas", "onnx", "onnxruntime", "hypothesis", "greenlet")
        program = (
            f"import sys; sys.modules.update(dict.fromkeys({absent}));"
            "from seqkernels.bench.cuda import main;"
            f"sys.exit(main.bench(['decode'], {str(tmp_path)!r}, 60.0, 'cpu', True))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=90)
        assert done.returncode == 0, done.stderr
        rows = [item for item in read(tmp_path / FILE) if item["kind"] == "row"]
        assert rows and "not measured" in done.stdout and f"Results: {tmp_path / FILE}" in done.stdout


def test_a_gpus_tests_need_few_packages():
    """-m gpu collects where hypothesis, greenlet and the bench's packages are not installed."""
    absent = ("hypothesis", "greenlet", "rich", "jinja2", "matplotlib", "scipy", "pytest_benchmark", "onnxruntime")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); import pytest;"
        "sys.exit(pytest.main(['-m', 'gpu', '--collect-only', '-q', '-p', 'no:cacheprovider']))"
    )
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = {"capture_output": True, "text": True, "timeout": 120, "env": environment}
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parent.parent, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "test_triton_scan.py::" in done.stdout and "test_triton_attention.py::" in done.stdout
    assert "test_bench" not in done.stdout and "test_triton_compile" not in done.stdout
