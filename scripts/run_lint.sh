#!/bin/sh
# Formatting, clippy with warnings denied (MSRV included: incompatible_msrv reads each crate's rust-version),
# licences, bans and sources. What is not installed is skipped by name.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}" "${PYTHON:=python3}"

if $CARGO fmt --version >/dev/null 2>&1; then
    $CARGO fmt --all --check
else
    echo "SKIP rustfmt: not installed (rustup component add rustfmt)"
fi
if $CARGO clippy --version >/dev/null 2>&1; then
    $CARGO clippy --release --locked --workspace --all-targets -- -D warnings
    # The worker for TorchScript is empty without its feature, which wants libtorch's headers (run_tests.sh finds them).
    if [ -n "${LIBTORCH:-}" ]; then
        $CARGO clippy --release --locked -p inferd-worker-torch --features libtorch --all-targets -- -D warnings
    fi
else
    echo "SKIP clippy: not installed (rustup component add clippy)"
fi
$PYTHON scripts/check_licences.py
PATH=$PATH:$(sh scripts/cargo_deny.sh)/bin
if command -v cargo-deny >/dev/null 2>&1; then
    $CARGO deny --locked check bans licenses sources
else
    echo "SKIP cargo-deny: not installed (make deps); scripts/check_licences.py has checked licences, bans and sources"
fi
