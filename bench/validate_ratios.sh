#!/usr/bin/env bash
# Validates `seqkernels check --ratios` on an idle machine: RUNS checks of unchanged code, of which none may fail, and
# RUNS checks of a copy whose cells do a second pass over the gates, all of which must fail.
#
#   bash bench/validate_ratios.sh . .venv/bin/python [RUNS]     its HEAD is taken; PYTHON has torch, numba, setuptools, pip
#
# Takes about RUNS * 2 + 8 measurements of half a minute or more each, and two compilations of the kernels.
set -euo pipefail
CHECKOUT=$(realpath "${1:?checkout}"); PYTHON=$(realpath -s "${2:?python}"); RUNS=${3:-10}
DIR=$(mktemp -d); cd "$DIR"
mkdir unchanged.src planted.src
for copy in unchanged planted; do git -C "$CHECKOUT" archive HEAD | tar -x -C $copy.src; done

"$PYTHON" - planted.src/kernels/cells.py <<'PLANT'
import sys
from pathlib import Path

path = Path(sys.argv[1])
text = path.read_text()

def replace(old, new):
    global text
    assert text.count(old) == 1, old
    text = text.replace(old, new)

# The gates again, of other values so that no compiler sees that they were computed, times an exact zero that none can fold.
replace("    return (activation(x[0] + u[0]),), ()\n", """    a = x[0] + u[0]
    h = activation(a)
    return (h + (h - h) * activation(a + a),), ()
""")
replace("    return (o * tanh(c), c), (i, f, g, o)\n", """    h = o * tanh(c)
    again = [x[n] + u[n] + x[n] + u[n] for n in range(len(x))]
    second = sigmoid(again[1]) * s[1] + sigmoid(again[0]) * tanh(again[2])
    h = h + (h - h) * (sigmoid(again[3]) * tanh(second))
    return (h, c), (i, f, g, o)
""")
replace("    return (n + z * (s[0] - n),), (r, z, n, u[2])\n", """    h = n + z * (s[0] - n)
    m = tanh(x[2] + x[2] + sigmoid(x[0] + u[0] + x[0] + u[0]) * u[2])
    second = m + sigmoid(x[1] + u[1] + x[1] + u[1]) * (s[0] - m)
    return (h + (h - h) * second,), (r, z, n, u[2])
""")
path.write_text(text)
PLANT

for copy in unchanged planted; do
    "$PYTHON" -m pip install -q --no-deps --no-build-isolation --target "$DIR/$copy" "$DIR/$copy.src"
done
check() {  # check COPY WORDS...: the command of a copy, with kernels of its own
    local copy=$1; shift
    PYTHONPATH="$DIR/$copy" SEQKERNELS_CACHE_DIR="$DIR/cache.$copy" "$PYTHON" -m seqkernels.cli check "$@"
}
for copy in unchanged planted; do
    PYTHONPATH="$DIR/$copy" "$PYTHON" -c "import seqkernels, sys; sys.exit(not seqkernels.__file__.startswith('$DIR/$copy/'))"
    rm -f "$DIR/$copy/seqkernels/bench/ratios.json"
    # Compiles every kernel, so that no measurement does.
    PYTHONPATH="$DIR/$copy" SEQKERNELS_CACHE_DIR="$DIR/cache.$copy" "$PYTHON" -c \
        "from seqkernels.bench import ratios; ratios.measure(ratios.case_rows(), 1)"
done
uptime
check unchanged record --ratios
cp "$DIR/unchanged/seqkernels/bench/ratios.json" "$DIR/planted/seqkernels/bench/ratios.json"
cat "$DIR/unchanged/seqkernels/bench/ratios.json"

false_alarms=0 caught=0
for run in $(seq "$RUNS"); do
    if check unchanged --ratios > "unchanged.$run.log" 2>&1; then said=passed; else said=FAILED; false_alarms=$((false_alarms + 1)); fi
    echo "unchanged $run: $said"; grep -h "If this is meant" "unchanged.$run.log" || true
    if check planted --ratios > "planted.$run.log" 2>&1; then said=PASSED; else said=failed; caught=$((caught + 1)); fi
    echo "planted $run: $said"; grep -h "If this is meant" "planted.$run.log" || true
done
uptime
echo "unchanged code: $false_alarms of $RUNS runs failed (wanted 0). A second pass over the gates: $caught of $RUNS runs failed (wanted $RUNS). Logs: $DIR"
[ "$false_alarms" = 0 ] && [ "$caught" = "$RUNS" ]
