#!/bin/sh
# Runs every suite one after the other, each within what tests/budget.toml gives it, and sums them up. usage: run_tests.sh [SUITE...]
#
# A suite is the tree's own rules, the lints, the unit or doc tests of the workspace, the loom models, the C and the Python
# client's own tests, or one file of a crate's tests/. Its output goes to a log; the log of one that failed is shown. A test
# that printed `SKIP name: reason` counts as skipped, not as passed; with CI=true a name that tests/allowed-skips.txt does
# not list is a failure.
# The last line is `N passed, N failed, N skipped`.
set -u
cd "$(dirname "$0")/.." || exit 1

: "${CARGO:=cargo}" "${PYTHON:=python3}" "${CI:=}" "${INFERD_CAMPAIGN:=}" "${CAMPAIGN_S:=600}"
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd/target}"
export CARGO CARGO_TARGET_DIR
# Where a campaign writes how far it has come; remove it to begin anew.
: "${INFERD_CAMPAIGN_DIR:=$CARGO_TARGET_DIR/campaign}"
export INFERD_CAMPAIGN_DIR
# Workers that stand on a library of their own have their unit tests apart, where the library is (scripts/build_worker.sh).
: "${TORCH:=1}" "${ORT:=1}" "${LIBTORCH:=}"
if [ "$TORCH" != 0 ] && [ -z "$LIBTORCH" ] && [ -x "$CARGO_TARGET_DIR/release/inferd-worker-torch" ]; then
    LIBTORCH=$(${PYTHON:-python3} scripts/fetch_libtorch.py "${CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/inferd}/libtorch-2.11.0")
fi
[ "$TORCH" != 0 ] || LIBTORCH=
export TORCH ORT LIBTORCH
LOGS=$CARGO_TARGET_DIR/test-logs
ALLOWED=tests/allowed-skips.txt

# Seconds of a suite in tests/budget.toml: `budget_s` (its share), or `ended_s` (it hangs); nothing where it does not say.
number_of() { sed -n "/^\[suites\]/,/^\[rounds\]/s/^$1 = {.*[ {]$2 = \([0-9]*\).*/\1/p" tests/budget.toml; }

# Seconds after which a suite is ended.
ended_of() {
    budget=$(number_of "$1" budget_s)
    ended=$(number_of "$1" ended_s)
    ended=${ended:-$((4 * ${budget:-1} + 60))}
    # A campaign's scenarios end after CAMPAIGN_S seconds each, by themselves.
    if [ -n "$INFERD_CAMPAIGN" ]; then ended=$((ended + 100 * CAMPAIGN_S)); fi
    echo "$ended"
}

suites() {
    printf '%s\n' tree lint units docs loom benches fuzz sanitizers client-c client-py torch-units walk guides systemd mutations
    # A test is a file, or a folder with a main.rs.
    for file in */tests/*.rs */tests/*/main.rs; do
        case $file in
        */main.rs) file=$(dirname "$file") ;;
        esac
        if [ -e "$file" ]; then basename "$file" .rs; fi
    done | grep -vx loom | sort -u
}

# --show-output: what a passing test printed holds its SKIP lines. One package selection for all, so that all share
# one set of features, and thus one build.
run_suite() {
    case $1 in
    tree) sh scripts/check_tree.sh ;;
    lint) sh scripts/run_lint.sh ;;
    loom) sh scripts/run_loom.sh ;;
    benches) sh scripts/smoke_benches.sh ;;
    fuzz) sh scripts/run_fuzz.sh ;;
    sanitizers) sh scripts/run_sanitizers.sh ;;
    client-c) make -C client-c test BUILD="$CARGO_TARGET_DIR/client-c-tests" ;;
    client-py | walk | guides) $PYTHON client-py/tests/run.py "$1" ;;
    systemd) bash tests/systemd/run.sh ;;
    mutations) $PYTHON scripts/mutation_check.py "$([ -n "$INFERD_CAMPAIGN" ] && echo --all || echo --rotate)" ;;
    # A campaign drives the state machines of the supervisor's registries a hundred times as far.
    units) PROPTEST_CASES="${PROPTEST_CASES:-$([ -n "$INFERD_CAMPAIGN" ] && echo 25600 || echo 256)}" $CARGO test --release --locked --workspace --lib --bins --examples -- --show-output ;;
    docs) $CARGO test --release --locked --workspace --doc -- --show-output ;;
    torch-units)
        [ -n "$LIBTORCH" ] || { echo "SKIP torch-units: inferd-worker-torch is not built (make torch)" && return 0; }
        $CARGO test --release --locked -p inferd-worker-torch --features libtorch -- --show-output
        ;;
    *) $CARGO test --release --locked --workspace --test "$1" -- --show-output ;;
    esac
}

