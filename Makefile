# Each target is enough by itself: it makes .venv, installs what it needs and runs. ARGS="..." goes to the command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: report test lint check speed clean

report: $(VENV)/bench.installed  ## train, generate and race; writes report/report.html
	$(BIN)/seqkernels bench $(ARGS)

test: $(VENV)/dev.installed  ## the default test suite
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check $(ARGS) .

check: $(VENV)/dev.installed  ## exact counters against what is recorded; ratios are printed, not judged
	$(BIN)/seqkernels check $(ARGS)

speed: $(VENV)/dev.installed  ## ours and torch side by side; nothing is judged
	$(BIN)/python -m pytest bench/test_speed.py --benchmark-columns=median,iqr,rounds --benchmark-max-time=0.3 $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks

# Stamps are written, and pip arrives, when all before them is done: what was interrupted is taken up again.
$(VENV)/%.installed: $(BIN)/pip setup.py pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$*]'
	touch $@

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
