#!/bin/sh
# The Rust side of the data path under AddressSanitizer and LeakSanitizer: the rings, regions and records of ipc, the Rust client
# against a daemon of its own tests, the worker with its backend `echo`. The C client has its sanitizers in client-c/tests/run.sh.
#
# Stable Rust has the runtime and not the switch, hence RUSTC_BOOTSTRAP. A target folder of its own: everything is built for it.
# Rust's ThreadSanitizer wants a standard library of its own build, which stable lacks: loom holds the orderings.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}"
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd/target}"
CARGO_TARGET_DIR=$CARGO_TARGET_DIR/sanitizers
TRIPLE=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address"
RUSTC_BOOTSTRAP=1
# The build is most of the time.
CARGO_PROFILE_RELEASE_OPT_LEVEL=1
: "${PROPTEST_CASES:=$([ -n "${INFERD_CAMPAIGN:-}" ] && echo 10000 || echo 64)}"
export CARGO_TARGET_DIR RUSTFLAGS RUSTC_BOOTSTRAP CARGO_PROFILE_RELEASE_OPT_LEVEL PROPTEST_CASES

# --target: build scripts and macros are the host's, and not instrumented. The loom models are another build.
exec $CARGO test --release --locked --target "$TRIPLE" -p inferd-ipc -p inferd-client -p inferd-worker --no-default-features \
    --lib --test rings --test record --test regions --test session --test reattach --test fork -- --show-output
