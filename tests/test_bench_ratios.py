"""Checks on ratios: the statistic and its verdicts on made-up processes, and the command. Nothing here looks at a clock
that runs."""

import json
import math
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seqkernels.bench import problems, ratios, timing
from seqkernels.bench.cases import Case

from seqkernels import cli

ROWS = {f"row {n}": Case("lstm", T=2, H=3) for n in range(14)}


@pytest.fixture(autouse=True)
def made_up_rows(monkeypatch):
    monkeypatch.setattr(ratios, "case_rows", lambda: ROWS)


class Machine:
    """Made-up processes: a row's ratio, times what the process and each of its blocks add, in logarithms.

    process, block: standard deviations. slower: {row: how many times as long ours takes}.
    """

    def __init__(self, seed, process=0.01, block=0.03):
        self.random, self.process, self.block, self.slower = np.random.default_rng(seed), process, block, {}
        self.asked = []

    def __call__(self, rows, count):
        self.asked.append((list(rows), count))
        made = {}
        for row in rows:
            ratio = (1 + list(ROWS).index(row)) / self.slower.get(row, 1)
            here = self.random.normal(math.log(ratio), self.process)
            made[row] = np.exp(self.random.normal(here, self.block, count)).tolist()
        return made


class Told:
    """Processes whose figures are told beforehand, all blocks of one alike: row=[figure of the first process, ...]."""

    def __init__(self, **figures):
        self.figures, self.asked = {row.replace("_", " "): list(told) for row, told in figures.items()}, []

    def __call__(self, rows, count):
        self.asked.append((list(rows), count))
        return {row: [self.figures[row].pop(0) if row in self.figures else 1.0] * count for row in rows}


RECORDED = {row: {"ratio": 1.0, "spread": 0.01} for row in ROWS}


def failing(verdicts):
    return [verdict.row for verdict in verdicts if not verdict.holds]


@pytest.mark.parametrize("process", [0.005, 0.02, 0.04])
def test_unchanged_code_passes_and_a_loss_beyond_the_margin_fails(process):
    """Of 50 recordings, each followed by a check of unchanged code and by one of a loss in one row: what is more than
    the margin by as much as processes differ."""
    alarms, caught = [], []
    for seed in range(50):
        machine = Machine(seed, process)
        recorded = ratios.recording([machine(ROWS, ratios.BLOCKS) for _ in range(ratios.PROCESSES)])
        alarms += failing(ratios.check(recorded, machine))
        row = "row 3"
        machine.slower = {row: 1.03 * recorded[row]["ratio"] / ratios.margin(recorded[row]) * math.exp(3 * process)}
        caught += failing(ratios.check(recorded, machine))
    assert not alarms
    assert set(caught) == {"row 3"} and len(caught) >= 49


def test_margin_is_a_multiple_of_the_spread_and_five_percent_at_least():
    assert ratios.margin({"ratio": 2.0, "spread": 0.0}) == pytest.approx(2 / 1.05)
    assert ratios.margin({"ratio": 2.0, "spread": 0.019}) == pytest.approx(2 / 1.05)
    assert ratios.margin({"ratio": 2.0, "spread": 0.1}) == pytest.approx(2 * math.exp(-0.25))


def test_recording_is_the_median_process_and_the_one_furthest_off():
    runs = [{"a": [figure, figure, 100.0, figure, figure]} for figure in (1.0, 1.1, 0.8)]
    assert ratios.recording(runs) == {"a": {"ratio": 1.0, "spread": round(-math.log(0.8), 4)}}


def test_what_is_well_is_measured_once():
    machine = Told(row_1=[1.5], row_2=[0.96])
    assert not failing(ratios.check(RECORDED, machine))
    assert machine.asked == [(list(ROWS), ratios.BLOCKS)]


def test_an_unlucky_process_is_measured_again_and_forgiven():
    machine = Told(row_1=[0.5, 1.0], row_2=[0.9, 0.9, 1.0])
    verdicts = {verdict.row: verdict for verdict in ratios.check(RECORDED, machine)}
    more = ratios.MORE * ratios.BLOCKS
    assert machine.asked == [(list(ROWS), ratios.BLOCKS), (["row 1", "row 2"], more), (["row 2"], more)]
    assert verdicts["row 1"].holds and verdicts["row 1"].figure == (1.0, 1.0, 1.0)
    assert verdicts["row 2"].holds and verdicts["row 2"].figure[2] == 1.0


def test_a_loss_in_every_process_fails():
    machine = Told(row_5=[0.9, 0.91, 0.92])
    verdicts = ratios.check(RECORDED, machine)
    assert failing(verdicts) == ["row 5"] and len(machine.asked) == 1 + ratios.RETRIES


def test_verdict_stands_on_the_whole_interval():
    recorded = {"ratio": 1.0, "spread": 0.0}
    wide = [0.8] * 8 + [1.0] * 4
    assert timing.median_interval(wide)[0] < ratios.margin(recorded) and ratios.judge("a", wide, recorded).holds
    assert not ratios.judge("a", [0.8] * 20 + [1.0] * 4, recorded).holds


