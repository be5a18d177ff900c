#!/bin/sh
# Walks a robot with what is built here: usage: walk.sh TARGET_DIR [OPTION...], the options of examples/walk/walk.py.
# Simulator and robots come from pinned wheels; where those are not to be had it says so, and succeeds.
set -eu
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}"
target=$1
shift
CARGO_TARGET_DIR=$target
export CARGO_TARGET_DIR
# The simulator has wheels for Python 3.11 and newer.
for python in "$PYTHON" python3.13 python3.12 python3.11 python3.14; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
    python=
done
if [ -z "$python" ]; then
    echo "SKIP walk: no Python 3.11 or newer here, which the simulator wants"
    exit 0
fi
interpreter=$("$PYTHON" scripts/python_env.py walk --python "$python") && robots=$("$PYTHON" scripts/fetch_robots.py "$target/robots") || {
    echo "SKIP walk: simulator or robots are not to be had (see above)"
    exit 0
}
INFERD_LIBRARY=$target/c/libinferd.so PYTHONPATH=$PWD/client-py PYTHONDONTWRITEBYTECODE=1
export INFERD_LIBRARY PYTHONPATH PYTHONDONTWRITEBYTECODE
exec "$interpreter" examples/walk/walk.py --robots "$robots" --bin-dir "$target/release" "$@"
