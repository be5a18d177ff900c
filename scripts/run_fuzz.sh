#!/bin/sh
# Coverage-guided fuzzing of every parser that reads what somebody else wrote; the targets are in fuzz/. usage: run_fuzz.sh [TARGET...]
#
# libFuzzer on stable Rust: coverage is an LLVM pass that rustc runs on demand, and AddressSanitizer wants the bootstrap switch
# (docs/decisions/0009-fuzzing.md says why so). The corpus in fuzz/corpus is replayed and not written to; what is found grows below the target
# folder, and the next run goes on from there. FUZZ_S: seconds a target, else 3, or CAMPAIGN_S in a campaign.
# A target fails on a crash, on an input that takes more than 5 s, and on an allocation over 64 MiB.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}" "${INFERD_CAMPAIGN:=}"
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd/target}"
if [ -n "$INFERD_CAMPAIGN" ]; then seconds=${FUZZ_S:-${CAMPAIGN_S:-600}}; else seconds=${FUZZ_S:-3}; fi
CARGO_TARGET_DIR=$CARGO_TARGET_DIR/fuzz
TRIPLE=$(rustc -vV | sed -n 's/^host: //p')
COVERAGE="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# shellcheck disable=SC2086 # one line of words
RUSTFLAGS="$(echo $COVERAGE) -Zsanitizer=address"
RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR RUSTFLAGS RUSTC_BOOTSTRAP
# --target: build scripts and macros are the host's, and not instrumented.
$CARGO build --release --locked --quiet --manifest-path fuzz/Cargo.toml --target "$TRIPLE"

OUT=$CARGO_TARGET_DIR/run
FUZZER=$CARGO_TARGET_DIR/$TRIPLE/release/inferd-fuzz
mkdir -p "$OUT/found"
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=0}"
# shellcheck disable=SC2046 # one word per target
[ $# -gt 0 ] || set -- $(INFERD_FUZZ_TARGET=list "$FUZZER" -artifact_prefix="$OUT/list-")
passed=0 failed=0
for target; do
    mkdir -p "$OUT/$target" "fuzz/corpus/$target"
    # First every seed and every input that once broke something, then new ones.
    if INFERD_FUZZ_TARGET=$target "$FUZZER" -runs=0 -timeout=5 -malloc_limit_mb=64 -rss_limit_mb=1024 \
        -artifact_prefix="$OUT/found/$target-" "fuzz/corpus/$target" >"$OUT/$target.log" 2>&1 &&
        INFERD_FUZZ_TARGET=$target "$FUZZER" -max_total_time="$seconds" -timeout=5 -malloc_limit_mb=64 -rss_limit_mb=1024 -max_len=8192 \
            -print_final_stats=1 -artifact_prefix="$OUT/found/$target-" "$OUT/$target" "fuzz/corpus/$target" >"$OUT/$target.log" 2>&1; then
        passed=$((passed + 1))
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$OUT/$target.log")
        echo "campaign fuzz $target: $runs inputs in $seconds s, $(grep -o 'cov: [0-9]*' "$OUT/$target.log" | tail -n 1)"
    else
        failed=$((failed + 1))
        echo "fuzz $target: FAILED; the input lies in $OUT/found, and belongs into fuzz/corpus/$target once it is repaired"
        tail -n 60 "$OUT/$target.log"
    fi
done
echo "fuzz: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
