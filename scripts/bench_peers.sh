#!/bin/sh
# Builds the peers and measures them beside inferd. usage: bench_peers.sh POLICY.onnx
#
# They have a lock file and a target folder of their own. What does not build here, or whose Python packages cannot be had, is a
# line in the table that says so: the others go on. INFERD_BENCH_ROWS and INFERD_BENCH_PEERS choose, INFERD_BENCH_JSON
# names a file for the figures, INFERD_PEERS_TIME_S bounds the measuring (330).
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}" "${PYTHON:=python3}"
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd/target}"
peers=$CARGO_TARGET_DIR/peers
mkdir -p "$peers/release"
# One left from an earlier build must not stand in for one that fails to build now.
rm -f "$peers"/release/peer-* "$peers"/release/inferd-peers
CARGO_TARGET_DIR=$peers $CARGO build --release --locked --keep-going --workspace --manifest-path tests/peers/Cargo.toml ||
    echo "bench_peers: not every peer could be built, as it says above" >&2
if [ ! -x "$peers/release/inferd-peers" ]; then
    echo "bench_peers: the harness was not built. If its lock file lacks what inferd depends on now, write it anew:" \
        "cargo update --workspace --manifest-path tests/peers/Cargo.toml" >&2
    exit 1
fi
INFERD_PEERS_PYTHON=$(CARGO_TARGET_DIR=$CARGO_TARGET_DIR $PYTHON scripts/python_env.py onnx peers) || INFERD_PEERS_PYTHON=
INFERD_BIN_DIR=${INFERD_BIN_DIR:-$CARGO_TARGET_DIR/release}
INFERD_GO2_POLICY=$1
INFERD_PEERS_RUSTC=$(rustc --version 2>/dev/null) || INFERD_PEERS_RUSTC=
export INFERD_PEERS_PYTHON INFERD_BIN_DIR INFERD_GO2_POLICY INFERD_PEERS_RUSTC
exec "$peers/release/inferd-peers"
