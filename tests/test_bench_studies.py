"""The studies at smoke size: equal models, runners that agree with each other, texts, training, the long stream."""

import math

import pytest
import torch
from rich.progress import Progress
from seqkernels.bench import library, models, runners, text
from seqkernels.bench.records import Records
from seqkernels.bench.studies import endurance, formats, generation, training
from test_weight_format import rounded

HEADER = {"fingerprint": {}, "settings": {}}
SILENT = Progress(disable=True)


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("layers", [1, 3, 6])
def test_sizes_match_within_one_percent(width, layers):
    gpt = models.GPT(library.native(), width, layers)
    lstm = models.RecurrentModel(library.native(), *models.matched_sizes(models.parameters(gpt)))
    assert models.parameters(lstm) == pytest.approx(models.parameters(gpt), rel=0.01)


def test_gpt_is_causal():
    torch.manual_seed(0)
    gpt = models.GPT(library.ours(), 32, 2, 2).eval()
    tokens = torch.randint(256, (1, 12))
    later = tokens.clone()
    later[0, 8:] = 7
    with torch.no_grad():
        torch.testing.assert_close(gpt(tokens)[:, :8], gpt(later)[:, :8])


def test_all_runners_of_a_model_agree():
    tokens = torch.randint(256, (41,), generator=torch.Generator().manual_seed(0))
    logits = {}
    with torch.no_grad():
        for name, runner in runners.runners().items():
            runner.advance(tokens[:40])
            assert generation.state_bytes(runner) == runner.formula(40)
            logits.setdefault(name.split()[0].rstrip(","), []).append(runner.step(tokens[40:]).clone())
    assert {model: len(found) for model, found in logits.items()} == {"LSTM": 3, "GPT": 4}
    for found in logits.values():
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_a_curve_stops_where_a_token_would_take_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "POSITIONS", (16, 32, 64, 128))
    monkeypatch.setattr(generation, "LIMIT_SECONDS", 0.5)

    class Slow(runners.RecomputeRunner):
        def step(self, token):
            return None

    def measured(group, token, position):
        return {name: [2.0 * (position / 100) ** 2 for _ in range(3)] for name in group}

    slow = Slow(None, None)
    monkeypatch.setattr(generation, "runners", lambda: {"slow": slow})
    monkeypatch.setattr(generation, "measure", measured)
    data = torch.zeros(200, dtype=torch.uint8), None, "text"
    records = Records(tmp_path, HEADER)
    generation.run(records, data, 128, SILENT)
    assert [item["key"] for item in records.find("generation") if item["curves"]] == [16, 32]
    (stop,) = records.find("generation_stop")
    assert stop["position"] == 64 and stop["seconds"] == pytest.approx(2 * 0.64**2)


def test_generation_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "SAMPLES", 3)
    data = torch.randint(256, (200,), dtype=torch.uint8), None, "text"
    generation.run(Records(tmp_path, HEADER), data, 16, SILENT)
    records = Records(tmp_path, HEADER)
    first = records.find("generation", 16)
    generation.run(records, data, 64, SILENT)
    assert [item["key"] for item in records.find("generation")] == [16, 32, 64]
    assert records.find("generation", 16) == first
    assert set(records.find("generation", 64)[0]["curves"]) == set(runners.CURVES)


def test_training_learns_and_records(tmp_path, monkeypatch):
    monkeypatch.setattr(models.GPT.__init__, "__defaults__", (32, 1, 2))
    for name, value in {"WINDOW": 32, "BATCH": 4, "POINTS": 3, "HELD_OUT_WINDOWS": 4, "SAMPLE": 20}.items():
        monkeypatch.setattr(training, name, value)
    file = tmp_path / "text"
    file.write_bytes(b"the cat sat on the mat. " * 200)
    records = Records(tmp_path / "out", HEADER)
    training.run(records, text.load(file, 32), 1.0, SILENT)
    for name in ("LSTM", "GPT"):
        first, *_, last = records.find("training_point", name)
        assert first["seconds"] == 0 and 1 <= last["seconds"] < 1.5
        assert last["held_out"] < 0.8 * first["held_out"]
        (result,) = records.find("training", name)
        assert result["steps"] == last["steps"] and len(result["sample"]["text"]) > 0
        assert result["bytes_read"] == result["steps"] * 4 * 32
    count = len(records.items)
    training.run(records, text.load(file, 32), 1.0, SILENT)
    assert len(records.items) == count


def test_training_clock_stands_still_outside():
    clock = training.Clock()
    with clock:
        pass
    once = clock.seconds
    assert 0 < once < 0.1 and clock.seconds == once


def test_loss_is_in_bits():
    assert training.bits(torch.log(torch.tensor(256.0)).item()) == pytest.approx(8)


def test_long_stream(tmp_path):
    records = Records(tmp_path, HEADER)
    endurance.run(records, 300, SILENT)
    assert [item["key"] for item in records.find("endurance")] == [100, 300]
    (left,) = records.find("left_behind")
    assert left["allocations"] == 0 and left["traced_growth"] < 4096, left


