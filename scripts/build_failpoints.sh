#!/bin/sh
# Builds the programs that tests kill at every step: daemon, worker (echo alone, so that no inference library is built) and the
# clients' drivers with the feature `failpoints` (ipc/src/failpoints.rs, client-c/failpoint.h), into CARGO_TARGET_DIR/failpoints.
# Nothing of it is installed, and no other build has the feature: cargo would give it to every crate of one build.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}"
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd/target}"
export CARGO_TARGET_DIR
$CARGO build --profile failpoints --locked --no-default-features --features inferd-ipc/failpoints --bins --quiet \
    -p inferd-ipc -p inferd -p inferd-worker -p inferd-tests
c=$CARGO_TARGET_DIR/failpoints/c
${MAKE:-make} --silent -C client-c BUILD="$c" CFLAGS="-O1 -DINFERD_FAILPOINTS" "$c/driver_c" "$c/libinferd.so"
