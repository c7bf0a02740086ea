"""The report from canned records, and the command's arguments, messages and exit status."""

import base64
import json
import re

import pytest
import torch
from canned import CEILINGS, FINGERPRINT, fill, race
from PIL import Image
from seqkernels.bench import floors, main, race_rows, report, targets
from seqkernels.bench.cases import GRID, Case
from seqkernels.bench.records import FILE, Records
from seqkernels.bench.runners import CURVES

from seqkernels import cli


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    records = Records(folder, {"fingerprint": FINGERPRINT, "settings": {"amount": "full"}})
    fill(records)
    records.finish()
    return folder, report.write(folder)


def test_figures(made):
    _, data = made
    curves = data["generation"]["curves"]
    expected = {"LSTM": 0, "GPT with cache": 1, "GPT recomputing": 2}
    for name, curve in curves.items():
        assert curve["exponent"][0] == pytest.approx(expected[name.split(",")[0]], abs=1e-6), name
    crossed = {(c["growing"], c["flat"]): c["position"][0] for c in data["generation"]["crossovers"]}
    assert crossed["GPT with cache, seqkernels", "LSTM, seqkernels.Stream"] == pytest.approx(1000)
    assert crossed["GPT recomputing, seqkernels", "LSTM, seqkernels.Stream"] == pytest.approx(1000**0.5)
    assert data["compilations"] == 5 and data["complete"]


def test_best_peer_decides_and_wrong_rows_do_not_hold(made):
    _, data = made
    found = {v["target"]: v for v in data["targets"] if v["threads"] == 1}
    lstm, rnn, every = (found[text] for text in ("LSTM, inference", "RNN, inference", "every row"))
    assert lstm["mean"] == lstm["least"] == pytest.approx([1.25] * 3)
    assert lstm["least_row"] == "lstm-T128-B1-H128-float32-forward"
    assert (lstm["kept"], lstm["rows"], lstm["expected"], lstm["holds"]) == (1, 1, 18, None)
    assert "--full" in lstm["verdict"]
    assert (rnn["rows"], rnn["mean"], rnn["holds"], rnn["verdict"]) == (0, None, False, "does not hold")
    assert (every["kept"], every["rows"], every["holds"]) == (1, 2, False)
    assert "attention, inference" not in found


def test_a_target_on_a_whole_grid():
    """One each holds where all do, one on the mean where the mean does; a row below 1 takes the first away."""

    def held(theirs):
        records = [race(case, "torch", [1e-3] * 9, [theirs(case)] * 9) for case in GRID]
        found = {v["target"]: v for v in targets.verdicts(race_rows.rows(records))}
        assert all(v["rows"] == v["expected"] for v in found.values())
        return {text: v["holds"] for text, v in found.items()}

    assert set(held(lambda case: 21e-3).values()) == {True}
    few = held(lambda case: 0.9e-3 if case.H == 33 else 2e-3)
    assert not few["every row"] and few["LSTM, inference"] and few["LSTM, training"] and not few["RNN, inference"]


def test_targets_of_the_floor_and_of_threads():
    """A share of the floor is that of the row against the fastest peer; one thread's time is of the same case."""
    case = Case("lstm", T=128, B=64, H=1024)
    floor = floors.seconds(case, CEILINGS)
    records = [
        race(case, "torch", [floor / 0.9] * 9, [floor * 2] * 9),
        race(case, "onnxruntime", [floor / 0.8] * 9, [floor] * 9),
        race(case, "torch", [floor / 1.6] * 9, [floor] * 9, threads=2),
    ]
    found = {(v["target"], v["threads"]): v for v in targets.verdicts(race_rows.rows(records, CEILINGS))}
    share = found["inference, B ≥ 32, H ≥ 256", 1]
    assert share["least"] == pytest.approx([0.8] * 3) and share["kept"] == 0
    assert share["needed"] == "each ≥ 0.85× the floor's speed"
    assert found["inference, B ≥ 32, H ≥ 256", 2]["least"] == pytest.approx([0.8] * 3)  # half the floor, 1.6 times
    text = "threads on inference, B ≥ 32, H ≥ 256"
    assert found[text, 2]["least"] == pytest.approx([2.0] * 3) and found[text, 2]["kept"] == 1
    assert (text, 1) not in found


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_text_is_complete(made, name):
    written = (made[0] / name).read_text(encoding="utf-8")
    for part in (
        *("2.700", "3.450", "660,864", "4,096"),
        *CURVES,
        *("stops before T=1", "6.5 s", "1,000", "1.50 (1.50 to 1.50)", "1.75 (1.75 to 1.75)", "wrong", "failed"),
        *("ratio to it", "lstm-T128-B1-H128-float32-forward, 2 threads", "float32 100 GFLOP/s", "memory 20 GB/s"),
        *("onnxruntime did not race", "does not hold", "Kernels compiled during this run: 5"),
        *("each ≥ 1× best peer", "1 of 2, 153 without a time"),
        *("int8 weights", "2.1375", "48.75%", "93.75%", "0.062", "0.25", "1,500 steps", "32,768 held-out", "is 3.50"),
        *("LSTM, 512 units", "128 µs", "4.00 (4.00 to 4.00)"),
        *("Denormals kept", "THP_MEM_ALLOC_ENABLE unset", "onnxruntime not installed", "2,000 steps left 0 bytes"),
    ):
        assert part in written, part
    assert "not complete" not in written and "{{" not in written and "None" not in written


