#!/bin/sh
# What the full tests want of the system. As root it installs packages that are missing through apt-get; otherwise it
# says what is missing and how to get it, and succeeds: the tests skip by name what they cannot run. cargo-deny, which
# Debian does not package, is built once into the cache folder (four minutes on two CPUs).
set -eu
cd "$(dirname "$0")/.."

deny=$(sh scripts/cargo_deny.sh)
if [ ! -x "$deny/bin/cargo-deny" ] && command -v cargo >/dev/null 2>&1; then
    version=${deny##*-}
    CARGO_TARGET_DIR=$deny/build cargo install --quiet --locked --version "$version" --root "$deny" cargo-deny ||
        echo "deps: cargo-deny $version could not be built; scripts/check_licences.py checks the same" >&2
    rm -rf "$deny/build"
fi

# command:package:what it is for
WANTED='
clang:clang:the C client compiles without a warning under a second compiler
g++:g++:the C header is usable from C++
valgrind:valgrind:the C client has no leak and no invalid access; instructions per request
strace:strace:no system call per request while both sides spin
pkg-config:pkg-config:the installed pkg-config file is usable
dh:debhelper:the Debian packages are built
dpkg-buildpackage:dpkg-dev:the Debian packages are built
fakeroot:fakeroot:the Debian packages are built
lintian:lintian:the Debian packages have no error
debootstrap:debootstrap:a small Debian for the box tests
'

missing=$(printf '%s\n' "$WANTED" | while IFS=: read -r command package why; do
    [ -n "$command" ] || continue
    command -v "$command" >/dev/null 2>&1 || { printf '%s\n' "$package"; echo "deps: $package is missing ($why)" >&2; }
done)
if [ -z "$missing" ]; then
    echo "deps: everything that the full tests want is here"
    exit 0
fi
packages=$(printf '%s\n' "$missing" | tr '\n' ' ')
if ! command -v apt-get >/dev/null 2>&1; then
    echo "deps: no apt-get here; install with your package manager: $packages"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "deps: run as root to install them: apt-get install $packages"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# One by one: a package that cannot be had costs the tests that want it, by name, and nothing else.
for package in $packages; do
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null || echo "deps: $package could not be installed" >&2
done
