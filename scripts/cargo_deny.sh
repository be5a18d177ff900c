#!/bin/sh
# Where `make deps` puts the cargo-deny that lints use, of one release.
echo "${CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/inferd}/cargo-deny-0.20.2"