def test_html_stands_alone(made):
    html = (made[0] / "report.html").read_text(encoding="utf-8")
    images = re.findall(r'src="([^"]*)"', html)
    assert len(images) == 5 and all(image.startswith("data:image/png;base64,") for image in images)
    assert all(base64.b64decode(image.partition(",")[2]).startswith(b"\x89PNG") for image in images)
    assert "href=" not in html and "<script" not in html
    assert "Canned CPU &lt;1&gt;" in html and "&lt;os&gt; &amp;" in html


def test_plots_fill_their_frame(made):
    for path in (made[0] / "plots").iterdir():
        with Image.open(path) as image:
            assert image.width > 1300 and len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_json_is_plain(made):
    data = json.loads((made[0] / "report.json").read_text(), parse_constant=pytest.fail)
    assert data["fingerprint"] == FINGERPRINT and "rounds" not in data["race"][0]
    assert data["race"][0]["ratio"] == pytest.approx([1.5] * 3)
    assert data["table"][0]["best"]["ratio"] == pytest.approx([1.25] * 3)


def test_floor(made):
    """2 128 512 (128 + 128) operations at 1e11 a second are more than the time of the bytes."""
    _, data = made
    row = data["race"][0]
    assert row["floor_seconds"] == pytest.approx(2 * 128 * 512 * 256 / 1e11)
    assert row["of_floor"] == pytest.approx(row["floor_seconds"] / 1e-3)
    (two,) = [row for row in data["race"] if row["threads"] == 2]
    assert two["floor_seconds"] == pytest.approx(row["floor_seconds"] / 2)


def test_numbers_of_threads_are_kept_apart(made):
    _, data = made
    first = {row["best"]["label"]: row for row in data["table"]}
    assert first["lstm-T128-B1-H128-float32-forward"]["peer"] == "ONNX Runtime"
    assert first["lstm-T128-B1-H128-float32-forward, 2 threads"]["peer"] == "OpenVINO"
    assert [row["lost"] for label, row in first.items() if label.startswith("lstm")] == [False, True]
    verdicts = {v["threads"]: v["mean"][0] for v in data["targets"] if v["target"] == "LSTM, inference"}
    assert verdicts == pytest.approx({1: 1.25, 2: 0.5})


def test_threads_in_words():
    assert [report.threads(n) for n in (1, [1], 2, [1, 2])] == ["1 thread", "1 thread", "2 threads", "1 and 2 threads"]


def test_interrupted_run_reports_what_it_has(tmp_path):
    records = Records(tmp_path, {"fingerprint": FINGERPRINT, "settings": {}})
    report.write(tmp_path)
    assert "not complete" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.md").read_text().count("Not measured") == 5
    records.add("training_point", "LSTM", seconds=0.0, steps=0, train=None, held_out=8.0)
    report.write(tmp_path)
    assert (tmp_path / "report.md").read_text().count("Not measured") == 4


def test_crossing_in_words():
    generation = {"first": 16, "last": 16_384}
    infinite = float("inf")
    places = (0, 0, 0), (900, 0, 1500), (9000, 8000, infinite), (infinite,) * 3
    words = [report.crossing({"position": place}, generation) for place in places]
    assert words == ["below 16", "900 (below 16 to 1,500)", "9,000 (8,000 to beyond 16,384)", "beyond 16,384"]


class TestCommand:
    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "cannot be read"), (b"", "is empty"), (b"x" * 99, "too short")],
        ids=["missing", "empty", "short"],
    )
    def test_bad_text(self, tmp_path, capsys, content, message):
        path = tmp_path / "text"
        if content is not None:
            path.write_bytes(content)
        assert cli.main(["bench", "--quick", "--text", str(path), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()

    @pytest.mark.parametrize("words", ["--seconds 0", "--threads -1", "--threads 1,0", "--seconds x", "--quick --full"])
    def test_bad_arguments(self, words):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["bench", *words.split()])

    def test_out_cannot_be_written(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert cli.main(["bench", "--out", str(tmp_path / "file" / "out")]) == 2
        assert "--out cannot be written" in capsys.readouterr().err

    def test_missing_extras(self, monkeypatch, capsys):
        find = cli.importlib.util.find_spec
        monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "rich" else find(name))
        assert cli.main(["bench"]) == 2
        assert "needs rich: pip install 'seqkernels[bench]'" in capsys.readouterr().err

    def test_run_interruption_and_resumption(self, tmp_path, monkeypatch, capsys):
        def interrupt(*arguments):
            raise KeyboardInterrupt

        words = ["bench", "--quick", "--only", "race", "--only", "endurance", "--out", str(tmp_path)]
        monkeypatch.setattr(main.endurance, "POSITIONS", (100,))
        monkeypatch.setattr(main.grid, "run", interrupt)
        monkeypatch.setattr(main.text, "load", lambda path, window: (torch.zeros(9), torch.zeros(9), "a text"))
        assert cli.main(words) == 130
        assert "the same command goes on from here" in capsys.readouterr().out
        assert "not complete" in (tmp_path / "report.md").read_text()
        monkeypatch.setattr(main.grid, "run", lambda *arguments: None)
        assert cli.main(words) == 0
        said = capsys.readouterr().out
        assert "Going on with" in said and re.search(r"kernels compiled: \d+", said)
        kinds = [json.loads(line)["kind"] for line in (tmp_path / FILE).read_text().splitlines()]
        assert kinds.count("endurance") == 1 and kinds[-1] == "finished"
        assert "not complete" not in (tmp_path / "report.md").read_text()
