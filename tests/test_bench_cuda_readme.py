"""The README's block of a GPU's results: what it says of hand-made records, and that the README's own is what is
recorded."""

import json
import re
from pathlib import Path

import pytest
from seqkernels.bench import readme
from seqkernels.bench.cases import Case
from seqkernels.bench.cuda import targets

from seqkernels import cli

ROOT = Path(__file__).resolve().parent.parent
RECORDED = [path for path in (ROOT / "bench" / "results").glob("*.jsonl") if ".previous" not in path.name]
PAGE = f"# A title\n\n{readme.GPU_MARKS[0]}\nold\n{readme.GPU_MARKS[1]}\n\nThe end.\n"
PRINT = {
    "device": "Canned GPU",
    "processors": 132,
    "level_two": 64 * 2**20,
    "limits": "580.1, 1980 MHz",
    "commit": "abc",
}
PRINT |= {"cuda": "13.0", "cudnn": 91000, "versions": {"torch": "2.11", "triton": "3.6"}}


def contest(key, stage, case, ours, peers, **more):
    """A row: seconds of ours, or why there are none, and of each peer."""
    members = {name: {"status": "ok", "error": 0.0, "rounds": [seconds] * 9} for name, seconds in peers.items()}
    timed = not isinstance(ours, str)
    members["seqkernels"] = {"status": "ok", "rounds": [ours] * 9} if timed else {"status": ours, "reason": "why"}
    row = {"kind": "row", "key": key, "stage": stage, "case": case.as_dict(), "cache": "warm", "ours": ["seqkernels"]}
    return {**row, "status": "ok" if timed else ours, "peers": list(peers), "members": members, **more}


def token(T):
    both = {"status": "ok", "ours": [], "peers": []}
    member = {"status": "ok", "rounds": [1e-5] * 9}
    recurrence = {**both, "bytes": 4096, "members": {"seqkernels.Stream": member}}
    attention = {**both, "bytes": 4096 * T, "members": {"seqkernels": {"status": "ok", "rounds": [1e-8 * T] * 9}}}
    parts = {"recurrence": recurrence, "attention": attention}
    return {"kind": "row", "key": f"token-{T}", "stage": "curves", "status": "ok", "T": T, **parts}


def records():
    lstm = Case("lstm", "forward", 256, 16, 768, dtype="bfloat16")
    training = Case("lstm", "training", 256, 16, 768, dtype="bfloat16")
    gru = Case("gru", "forward", 256, 16, 512, dtype="bfloat16")
    flash = Case("attention", "forward", 2048, 8, N=16, D=128, dtype="bfloat16")
    cache = Case("decode", "forward", 4096, 1, N=8, D=128, dtype="bfloat16")
    step = Case("lstm", "forward", 64, 1, 1024, dtype="bfloat16")
    read = {"kind": "row", "stage": "ceilings", "status": "ok"}
    yield {"kind": "header", "fingerprint": PRINT}
    yield {**read, "key": "read-1024MiB", "bytes": 2**30, "rounds": [2**30 / 3e12] * 9}
    yield {**read, "key": "read-16MiB", "bytes": 2**24, "rounds": [2**24 / 5e12] * 9}
    yield {**read, "key": "transposed", "status": "wrong", "error": 0.5}
    yield {**read, "key": "cooperative-node"}
    yield contest(lstm.name, "scan", lstm, 1.5e-6 * 256, {"cuDNN": 3e-6 * 256})
    yield contest(training.name, "scan", training, 6e-6 * 256, {"cuDNN": 5e-6 * 256})
    yield contest(gru.name, "scan", gru, 1e-3, {"cuDNN": 8e-3})
    yield contest(flash.name, "attention", flash, 2e-3, {"flash": 1.5e-3, "cuDNN": 1e-3})
    backward = {**flash.as_dict(), "mode": "backward"}
    yield contest(Case(**backward).name, "attention", Case(**backward), "not served", {"flash": 1e-3})
    size = 2**24
    yield contest(cache.name, "decode", cache, size / 2.7e12, {"default": 1e-4}, bytes=size) | {"cache": "cold"}
    yield contest("step-graph", "step", step, size / 2.5e12, {"cuDNN": 1e-5}, bytes=size, graph=True)
    yield from map(token, (256, 512, 1024, 2048, 4096))


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    (root / "README.md").write_text(PAGE, encoding="utf-8")
    path = root / "canned-gpu.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in records()), encoding="utf-8")
    assert cli.main(["report", str(path), "--readme", str(root / "README.md")]) == 0
    text = (root / "README.md").read_text(encoding="utf-8")
    made = text.partition(readme.GPU_MARKS[0])[2].partition(readme.GPU_MARKS[1])[0]
    assert text.replace(made, "\nold\n") == PAGE
    return made