# Sums up one log: `passed failed skipped`, then a line per skip.
summary_of() {
    awk '
        /^test result: / { results++; passed += $4; failed += $6 }
        /^(client-c|client-py|walk|guides|systemd|fuzz|mutations): [0-9]+ passed, [0-9]+ failed/ { results++; passed += $2; failed += $4 }
        /^successes:$/ { within = 1 }
        /^failures:$/ { within = 0; test = "" }
        within && /^---- .* stdout ----$/ { test = $2 }
        /^SKIP / {
            if (test != "" && !(test in seen)) { seen[test] = 1; quiet++ }
            if (!($0 in said)) { said[$0] = 1; lines[++count] = $0; if (test == "") loose++ }
        }
        END {
            print results + 0, passed - quiet, failed + 0, quiet + loose
            for (i = 1; i <= count; i++) print lines[i]
        }' "$1"
}

# `timeout` gives the suite a process group of its own and ends the whole group.
if [ "${1:-}" = --list ]; then
    suites
    exit
fi
if [ "${1:-}" = --suite ]; then
    run_suite "$2"
    exit
fi

mkdir -p "$LOGS"
rm -f "$LOGS"/*.log "$LOGS/skips.txt"
passed=0 failed=0 skipped=0
# shellcheck disable=SC2046 # one word per suite
[ $# -gt 0 ] || set -- $(suites)

echo "building the tests"
if ! $CARGO test --release --locked --workspace --no-run --quiet ||
    { [ -n "$LIBTORCH" ] && ! $CARGO test --release --locked -p inferd-worker-torch --features libtorch --no-run --quiet; }; then
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi

# What dies at named steps is built apart: cargo would give its feature to every crate of the build above.
FAILPOINTS_S=900
if ! timeout "$FAILPOINTS_S" sh scripts/build_failpoints.sh; then
    echo "the programs with failpoints cannot be built within $FAILPOINTS_S s"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi

# The scenarios find the Python client's driver here; without it they skip that client by name.
sh scripts/python_driver.sh "$CARGO_TARGET_DIR/python/driver_py"

for suite; do
    log=$LOGS/$suite.log
    ended=$(ended_of "$suite")
    began=$(date +%s)
    if [ -n "$INFERD_CAMPAIGN" ]; then
        : >"$log"
        tail -n 0 -F "$log" 2>/dev/null | grep --line-buffered '^campaign ' &
        progress=$!
    fi
    timeout -k 10 "$ended" sh scripts/run_tests.sh --suite "$suite" >"$log" 2>&1 </dev/null
    code=$?
    took=$(($(date +%s) - began))
    if [ -n "$INFERD_CAMPAIGN" ]; then
        # The last lines may be on their way; tail ends with the next one that it cannot pass on.
        sleep 1
        kill "$progress" 2>/dev/null
        echo "campaign" >>"$log"
    fi
    summary_of "$log" >"$log.sum"
    read -r results suite_passed suite_failed suite_skipped <"$log.sum"
    sed 1d "$log.sum" | tee -a "$LOGS/skips.txt"
    rm -f "$log.sum"
    # A suite without a test runner, or one that died before its runner could report, counts as one test.
    if [ "$code" -eq 0 ] && [ "$results" -eq 0 ]; then suite_passed=1; fi
    if [ "$code" -ne 0 ] && [ "$suite_failed" -eq 0 ]; then suite_failed=1; fi
    verdict=ok
    if [ "$code" -ne 0 ]; then
        verdict=FAILED
        [ "$code" -ne 124 ] || verdict="FAILED: hung, and was ended after $ended s"
        echo "---- $suite ($log)"
        tail -n 200 "$log"
    fi
    echo "suite $suite: $suite_passed passed, $suite_failed failed, $suite_skipped skipped in $took s of $(number_of "$suite" budget_s): $verdict"
    passed=$((passed + suite_passed)) failed=$((failed + suite_failed)) skipped=$((skipped + suite_skipped))
done

if [ "$CI" = true ] && [ -s "$LOGS/skips.txt" ]; then
    names=$(sed -n 's/^SKIP \(.*\)$/\1/p' "$LOGS/skips.txt" | sed 's/: .*//' | sort -u)
    for name in $names; do
        if ! sed 's/[[:space:]]*#.*//' "$ALLOWED" 2>/dev/null | grep -qxF -e "$name"; then
            echo "not allowed to be skipped in CI: $name (install what it wants, or list it in $ALLOWED with the reason)"
            failed=$((failed + 1))
        fi
    done
fi
if [ -z "$INFERD_CAMPAIGN" ]; then
    awk '/^\[rounds\]/ { exit } match($0, /budget_s = [0-9]+/) { s += substr($0, RSTART + 11, RLENGTH - 11) }
        END { printf "budgets of all suites: %d s of 2400\n", s }' tests/budget.toml
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