@pytest.fixture
def small_formats(monkeypatch):
    sizes = {"EMBEDDING": 8, "HIDDEN": 40, "WINDOW": 32, "BATCH": 4, "READ": 3, "LENGTH": 50, "UNITS": 40}
    for name, value in sizes.items():
        monkeypatch.setattr(formats, name, value)
    data = torch.tensor(list(b"the cat sat on the mat. " * 40), dtype=torch.uint8)
    return data[:-100], data[-100:], "a text"


@pytest.mark.slow  # most of it compiles
def test_formats_are_recorded_and_a_seed_decides(tmp_path, small_formats):
    found = []
    for folder in ("first", "second"):
        records = Records(tmp_path / folder, HEADER)
        formats.run(records, small_formats, 30, 0.01, SILENT)
        found.append(records.find("formats"))
    assert found[0] == found[1]
    assert [item["key"] for item in found[0]] == ["LSTM", "GRU"]
    for item in found[0]:
        forms = item["forms"]
        assert forms["float32"]["loss"] < 4 and forms["float32"]["largest"] == 0 and forms["float32"]["same"] == 1
        assert 0 < forms["float64"]["largest"] < 1e-4 < forms["bfloat16 weights"]["largest"]
        assert all(abs(form["loss"] - forms["float32"]["loss"]) < 0.2 for form in forms.values())
        assert item["bytes_read"] == 150
    for item in records.find("format_steps"):
        assert item["units"] == 40 and set(item["seconds"]) == set(formats.WEIGHT_FORMATS)
        assert all(len(rounds) >= 7 and min(rounds) > 0 for rounds in item["seconds"].values())
    formats.run(records, small_formats, 30, 0.01, SILENT)
    assert records.find("formats") == found[1] and len(records.find("format_steps")) == 2


@pytest.mark.parametrize("form", ("bfloat16", "int8"))
@pytest.mark.parametrize("cell", formats.CELLS)
def test_a_format_is_that_of_rounded_weights(cell, form, small_formats):
    """As torch's own layer computes with them."""
    model = models.RecurrentModel(library.ours(), 8, 40, cell)
    tokens = small_formats[1][None].long()
    theirs = models.RecurrentModel(library.native(), 8, 40, cell)
    theirs.load_state_dict({**model.state_dict(), **rounded_layer(model, form)})
    with torch.no_grad():
        torch.testing.assert_close(formats.logits_in(f"{form} weights", model, tokens), theirs(tokens))
        torch.testing.assert_close(formats.logits_in("float32", model, tokens), model(tokens))


def rounded_layer(model, form):
    return {f"layer.{name}": rounded(weight, form) for name, weight in model.layer.state_dict().items()}


def test_figures_of_formats():
    exact = torch.tensor([[[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]]])
    other, following = exact.clone(), torch.tensor([[0, 1, 2, 0]])
    other[0, 1, 2] = 4
    found = formats.figures(other, exact, following)
    assert found["accuracy"] == 0.5 and found["same"] == 0.75
    assert found["largest"] == 4 and found["mean"] == 4 / 16
    e = math.exp(2)
    nats = -(2 * math.log(e / (e + 3)) + math.log(1 / (e + 3)) + math.log(e / (e + 2 + math.exp(4)))) / 4
    assert found["loss"] == pytest.approx(nats / math.log(2))
    assert formats.figures(torch.zeros(1, 4, 256), torch.zeros(1, 4, 256), following)["loss"] == pytest.approx(8)


def test_leak_is_seen():
    kept = []

    def step():
        kept.append(torch.empty(100))

    left = endurance.left_behind(step, steps=500)
    assert left["traced_growth"] > 500 * 8 and left["allocations"] == 1 and left["bytes"] == 400


class TestText:
    def test_default_is_the_standard_library(self):
        learn, held_out, name = text.load(None, 128)
        assert len(learn) > 1_000_000 and len(held_out) > 100_000 and "standard library" in name
        assert b"import" in bytes(learn[:10_000].tolist())

    def test_held_out_part_is_the_last_tenth(self, tmp_path):
        path = tmp_path / "text"
        path.write_bytes(bytes(range(250)) * 4)
        learn, held_out, _ = text.load(path, 10)
        assert (len(learn), len(held_out)) == (900, 100)
        assert bytes(learn.tolist()) + bytes(held_out.tolist()) == path.read_bytes()

    def test_windows(self):
        data = torch.arange(50, dtype=torch.uint8)
        tokens, following = text.windows(data, 200, 7, torch.Generator().manual_seed(0))
        assert tokens.shape == following.shape == (200, 7)
        assert torch.equal(tokens + 1, following) and tokens.min() == 0 and following.max() == 49

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "cannot be read"), (b"", "is empty"), (b"x" * 1000, "has 1000 bytes; 1291 are needed")],
        ids=["missing", "empty", "short"],
    )
    def test_bad_text(self, tmp_path, content, message):
        path = tmp_path / "text"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(text.TextError, match=message):
            text.load(path, 128)

    def test_shortest_text_that_will_do(self, tmp_path):
        path = tmp_path / "text"
        path.write_bytes(b"x" * 1291)
        _, held_out, _ = text.load(path, 128)
        assert text.windows(held_out, 2, 128, torch.Generator())[0].shape == (2, 128)
