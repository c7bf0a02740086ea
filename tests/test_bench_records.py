"""Results on disk: appended as they come, resumed after an interruption, begun afresh otherwise."""

import json

import pytest
from canned import CEILINGS
from rich.progress import Progress
from seqkernels.bench import machine
from seqkernels.bench.cases import Case
from seqkernels.bench.records import FILE, Records, read
from seqkernels.bench.studies import grid

HEADER = {"fingerprint": {"cpu": "a"}, "settings": {"amount": "quick", "sizes": (1, 2)}}
SILENT = Progress(disable=True)


def test_records_are_on_disk_at_once(tmp_path):
    records = Records(tmp_path / "new" / "folder", HEADER)
    records.add("race", "x", value=1.5)
    lines = [json.loads(line) for line in (tmp_path / "new" / "folder" / FILE).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["header", "race"] and lines[1] == {
        "kind": "race",
        "key": "x",
        "value": 1.5,
    }


def test_unfinished_run_is_resumed(tmp_path):
    Records(tmp_path, HEADER).add("race", "x")
    again = Records(tmp_path, HEADER)
    assert again.resumed and again.find("race", "x") and not again.find("race", "y")
    again.add("race", "y")
    assert len(read(tmp_path / FILE)) == 3


def test_cut_off_line_is_dropped(tmp_path):
    Records(tmp_path, HEADER).add("race", "x")
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "race", "key": "y", "val')
    again = Records(tmp_path, HEADER)
    assert again.resumed and [item["key"] for item in again.items] == ["x"]
    again.add("race", "z")
    assert [item.get("key") for item in read(tmp_path / FILE)] == [None, "x", "z"]


@pytest.mark.parametrize("change", ["fingerprint", "settings"])
def test_another_machine_or_setting_begins_afresh(tmp_path, change):
    Records(tmp_path, HEADER).add("race", "x")
    again = Records(tmp_path, {**HEADER, change: {"other": 1}})
    assert not again.resumed and not again.items
    assert len(read(tmp_path / "results.previous.jsonl")) == 2


def test_finished_run_begins_afresh(tmp_path):
    Records(tmp_path, HEADER).finish()
    assert not Records(tmp_path, HEADER).resumed


def test_drop_forgets_one_key(tmp_path):
    records = Records(tmp_path, HEADER)
    for key in ("a", "b", "a"):
        records.add("point", key)
    records.drop("point", "a")
    assert [item["key"] for item in Records(tmp_path, HEADER).items] == ["b"]


def test_fingerprint_is_complete_and_plain():
    found = machine.fingerprint([1, 2])
    assert json.loads(json.dumps(found)) == found
    assert {"cpu", "isa", "threads", "caches", "versions", "commit", "denormals", "huge_pages"} <= set(found)
    assert {"torch", "numba", "onnxruntime"} <= set(found["versions"]) and found["denormals"] == "kept"
    assert found["threads"] == [1, 2]


def test_interrupted_race_goes_on_where_it_stopped(tmp_path, monkeypatch):
    cases = [Case("lstm", T=2, B=1, H=h) for h in (3, 4, 5)]
    ran = []

    def interrupted_run(case, peer, seconds, threads):
        if len(ran) == 4 and not interrupted_run.again:
            raise KeyboardInterrupt
        ran.append((case.H, threads))
        return {"status": "ok"}

    interrupted_run.again = False
    monkeypatch.setattr(grid.cases, "select", lambda subset: cases)
    monkeypatch.setattr(grid.providers, "PEERS", {"torch": grid.providers.PEERS["torch"]})
    monkeypatch.setattr(grid.race, "run", interrupted_run)
    monkeypatch.setattr(grid.ceilings, "measure", lambda: CEILINGS)
    with pytest.raises(KeyboardInterrupt):
        grid.run(Records(tmp_path, HEADER), "full", 0, [1, 2], SILENT)
    interrupted_run.again = True
    records = Records(tmp_path, HEADER)
    grid.run(records, "full", 0, [1, 2], SILENT)
    assert ran == [(h, threads) for threads in (1, 2) for h in (3, 4, 5)] and len(records.find("race")) == 6
    assert len(records.find("ceilings")) == 1


def test_missing_peer_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(grid.providers.importlib.util, "find_spec", lambda name: None)
    found, absent = grid.pairs("quick")
    assert absent == {"onnxruntime": "not installed: onnx, onnxruntime"}
    assert "onnxruntime" not in {peer for _, peer in found}
    assert grid.pairs("default")[1]["openvino"] == "not installed: onnx, openvino"


def test_slow_peers_race_in_larger_amounts_only():
    peers = {subset: {peer for _, peer in grid.pairs(subset)[0]} for subset in ("quick", "full")}
    assert "compiled" not in peers["quick"] and "openvino" not in peers["quick"]
    assert "compiled" in peers["full"] and {"torch", "torch-cell"} <= peers["quick"]


def test_commit_of_an_unrelated_checkout_is_not_taken(tmp_path, monkeypatch):
    for folder in ("objects", "refs"):
        (tmp_path / ".git" / folder).mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("1" * 40 + "\n")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.fingerprint([1])["commit"] == ""
