#!/bin/sh
# Debian packages from a release build that is there already. usage: build_deb.sh VERSION OUT_DIR
#
# The tree is copied beside the build first, for dpkg-buildpackage writes into it and nothing is written into the
# clone. A clean build, from source to packages, is the same without INFERD_BUILT: `cp -r packaging/debian .`, write a
# debian/changelog, `dpkg-buildpackage -b -us -uc` (it runs `make build`, which fetches the locked crates).
set -eu
version=$1 out=$2
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:?the target directory that holds the release build}"
for tool in dpkg-buildpackage dh fakeroot; do
    command -v $tool >/dev/null || { echo "build_deb: no $tool; run \`make deps\` as root" >&2; exit 1; }
done
work=$CARGO_TARGET_DIR/deb-work/inferd-$version
rm -rf "$work"
mkdir -p "$work" "$out"
git ls-files --cached --others --exclude-standard | while IFS= read -r file; do [ -f "$file" ] && printf '%s\n' "$file"; done |
    tar -c -T - | tar -x -C "$work"
cp -r packaging/debian "$work/debian"
date=$(git log -1 --format=%cD 2>/dev/null || date -R)
cat >"$work/debian/changelog" <<END
inferd ($version) unstable; urgency=medium

  * CHANGELOG.md says what a user sees change.

 -- The inferd developers <developers@inferd.example>  $date
END
log=$CARGO_TARGET_DIR/deb-work/build-$version.log
cd "$work"
INFERD_BUILT=1 dpkg-buildpackage -b -nc -us -uc -d >"$log" 2>&1 || { tail -n 40 "$log" >&2; echo "build_deb: failed ($log)" >&2; exit 1; }
cd ..
for deb in *_"${version}"_*.deb; do mv "$deb" "$out/"; done
mv inferd_"${version}"_*.changes inferd_"${version}"_*.buildinfo "$out/" 2>/dev/null || true
rm -rf "$work"
ls -1 "$out"/*_"${version}"_*.deb
