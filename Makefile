# Each target is enough by itself: it makes .venv, installs what it needs and runs. ARGS="..." goes to the command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: report test lint check speed sanitize clean

report: $(VENV)/bench.installed  ## train, generate and race; writes report/report.html
	$(BIN)/seqkernels bench $(ARGS)

test: $(VENV)/dev.installed  ## the default test suite, a file at a time in each of a few processes
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check $(ARGS) .

check: $(VENV)/dev.installed  ## exact counters against what is recorded; ratios are printed, not judged
	$(BIN)/seqkernels check $(ARGS)

speed: $(VENV)/dev.installed  ## ours and torch side by side; nothing is judged
	$(BIN)/python -m pytest bench/test_speed.py --benchmark-columns=median,iqr,rounds --benchmark-max-time=0.3 $(ARGS)

SANITIZER ?= compute-sanitizer
SANITIZED ?= tests/test_triton_scan.py tests/test_triton_attention.py -k "(odd and lstm and not half) or (test_lengths and 100-33)"

# In PYTHON as it is: a machine with a GPU may have its own torch, and no network.
sanitize:  ## a few of the GPU's tests under compute-sanitizer: accesses, and races in shared memory
	for tool in memcheck racecheck; do PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool --error-exitcode 1 \
		$(PYTHON) -m pytest -q -m gpu -p no:cacheprovider $(SANITIZED) $(ARGS) || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks

# Stamps are written, and pip arrives, when all before them is done: what was interrupted is taken up again.
$(VENV)/%.installed: $(BIN)/pip setup.py pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$*]'
	touch $@

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
