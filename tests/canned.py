"""Canned records of a run, as the studies write them, for the tests of what is made of them."""

from dataclasses import replace

from seqkernels.bench.cases import Case
from seqkernels.bench.runners import CURVES

FINGERPRINT = {
    "cpu": "Canned CPU <1>",
    "isa": ["avx2"],
    "torch_isa": "AVX2",
    "cores": 2,
    "threads": 1,
    "caches": {"L1 Data": "48K"},
    "system": "Linux",
    "python": "3.11",
    "versions": {"torch": "2.13", "onnxruntime": "not installed"},
    "commit": "abc",
    "denormals": "kept",
    "huge_pages": "always",
    "THP_MEM_ALLOC_ENABLE": "unset",
}
COSTS = {"LSTM": lambda p: 1e-3, "GPT with cache": lambda p: 1e-6 * p, "GPT recomputing": lambda p: 1e-6 * p**2}


CEILINGS = {
    "operations": {"float32": 1e11, "float64": 5e10, "bfloat16": 2e11},
    "levels": [["L1", 2**15, 2e11], ["L2", 2**20, 1e11], ["L3", 2**25, 5e10], ["memory", None, 2e10]],
}


def race(case, peer, ours, theirs, **more):
    pair = {"ours": {"provider": "ours", "error": 1e-7, "first_seconds": 2.0, "rounds": ours}}
    pair["peer"] = {"provider": peer, "error": 2e-7, "first_seconds": 0.1, "rounds": theirs}
    same = {"case": case.as_dict(), "name": case.name, "threads": 1, "limit": 1e-5, "status": "ok"}
    return {**same, **pair, **more}


def fill(records):
    """Every kind of record, as the studies write them."""
    for name, loss in (("LSTM", 2.5), ("GPT", 3.25)):
        for k in range(5):
            now = loss + 1 / (k + 1)
            point = {"seconds": 1.0 * k, "steps": 10 * k, "train": now if k else None, "held_out": now}
            records.add("training_point", name, **point)
        sample = {"prompt": "import ", "text": "<os> & `sys`"}
        more = {"parameters": 660_864, "budget": 5, "bytes_read": 4096, "sample": sample, "source": "a text"}
        records.add("training", name, window=128, batch=16, rate=1e-3, **more, **point)
    for position in (16 * 2**k for k in range(9)):
        curves = {}
        for name in CURVES:
            if name != "GPT recomputing, torch" or position < 1024:
                cost = COSTS[name.split(",")[0]](position)
                curves[name] = {"bytes": position, "formula": position, "seconds": [cost] * 9}
        records.add("generation", position, curves=curves)
    records.add("generation_stop", "GPT recomputing, torch", position=1024, seconds=6.5)
    for position in (100, 1000, 10_000):
        records.add("endurance", position, seconds=[5e-6] * 9, resident=2**28)
    records.add("left_behind", "stream", steps=2000, traced_growth=0, allocations=0.0, bytes=0.0, operators=0.0)
    forms = {
        "float32": {"loss": 2.125, "accuracy": 0.5, "largest": 0.0, "mean": 0.0, "same": 1.0},
        "int8 weights": {"loss": 2.1375, "accuracy": 0.4875, "largest": 0.25, "mean": 0.0625, "same": 0.9375},
    }
    more = {"steps": 1500, "bytes_read": 32_768, "length": 512, "spread": 3.5, "source": "a text", "window": 128}
    records.add("formats", "LSTM", forms=forms, embedding=64, hidden=256, batch=16, rate=1e-2, **more)
    records.add("format_steps", "LSTM", units=512, seconds={"float32": [128e-6] * 9, "int8 weights": [32e-6] * 9})
    lstm, gru, wrong = Case("lstm", T=128, B=1, H=128), Case("gru", T=128, B=1, H=128), Case("rnn", T=128, B=1, H=128)
    records.add("race", "1", **race(lstm, "torch", [1e-3] * 9, [1.5e-3] * 9, compilations=2))
    records.add("race", "2", **race(lstm, "onnxruntime", [1e-3] * 9, [1.25e-3] * 9, compilations=0))
    records.add("race", "3", **race(gru, "torch", [1e-3] * 9, [1.75e-3] * 9))
    records.add("race", "6", **race(replace(gru, mode="training"), "torch", [1e-3] * 9, [0.5e-3] * 9))
    spoilt = race(wrong, "torch", [], [], status="wrong")
    del spoilt["ours"]["rounds"], spoilt["peer"]["rounds"]
    records.add("race", "4", **spoilt)
    dead = {"case": gru.as_dict(), "name": gru.name, "status": "failed", "reason": "killed", "threads": 1}
    records.add("race", "5", **dead, ours={"provider": "ours"}, peer={"provider": "onnxruntime"})
    records.add("race", "7", **race(lstm, "openvino", [1e-3] * 9, [0.5e-3] * 9, threads=2))
    records.add("ceilings", "one thread", **CEILINGS)
    records.add("absent", "onnxruntime", reason="not installed: onnx")
    records.add("compilations", "studies", compilations=3)
