#!/bin/sh
# Every test of the C client, under every compiler and checker that is here. usage: BUILD=DIR CC=cc sh tests/run.sh
#
# Called by `make -C client-c test`. A compiler or checker that is missing is told by `SKIP name: reason`. The last
# line is `client-c: N passed, N failed, N skipped`.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${BUILD:?}" "${CC:=cc}"
OUT=$BUILD/tests
WARN="-std=c11 -D_GNU_SOURCE -g -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -I../include -I."
passed=0 failed=0 skipped=0
mkdir -p "$OUT"

skip() {
    echo "SKIP client-c-$1: $2"
    skipped=$((skipped + 1))
}
check() {
    what=$1
    shift
    if "$@" >"$OUT/log" 2>&1; then
        passed=$((passed + 1))
        grep '^SKIP ' "$OUT/log"
        echo "ok client-c-$what"
    else
        failed=$((failed + 1))
        echo "FAILED client-c-$what"
        cat "$OUT/log"
    fi
}
# build NAME COMPILER FLAGS...: the three tests that need no daemon, into $OUT/NAME-*.
build() {
    into=$1 with=$2
    shift 2
    for test in ring wait attach; do
        # shellcheck disable=SC2086 # flags are words
        $with $WARN "$@" -o "$OUT/$into-$test" tests/test_$test.c tests/fake.c ./*.c -pthread >"$OUT/log" 2>&1 || return 1
    done
}
run() {
    name=$1
    shift
    if ! command -v "$1" >/dev/null 2>&1; then
        skip "$name" "there is no $1"
        return
    fi
    compiler=$1
    shift
    if ! echo 'int main(void){return 0;}' | $compiler -x c "$@" -o "$OUT/probe" - 2>/dev/null || ! "$OUT/probe"; then
        skip "$name" "$compiler cannot build or run with: $*"
        return
    fi
    if ! build "$name" "$compiler" "$@"; then
        failed=$((failed + 1))
        echo "FAILED client-c-$name: it does not build"
        cat "$OUT/log"
        return
    fi
    for test in ring wait attach; do
        check "$name-$test" "$OUT/$name-$test"
    done
}

run gcc gcc -O2
run clang clang -O2
run asan gcc -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
# TSan does not know fences: what they order is the sleep handshake, whose words are atomics all the same.
run tsan gcc -O1 -fsanitize=thread -Wno-tsan
if command -v valgrind >/dev/null 2>&1 && [ -x "$OUT/gcc-attach" ]; then
    for test in ring attach; do
        check "valgrind-$test" valgrind -q --error-exitcode=9 --leak-check=full --child-silent-after-fork=yes "$OUT/gcc-$test"
    done
else
    skip valgrind "there is no valgrind"
fi

# shellcheck disable=SC2086
check alloc sh -c "$CC $WARN -O2 -o '$OUT/alloc' tests/test_alloc.c tests/fake.c driver/count.c ./*.c -pthread && '$OUT/alloc'"
# shellcheck disable=SC2086
check layout sh -c "$CC $WARN -O2 -o '$OUT/layout' tests/test_layout.c && '$OUT/layout' ../docs/shm-layout.md"
for cxx in g++ clang++; do
    if command -v $cxx >/dev/null 2>&1; then
        check "cpp-$cxx" sh -c "$cxx -std=c++11 -Wall -Wextra -Wpedantic -Wconversion -Werror -I../include -o '$OUT/$cxx' \
            tests/usable_from_cpp.cpp '$BUILD/libinferd.a' && '$OUT/$cxx'"
    else
        skip "cpp-$cxx" "there is no $cxx"
    fi
done

# What the shared library exports is what the header declares, and the static one needs nothing but the C library.
grep -o 'INFERD_API[^(]*inferd_[a-z0-9_]*(' ../include/inferd.h | grep -o 'inferd_[a-z0-9_]*(' | tr -d '(' | sort -u >"$OUT/declared"
check exports sh -c "nm -D --defined-only '$BUILD/libinferd.so' | sed -n 's/.* T \([a-z0-9_]*\).*/\1/p' | sort -u | diff - '$OUT/declared'"
check soname sh -c "readelf -d '$BUILD/libinferd.so' | grep -q 'SONAME.*\[libinferd\.so\.[0-9]*\]' &&
    ! readelf -d '$BUILD/libinferd.so' | grep NEEDED | grep -v -e 'libc\.' -e ld-linux"
check install sh -c "make -s install BUILD='$BUILD' DESTDIR='$OUT/dest' PREFIX=/usr CC='$CC' && test -e '$OUT/dest/usr/lib/libinferd.so'"
if command -v pkg-config >/dev/null 2>&1; then
    check pkg-config sh -c "PKG_CONFIG_LIBDIR='$OUT/dest/usr/lib/pkgconfig' PKG_CONFIG_SYSROOT_DIR='$OUT/dest' \
        $CC -o '$OUT/minimal' ../examples/c/minimal.c \$(PKG_CONFIG_LIBDIR='$OUT/dest/usr/lib/pkgconfig' \
        PKG_CONFIG_SYSROOT_DIR='$OUT/dest' pkg-config --cflags --libs inferd)"
else
    skip pkg-config "there is no pkg-config"
fi

echo "client-c: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