def test_message_names_row_figure_interval_margin_and_command():
    words = str(ratios.judge("a row", [0.8] * 9, {"ratio": 1.05, "spread": 0.0}))
    for part in ("a row: 0.800 (0.800 to 0.800) times", "recorded 1.050", "at least 1.000", ratios.REFRESH):
        assert part in words, part
    assert ratios.REFRESH not in str(ratios.judge("a row", [1.0] * 9, {"ratio": 1.05, "spread": 0.0}))


class Clock:
    """Stands for the module time: calls take the time that they are told to, times the machine's slowness."""

    def __init__(self, monkeypatch):
        self.now, self.slowness = 0.0, 1.0
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def call(self, seconds):
        def run():
            self.now += seconds * self.slowness

        return run


def test_a_block_is_torchs_time_over_ours(monkeypatch):
    """And a second pass over the gates shows in it, the machine's own speed does not."""
    clock = Clock(monkeypatch)
    ours = {"gates": 4e-4, "products": 6e-4}

    def call(source, problem):
        if source.name == "torch":
            return clock.call(2e-3)
        return clock.call(sum(ours.values()))

    monkeypatch.setattr(problems, "call", call)
    rows = {"a": ROWS["row 0"], "b": ROWS["row 1"]}
    figures = ratios.blocks(rows, 3)
    assert set(figures) == {"a", "b"} and figures["a"] == pytest.approx([2.0] * 3, rel=1e-3)
    clock.slowness = 3.0
    assert ratios.blocks(rows, 2)["b"] == pytest.approx([2.0] * 2, rel=1e-3)
    ours["gates again"] = ours["gates"]
    assert ratios.blocks(rows, 2)["b"] == pytest.approx([2 / 1.4] * 2, rel=1e-3)
    recorded = {"ratio": 2.0, "spread": 0.01}
    assert not ratios.judge("b", ratios.blocks(rows, 9)["b"], recorded).holds


def test_blocks_of_a_row_lie_among_those_of_the_others(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "interleave", lambda calls, seconds: order.append(calls[0]()) or [[1.0], [2.0]])
    monkeypatch.setattr(problems, "call", lambda source, problem: lambda: problem.case.H)
    ratios.blocks({"a": Case("lstm", H=3), "b": Case("lstm", H=4)}, 3)
    assert order == [3, 4] * 3


def test_a_measurement_is_a_process(monkeypatch):
    row = "rnn_cell-T1-B1-H128-float32-step"
    figures = ratios.measure([row], 2)
    assert list(figures) == [row] and len(figures[row]) == 2 and min(figures[row]) > 0
    with pytest.raises(RuntimeError, match="(?s)could not be measured.*KeyError"):
        ratios.measure(["no such row"], 1)
    assert torch.get_num_threads() == 1


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A file for the recording; processes are told."""
    path = tmp_path / "ratios.json"
    monkeypatch.setattr(ratios.record, "__defaults__", (path, Told()))
    monkeypatch.setattr(ratios.read, "__defaults__", (path,))
    monkeypatch.setattr(ratios.check, "__defaults__", (Told(row_1=[0.5] * 3),))
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    monkeypatch.setattr(ratios, "circumstances", lambda: "a machine")
    return path


class TestCommand:
    def test_nothing_recorded(self, place, capsys):
        assert cli.main(["check", "--ratios"]) == 1
        said = capsys.readouterr()
        assert f"no ratios are recorded for a machine. Record them with: {ratios.REFRESH}" in said.err
        assert "0 ratios judged for a machine, 1 problems" in said.out

    def test_record_then_check(self, place, monkeypatch, capsys):
        place.write_text(json.dumps({"another machine": {"row": {"ratio": 3.0, "spread": 0.1}}}))
        assert cli.main(["check", "record", "--ratios"]) == 0
        assert "row 1: 1.000 times torch's speed, at least 0.952" in capsys.readouterr().out
        kept = json.loads(place.read_text())
        assert set(kept) == {"a machine", "another machine"} and set(kept["a machine"]) == set(ROWS)
        assert cli.main(["check", "--ratios"]) == 1
        said = capsys.readouterr()
        assert said.err.startswith("row 1: 0.500 (0.500 to 0.500) times torch's speed, recorded 1.000, at least 0.952")
        assert "row 2: 1.000" in said.out and "14 ratios judged for a machine, 1 problems" in said.out
        monkeypatch.setattr(ratios.check, "__defaults__", (Told(),))
        assert cli.main(["check", "--ratios"]) == 0

    def test_a_row_that_is_not_recorded(self, place, capsys):
        place.write_text(json.dumps({"a machine": {row: RECORDED[row] for row in list(ROWS)[1:]}}))
        assert cli.main(["check", "--ratios"]) == 1
        assert capsys.readouterr().err.startswith("row 0: no ratio is recorded")


def test_circumstances_name_instruction_set_processor_and_torch():
    words = ratios.circumstances()
    assert ratios.instruction_set() in words and torch.__version__ in words and words.count(", ") >= 2
