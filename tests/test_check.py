"""The performance checks: exact counters, and planted losses that they must catch."""

import json
from dataclasses import replace

import pytest
import torch
from seqkernels.bench import check, counters, library

from seqkernels import cli

FIGURES = {"allocations": 1.0, "bytes": 64.0, "operators": 0.0, "packs": 0.0, "specialisations": 1}


def test_counts_are_exact():
    x = torch.randn(16)

    def call():
        torch.tanh(x)
        torch.empty(100)

    assert counters.memory_and_operators(call) == {"allocations": 2, "bytes": 16 * 4 + 100 * 4, "operators": 2}


def test_a_call_that_does_nothing_counts_nothing():
    assert counters.count(lambda: None) == dict.fromkeys(FIGURES, 0)


@pytest.mark.parametrize("figure", FIGURES)
def test_an_increase_names_row_figure_expectation_and_command(figure):
    risen = {**FIGURES, figure: FIGURES[figure] + 1}
    (message,) = check.compare({"a row": risen}, {"a row": FIGURES})
    for part in (
        "a row",
        figure,
        f"rose to {risen[figure]:g}",
        f"expected {FIGURES[figure]:g}",
        "seqkernels check record",
    ):
        assert part in message


def test_level_and_better_figures_pass():
    better = {**FIGURES, "bytes": 32.0}
    assert check.compare({"a": FIGURES, "b": better}, {"a": FIGURES, "b": FIGURES}) == []
    assert check.improvements({"a": FIGURES, "b": better}, {"a": FIGURES, "b": FIGURES}) == [
        "b: bytes a call fell to 32, expected 64"
    ]


def test_a_row_without_expectation_fails():
    (message,) = check.compare({"new": FIGURES}, {"old": FIGURES})
    assert "new" in message and "seqkernels check record" in message
    (message,) = check.compare({"new": FIGURES, "another": FIGURES}, {})
    assert "instruction set" in message and "seqkernels check record" in message


@pytest.fixture(scope="module")
def measured():
    return check.measure()


def test_rows_agree_with_what_is_recorded(measured):
    expected = check.read()
    assert "AVX-512" in expected and "AVX2" in expected
    assert all(set(rows) == set(measured) for rows in expected.values())
    if check.instruction_set() in expected:
        assert check.compare(measured, expected[check.instruction_set()]) == []


def test_a_stream_allocates_nothing_and_inference_packs_nothing(measured):
    assert measured["stream-lstm-H128-float32-step"]["allocations"] == 0
    assert all(figures["packs"] == 0 for row, figures in measured.items() if not row.endswith(("training", "graph")))


def _planted(change):
    """Our library, with every module's forward and stream's call changed."""
    source = library.ours()

    class Planted(source.nn.LSTM):
        def forward(self, *arguments):
            change(self)
            return super().forward(*arguments)

    class PlantedStream(source.stream):
        def __call__(self, x):
            change(self)
            return super().__call__(x)

    namespace = type("nn", (), {"LSTM": Planted, "GRU": source.nn.GRU, "RNN": source.nn.RNN})
    for kind in ("LSTMCell", "GRUCell", "RNNCell", "MultiheadAttention"):
        setattr(namespace, kind, getattr(source.nn, kind))
    return replace(source, nn=namespace, stream=PlantedStream)


def test_a_planted_allocation_a_step_is_caught(measured):
    planted = check.measure(_planted(lambda module: torch.empty(16)))
    messages = check.compare(planted, measured)
    assert any(
        m.startswith("stream-lstm-H128-float32-step: allocations a call rose to 1, expected 0") for m in messages
    )
    assert any(m.startswith("lstm-T1-B1-H128-float32-step: bytes") for m in messages)
    assert all(m.startswith(("lstm-", "stream-")) and "cell" not in m for m in messages)


def test_a_planted_repacking_at_every_call_is_caught(measured):
    def repack(module):
        if isinstance(module, torch.nn.Module):
            with torch.no_grad():
                module.weight_hh_l0.add_(0)

    messages = check.compare(check.measure(_planted(repack)), measured)
    assert any(m.startswith("lstm-T16-B8-H64-float32-forward: packs a call rose to 1, expected 0") for m in messages)
    assert any(m.startswith("lstm-T1-B1-H128-float32-step: packs") for m in messages)


def test_nodes_of_a_graph():
    class Module(torch.nn.Module):
        def forward(self, x, y):
            return torch.nn.functional.linear(x.sin(), y)

    # Two inputs, the sine, a linear that is taken apart into a transpose and a product, the output.
    assert counters.nodes(Module(), torch.ones(2, 3), torch.ones(4, 3)) == 6


def test_a_planted_loop_over_time_in_the_graph_is_caught(measured):
    source = library.ours()

    class Unrolled(source.nn.GRU):
        def forward(self, x):
            y = [super(Unrolled, self).forward(x_t[None])[0] for x_t in x]
            return torch.cat(y), y[-1]

    namespace = type("nn", (), {kind: getattr(source.nn, kind) for kind in ("LSTM", "RNN", "MultiheadAttention")})
    namespace.GRU = Unrolled
    planted = check.graphs(replace(source, nn=namespace))
    messages = check.compare(planted, measured)
    assert any(m.startswith("gru-graph: nodes a call rose") for m in messages)
    assert any(m.startswith("gru-graph: nodes_by_length a call rose to ") for m in messages)
    assert all(m.startswith("gru-graph") for m in messages)


def test_graphs_do_not_depend_on_the_length(measured):
    graphs = {row: figures for row, figures in measured.items() if row.endswith("-graph")}
    assert set(graphs) == {"lstm-graph", "gru-graph", "rnn-graph", "attention-graph"}
    assert all(figures["nodes"] > 3 and figures["nodes_by_length"] == 0 for figures in graphs.values())


@pytest.fixture
def few_ratios(monkeypatch):
    rows = dict(list(check.case_rows().items())[:1])
    monkeypatch.setattr(check, "case_rows", lambda: rows)
    monkeypatch.setattr(check, "RATIO_SECONDS", 0)


@pytest.mark.usefixtures("few_ratios")
class TestCommand:
    def test_record_then_check(self, tmp_path, monkeypatch, capsys, measured):
        monkeypatch.setattr(check, "measure", lambda source=None: measured)
        path = tmp_path / "expected.json"
        path.write_text(json.dumps({"other": {"row": FIGURES}}))
        monkeypatch.setattr(check.record, "__defaults__", (path, None))
        monkeypatch.setattr(check.read, "__defaults__", (path,))
        assert cli.main(["check"]) == 1
        assert "no expectations are recorded" in capsys.readouterr().err
        assert cli.main(["check", "record"]) == 0
        assert cli.main(["check"]) == 0
        assert "times torch's speed" in capsys.readouterr().out
        assert set(json.loads(path.read_text())) == {"other", check.instruction_set()}

    def test_increase_fails(self, monkeypatch, capsys, measured):
        row, figures = next(iter(measured.items()))
        monkeypatch.setattr(check, "measure", lambda source=None: {row: {**figures, "bytes": figures["bytes"] + 4}})
        monkeypatch.setattr(check, "read", lambda: {check.instruction_set(): {row: figures}})
        assert cli.main(["check"]) == 1
        said = capsys.readouterr()
        assert f"{row}: bytes a call rose" in said.err and "1 problems" in said.out
