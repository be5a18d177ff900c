#!/bin/sh
# The checks that need a CUDA device. usage: test_gpu.sh [--carry FOLDER]
#
# Here: they run with the PyTorch that INFERD_LIBTORCH names (its folder `torch`, CUDA libraries and all), else with the
# one that the worker was built with. With --carry they are only built, and put into FOLDER with a script: a GPU machine
# may be bare and offline, and runs `INFERD_LIBTORCH=.../site-packages/torch sh run.sh` there.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}" "${PYTHON:=python3}"
: "${CACHE_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd}"
LIBTORCH=$($PYTHON scripts/fetch_libtorch.py "$CACHE_DIR/libtorch-2.11.0")
export LIBTORCH

tests=$($CARGO test --release --locked -p inferd-worker-torch --features libtorch --lib --no-run 2>&1 |
    sed -n 's/.*Executable.*(\(.*\))$/\1/p')
[ -x "$tests" ] || { echo "test_gpu: the tests were not built" >&2 && exit 1; }
if [ "${1:-}" = --carry ]; then
    mkdir -p "$2"
    cp "$tests" "$2/gpu-tests"
    cp "${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/inferd/target}/release/examples/time_torch" "$2/" 2>/dev/null || true
    printf '#!/bin/sh\n# Runs the carried GPU checks.\nexec "$(dirname "$0")/gpu-tests" tests::gpu --ignored --test-threads=1\n' >"$2/run.sh"
    echo "carry $2 to the GPU machine and run there: INFERD_LIBTORCH=FOLDER_OF_TORCH sh run.sh"
    exit 0
fi
if ! command -v nvidia-smi >/dev/null 2>&1; then
    echo "SKIP test-gpu: this machine has no CUDA device (no nvidia-smi); --carry FOLDER builds the checks for one that has"
    exit 0
fi
exec "$tests" tests::gpu --ignored --test-threads=1
