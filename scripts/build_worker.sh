#!/bin/sh
# Builds a worker that stands on a library of its own, which is found or fetched first. usage: build_worker.sh [--or-skip] torch|ort
#
# The one that links its library is built apart from the rest of the workspace, which needs none of these libraries. With --or-skip a library that
# cannot be had is said in a line `SKIP NAME: reason` and is no failure, save with CI=true; the scenarios then skip by name.
# TORCH=0 or ORT=0 with --or-skip leaves that one out.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}" "${PYTHON:=python3}" "${CI:=}"
: "${CACHE_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd}"

or_skip=
if [ "$1" = --or-skip ]; then
    or_skip=yes
    shift
fi
name=$1

skip() {
    echo "SKIP $name: $1"
    exit 0
}

fetch() {
    case $name in
    torch) $PYTHON scripts/fetch_libtorch.py "$CACHE_DIR/libtorch-2.11.0" ;;
    ort) $PYTHON scripts/fetch_onnxruntime.py "$CACHE_DIR/onnxruntime" ;;
    *) echo "build_worker: no worker is called $name" >&2 && exit 2 ;;
    esac
}

case $name in
torch) switch=${TORCH:-1} ;;
ort) switch=${ORT:-1} ;;
*) switch=1 ;;
esac
if [ -n "$or_skip" ] && [ "$switch" = 0 ]; then
    skip "switched off"
fi
if ! library=$(fetch); then
    if [ -n "$or_skip" ] && [ "$CI" != true ]; then
        skip "its library cannot be had here (see above)"
    fi
    echo "build_worker: the library of inferd-worker-$name cannot be had (see above)" >&2
    exit 1
fi
echo "inferd-worker-$name with $library"

case $name in
torch)
    export LIBTORCH="$library"
    $CARGO build --release --locked -p inferd-worker-torch --features libtorch --bins --examples
    ;;
ort)
    # The worker itself needs no library to be built: it is part of the workspace. It finds this one beside itself.
    bins=${CARGO_TARGET_DIR:-$CACHE_DIR/target}/release
    mkdir -p "$bins/onnxruntime-notices"
    if ! cmp -s "$library" "$bins/libonnxruntime.so.1"; then
        cp "$library" "$bins/.libonnxruntime.$$"
        mv "$bins/.libonnxruntime.$$" "$bins/libonnxruntime.so.1"
    fi
    for notice in LICENSE ThirdPartyNotices.txt; do
        if [ -e "$(dirname "$library")/$notice" ]; then cp "$(dirname "$library")/$notice" "$bins/onnxruntime-notices/"; fi
    done
    ;;
esac
