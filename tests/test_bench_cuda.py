"""The benchmark of a GPU, on a CPU: rows that end badly, budget, resumption, contests, every stage at a tiny size."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cuda_stage import row
from seqkernels.bench.cuda import main
from seqkernels.bench.records import read

COMMAND = [sys.executable, str(Path(__file__).with_name("cuda_stage.py"))]
FILE = "a-test-on-a-cpu.jsonl"


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """Where the workers note each row that they were given."""
    path = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(path))
    return path


def carry_out(out, whats, seconds=60.0, command=COMMAND):
    said = []
    run = main.Run(command, [row(what) for what in whats], out, seconds, said.append)
    status = main.carry_out(run)
    path = out / FILE
    rows = {item["key"]: item for item in read(path) if item["kind"] == "row"} if path.exists() else {}
    return status, rows, "\n".join(said)


def given(notes):
    """What the workers were given, and the number of workers."""
    lines = [line.split() for line in notes.read_text().splitlines()]
    return [what for what, _ in lines], len({worker for _, worker in lines})


def test_bad_rows_are_recorded_and_lose_nothing_else(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(main, "ROW_SECONDS", 2.0)
    status, rows, said = carry_out(tmp_path, ["a", "raise", "b", "break", "c", "die", "d", "hang", "e"])
    assert status == 0
    statuses = {key: item["status"] for key, item in rows.items()}
    assert statuses == dict(a="ok", b="ok", c="ok", d="ok", e="ok", die="failed", hang="hung") | {
        "raise": "failed",
        "break": "failed",
    }
    assert rows["raise"]["reason"] == "ValueError: out of memory"
    assert rows["break"]["reason"] == "RuntimeError: an illegal access in file.py"
    assert "exit status 3" in rows["die"]["reason"] and "said before its death" in rows["die"]["reason"]
    assert rows["hang"]["reason"] == "no result within 2 s" and "hang: hung" in said
    assert rows["a"]["rounds"] == [2e-6] * 9 and "a: ok; 2 µs" in said
    whats, workers = given(notes)
    assert whats == list(rows) and workers == 4  # one more after each that broke, died or hung


def test_a_worker_that_hangs_is_killed(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(main, "ROW_SECONDS", 1.0)
    carry_out(tmp_path, ["hang"])
    process = int(notes.read_text().split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_stage_that_hangs_twice_is_left(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(main, "ROW_SECONDS", 0.5)
    monkeypatch.setattr(main, "MOST_HUNG", 1)
    _, rows, said = carry_out(tmp_path, ["a", "hang", "b"])
    assert list(rows) == ["a", "hang"] and "fake: 1 ok, 1 hung, 1 not measured: b" in said


def test_what_is_recorded_is_not_measured_again(tmp_path, notes):
    carry_out(tmp_path, ["a", "b"])
    first = (tmp_path / FILE).read_text()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "row", "key": "c", "sta')  # killed while it wrote
    _, rows, _ = carry_out(tmp_path, ["a", "b", "c"])
    assert given(notes)[0] == ["a", "b", "c"] and list(rows) == ["a", "b", "c"]
    assert (tmp_path / FILE).read_text().startswith(first)
    header = read(tmp_path / FILE)[0]
    assert header["fingerprint"]["device"] == "A test on a CPU" and "commit" in header["fingerprint"]


def test_budget_ends_the_run_and_says_what_is_missing(tmp_path, notes):
    begin = time.monotonic()
    status, rows, said = carry_out(tmp_path, ["a", "hang", "b"], seconds=4.0)
    assert status == 0 and time.monotonic() - begin < 8
    assert list(rows) == ["a"] and "fake: 1 ok, 2 not measured: hang, b" in said
    starts = [item for item in read(tmp_path / FILE) if item["kind"] == "start"]
    assert len(starts) == 1 and starts[0]["seconds"] > 0


def test_a_worker_that_does_not_start(tmp_path, capsys):
    command = [sys.executable, "-c", "raise SystemExit('no driver')"]
    assert carry_out(tmp_path, ["a"], command=command)[0] == 1
    assert "no driver" in capsys.readouterr().err and not (tmp_path / FILE).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interruption_loses_at_most_the_row_in_progress(tmp_path, notes, number):
    program = (
        "from cuda_stage import row; from seqkernels.bench.cuda import main; from pathlib import Path; import sys;"
        f"run = main.Run({COMMAND!r}, [row('a'), row('hang')], Path({str(tmp_path)!r}), 60, print);"
        "sys.exit(main.carry_out(run))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parent, stdout=subprocess.PIPE)
    try:
        while not notes.exists() or len(notes.read_text().splitlines()) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=30)[0].decode()
    finally:
        process.kill()
    assert [item["key"] for item in read(tmp_path / FILE) if item["kind"] == "row"] == ["a"]
    if number != signal.SIGKILL:
        assert process.returncode == 130 and "interrupted: the same command goes on from here" in said
    worker, end = int(notes.read_text().split()[-1]), time.monotonic() + 20
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end, "the worker outlives the run"
        time.sleep(0.05)
