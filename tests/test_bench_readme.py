"""The README's blocks of results: what one says of canned records, and that the README's own are what is recorded."""

import re
from pathlib import Path

import pytest
from canned import FINGERPRINT, fill
from seqkernels.bench import readme
from seqkernels.bench.cases import GRID
from seqkernels.bench.records import FILE, Records, read

from seqkernels import cli

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BEGIN, END = MARKS = readme.marks("results/canned")
OTHER = "\n".join(readme.marks("results/other"))
PAGE = f"# A title\n\n{OTHER}\n\n{BEGIN}\nold\n{END}\n\nThe end.\n"


def records_in(folder):
    return Records(folder, {"fingerprint": FINGERPRINT, "settings": {"amount": "full"}})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A README with its block filled by the command, and the block."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "README.md").write_text(PAGE, encoding="utf-8")
    records = records_in(root / "results" / "canned")
    fill(records)
    records.finish()
    assert cli.main(["report", str(records.path.parent), "--readme", str(root / "README.md")]) == 0
    text = (root / "README.md").read_text(encoding="utf-8")
    return root, between(text, MARKS)


def between(text, marks):
    return text.partition(marks[0])[2].partition(marks[1])[0]


def line(block, start):
    (found,) = (line for line in block.splitlines() if line.startswith(start))
    return found


def test_machine_and_command(made):
    root, block = made
    for part in ("Canned CPU <1>, 1 thread of 2 cores, avx2", "torch 2.13", "commit abc", "not installed: onnx"):
        assert part in block, part
    assert "`seqkernels bench --full --out results/canned`" in block
    assert "`seqkernels report results/canned --readme README.md`" in block
    assert str(root) not in block and "{{" not in block and "None" not in block and "not complete" not in block


def test_rest_of_the_page_stays(made):
    text = (made[0] / "README.md").read_text(encoding="utf-8")
    assert text.replace(made[1], "\nold\n") == PAGE


def test_best_peer_and_torch(made):
    row = line(made[1], "| lstm-T128-B1-H128-float32-forward ")
    assert "| 1 ms | 34% | ONNX Runtime |" in row and "1.25 (1.25 to 1.25) | 1.50 (1.50 to 1.50)" in row
    assert row.endswith("| 1.50 (1.50 to 1.50) |  |")


def test_lost_and_failed_races_stay(made):
    assert "**wrong**" in line(made[1], "| rnn-T128-B1-H128-float32-forward ")
    row = line(made[1], "| gru-T128-B1-H128-float32-forward ")
    assert "**failed**" in row and "1.75 (1.75 to 1.75)" in row
    assert "the peer is faster" in line(made[1], "| gru-T128-B1-H128-float32-training ")


def test_groups(made):
    group = line(made[1], "| LSTM, forward ")
    assert "| 1 | 1.25 (1.25 to 1.25) | 1.25 (1.25 to 1.25) | 1.50 (1.50 to 1.50) | 34% |" in group
    assert "| 1 | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) | – | 17% |" in line(made[1], "| LSTM, forward, 2 threads ")


def test_expectations(made):
    said = "| mean ≥ 1.2× best peer | 1 of 1, 17 without a time | 1.25 (1.25 to 1.25) | 1.25 (1.25 to 1.25) | needs"
    assert said in line(made[1], "| LSTM, inference |")
    assert line(made[1], "| RNN, inference |").endswith("| 0 of 0, 18 without a time | – | – | does not hold |")
    assert "0 of 1" in line(made[1], "| LSTM, inference, 2 threads |")


def test_generation_and_training(made):
    assert "1.00 (1.00 to 1.00) | 4 KiB" in line(made[1], "| GPT with cache, seqkernels |")
    assert "over 5 s" in line(made[1], "| GPT recomputing, torch |")
    cross = "- Crossover length, from which on a token of GPT with cache, seqkernels "
    assert line(made[1], cross).endswith(": 1,000.")
    assert "| 660,864 | 40 | 2.700 bits a byte |" in line(made[1], "| LSTM | 660,864")


@pytest.mark.parametrize(("settings", "threads", "words"), [
    ({"amount": "default"}, [1], ""),
    ({"amount": "quick", "studies": list(cli.STUDIES["cpu"])}, 1, " --quick"),
    ({"amount": "full", "studies": ["formats", "race"]}, [1, 2], " --full --only formats,race --threads 1,2"),
])  # fmt: skip
def test_the_command_asks_for_the_same(tmp_path, settings, threads, words):
    Records(tmp_path, {"fingerprint": {**FINGERPRINT, "threads": threads}, "settings": settings})
    assert f"by `seqkernels bench{words} --out x`" in readme.block(tmp_path, "x")


def test_run_that_measured_nothing(tmp_path):
    records_in(tmp_path)
    block = readme.block(tmp_path, "x")
    assert "not complete" in block and "|" not in block


def test_a_group_has_one_operation_mode_and_dtype():
    groups = {}
    for case in GRID:
        groups.setdefault(readme.title(case), set()).add((case.operation, case.mode, case.dtype, case.ragged))
    assert all(len(kinds) == 1 for kinds in groups.values())
    some = {"LSTM, forward", "GRUCell, one step", "attention, forward, bfloat16", "RNN, training, ragged rows"}
    assert some <= set(groups)


class TestBadInput:
    def test_nothing_recorded(self, tmp_path, capsys):
        assert cli.main(["report", str(tmp_path)]) == 2
        assert "no results.jsonl in" in capsys.readouterr().err and not list(tmp_path.iterdir())

    @pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", OTHER], ids=["none", "one", "order", "other"])
    def test_no_marks(self, tmp_path, text, capsys):
        page = tmp_path / "README.md"
        page.write_text(text)
        records_in(tmp_path / "results" / "canned")
        assert cli.main(["report", str(tmp_path / "results" / "canned"), "--readme", str(page)]) == 2
        assert "needs the lines" in capsys.readouterr().err and page.read_text() == text

    def test_results_elsewhere(self, tmp_path, capsys):
        (tmp_path / "checkout").mkdir()
        page = tmp_path / "checkout" / "README.md"
        page.write_text(PAGE)
        records_in(tmp_path / "elsewhere")
        assert cli.main(["report", str(tmp_path / "elsewhere"), "--readme", str(page)]) == 2
        assert "must be in the folder of" in capsys.readouterr().err and page.read_text() == PAGE

    def test_no_readme(self, tmp_path, capsys):
        records_in(tmp_path)
        assert cli.main(["report", str(tmp_path), "--readme", str(tmp_path / "missing")]) == 2
        assert "missing" in capsys.readouterr().err


def test_readme_says_what_is_recorded():
    """Each block is what the command makes of the results in the folder that its marks name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"<!-- (bench/results/.+):begin -->", text)
    assert names
    for name in names:
        assert between(text, readme.marks(name)).strip() == readme.block(ROOT / name, name)
        assert read(ROOT / name / FILE)[-1]["kind"] == "finished"


def test_recorded_results_are_small_and_name_no_place():
    places = [f"/{folder}/" for folder in ("work", "tmp", "root", "home", "Users")]
    for path in RESULTS.glob(f"*/{FILE}"):
        text = path.read_text(encoding="utf-8")
        assert len(text) < 2**22 and not [place for place in places if place in text], path