def line(block, start):
    (found,) = (line for line in block.splitlines() if line.startswith(start))
    return found


def test_device_and_command(block):
    for part in ("Canned GPU, 132 multiprocessors, 580.1, 1980 MHz", "cuDNN 91000, torch 2.11, triton 3.6; commit abc"):
        assert part in block
    assert "[canned-gpu.jsonl](canned-gpu.jsonl)" in block and "{{" not in block and "None" not in block


@pytest.mark.parametrize(("target", "said"), [
    ("LSTM forward", "1.5 µs | holds |"),
    ("LSTM training", "6 µs | does not hold |"),
    ("layers forward", "4.00 (4.00 to 4.00) over 2 rows | holds |"),
    ("layers training", "0.83 (0.83 to 0.83) over 1 rows | does not hold |"),
    ("attention forward", "0 of 1 rows, the least 50% | does not hold |"),
    ("attention backward", "1 not served | does not hold |"),
    ("decode:", "1 of 1 rows, the least 90% | holds |"),
    ("step in a graph", "0 of 1 rows, the least 50% | does not hold |"),
])  # fmt: skip
def test_targets(block, target, said):
    assert line(block, f"| {target}").endswith(said)


def test_cases_and_ceilings(block):
    assert "seqkernels: 384 µs (384 µs to 384 µs) | cuDNN: 768 µs" in line(
        block, "| lstm-T256-B16-H768-bfloat16-forward"
    )
    assert "2.00 (2.00 to 2.00) | 1.5 µs a step |" in line(block, "| lstm-T256-B16-H768-bfloat16-forward")
    assert "**not served**" in line(block, "| attention-B8-N16-T2048-D128-bfloat16-backward")
    assert "cuDNN: 1 ms" in line(block, "| attention-B8-N16-T2048-D128-bfloat16-forward"), "the best backend counts"
    assert line(block, "| read-1024MiB") == "| read-1024MiB | 3000 GB/s |"
    assert line(block, "| transposed") == "| transposed | wrong |"


def test_curves(block):
    assert line(block, "| attention, seqkernels").endswith("1.00 (1.00 to 1.00) |")
    assert line(block, "| recurrence, seqkernels.Stream").endswith("0.00 (0.00 to 0.00) |")
    assert line(block, "- attention, seqkernels").endswith("recurrence, seqkernels.Stream from T = 1,000.")


def test_nothing_measured_holds_nothing():
    verdicts = targets.verdicts({}, [])
    assert {verdict["verdict"] for verdict in verdicts} == {"not measured"} and len(verdicts) == 8


def test_no_recording(tmp_path, capsys):
    path, page = tmp_path / "x.jsonl", tmp_path / "README.md"
    path.write_text("{}\n")
    page.write_text(PAGE)
    assert cli.main(["report", str(path), "--readme", str(page)]) == 2
    assert "no recording of a GPU" in capsys.readouterr().err and page.read_text() == PAGE
    assert cli.main(["report", str(path)]) == 2
    assert "--readme" in capsys.readouterr().err


def test_readme_says_what_is_recorded_on_a_gpu():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition(readme.GPU_MARKS[0])[2].partition(readme.GPU_MARKS[1])[0].strip()
    if not RECORDED:
        assert block == readme.NOTHING_ON_A_GPU
        return
    name = re.search(r"Recorded in \[(.+?)\]", block)[1]
    assert block == readme.gpu_block(ROOT / name, name)


def test_recordings_are_small_and_name_no_place():
    places = [f"/{folder}/" for folder in ("work", "tmp", "root", "home", "Users")]
    for path in RECORDED:
        text = path.read_text(encoding="utf-8")
        assert len(text) < 4 * 2**20 and not [place for place in places if place in text], path
