#!/bin/sh
# Writes the program through which the scenarios use the Python client (tests/DRIVER.md): an interpreter with NumPy from
# pinned wheels, this clone's package and the built libinferd. usage: python_driver.sh FILE
set -eu
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}"
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/inferd/target}"
export CARGO_TARGET_DIR
rm -f "$1"
interpreter=$($PYTHON scripts/python_env.py tests) || exit 0 # without it the scenarios skip this client, by name
mkdir -p "$(dirname "$1")"
cat >"$1.part" <<END
#!/bin/sh
INFERD_LIBRARY='$CARGO_TARGET_DIR/c/libinferd.so' PYTHONPATH='$PWD/client-py:$PWD/tests/driver_py' PYTHONDONTWRITEBYTECODE=1
export INFERD_LIBRARY PYTHONPATH PYTHONDONTWRITEBYTECODE
exec '$interpreter' -s '$PWD/tests/driver_py/driver.py'
END
chmod 755 "$1.part"
mv "$1.part" "$1"
