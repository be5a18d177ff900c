#!/bin/sh
# The loom models of ipc: the shipped source, compiled with `--cfg loom`, explored over its interleavings.
# A target folder of its own: the flag would otherwise rebuild everything else, twice a run.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}"
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd/target}"
CARGO_TARGET_DIR=$CARGO_TARGET_DIR/loom
RUSTFLAGS="${RUSTFLAGS:-} --cfg loom"
export CARGO_TARGET_DIR RUSTFLAGS
exec $CARGO test --release --locked -p inferd-ipc --test loom -- --show-output
