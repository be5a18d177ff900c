#!/bin/sh
# Runs the rows of the benches with tiny counts, and the report over what they wrote: that they run, not how fast anything is.
#
# A row that wrote no line, or a section of the page that came out empty, is a failure.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
INFERD_BENCH_JSON=$dir/lines INFERD_BENCH_DOCS=$dir/docs INFERD_BENCH_SCALE=0.001 INFERD_BENCH_RELOADS=2
export INFERD_BENCH_JSON INFERD_BENCH_DOCS INFERD_BENCH_SCALE INFERD_BENCH_RELOADS
mkdir "$dir/docs"
cp docs/benchmarks.md "$dir/docs/"
# One package selection, as for the tests, so that all share one build.
bench() { $CARGO bench --locked --workspace --bench "$1"; }

INFERD_BENCH_ROWS="echo64 echo1k asleep" bench data_path
INFERD_BENCH_ROWS="open_loop payload sessions idle waitv" bench loads
INFERD_BENCH_ROWS="0.76" bench reloads
bench report

faults=0
for row in echo64 recording/echo64 asleep open_loop/50Hz open_loop/1000Hz payload/16 payload/921600 payload/8388608 idle/63 waitv/120; do
    grep -q "\"kind\":\"row\".*\"row\":\"$row\"" "$dir/lines" || { echo "no line of the row $row" && faults=1; }
done
for row in sessions idle payload waitv; do
    grep -q "\"kind\":\"point\".*\"row\":\"$row\"" "$dir/lines" || { echo "no point of the curve $row" && faults=1; }
done
for plot in cdf-echo64 open-loop payload sessions waitv ratios; do
    [ -s "$dir/docs/plots/$plot.svg" ] || { echo "no plot $plot" && faults=1; }
done
if cmp -s docs/benchmarks.md "$dir/docs/benchmarks.md"; then echo "the page was not written" && faults=1; fi
exit "$faults"
