#!/bin/sh
# Measures a TorchScript step through the crate tch beside the worker's. usage: bench_tch.sh FILE.pt INPUT=f32:DIM,DIM [time_torch's arguments]
#
# What docs/decisions/0002 cites. tch links libtorch.so, an empty library that the CPU subset of `make torch` leaves out:
# one is made here. Both run with the same libtorch, one thread, on the same CPU.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}" "${PYTHON:=python3}" "${CACHE_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd}" "${CPU:=1}"
: "${CARGO_TARGET_DIR:=$CACHE_DIR/target}"
export CARGO_TARGET_DIR
libtorch=$($PYTHON scripts/fetch_libtorch.py "$CACHE_DIR/libtorch-2.11.0")
stub=$CARGO_TARGET_DIR/peers-tch
mkdir -p "$stub/lib"
ln -sfn "$libtorch/include" "$stub/include"
for file in "$libtorch"/lib/*; do ln -sf "$file" "$stub/lib/"; done
if [ ! -e "$libtorch/lib/libtorch.so" ]; then
    c++ -shared -o "$stub/lib/libtorch.so" -Wl,--no-as-needed "-L$libtorch/lib" -ltorch_cpu -lc10 -Wl,--allow-shlib-undefined
fi
# The CUDA runtime that libtorch_cpu names lies beside it.
LD_LIBRARY_PATH=$stub/lib:$(dirname "$libtorch")/nvidia/cu13/lib
LIBTORCH="$stub" CARGO_TARGET_DIR="$CARGO_TARGET_DIR/peers-tch/target" \
    $CARGO build --release --locked --quiet --manifest-path tests/peers-tch/Cargo.toml
export LD_LIBRARY_PATH
exec taskset -c "$CPU" "$CARGO_TARGET_DIR/peers-tch/target/release/inferd-peer-tch" "$CARGO_TARGET_DIR/release/examples/time_torch" "$@"
