#!/usr/bin/env python3
"""Makes a virtual environment from pinned wheels, in the build folder, and prints the path of its interpreter.

usage: python_env.py NAME... [--python PYTHON]      NAME: a file of scripts/python/, without .txt

pip installs nothing but the wheels whose hashes the files list. The environment is named after the interpreter and after
what it holds, so that it is made once and never changed; what was interrupted lacks its mark, and is made anew. Exit code 3: a wheel is not to be had here (no index, or none for this Python).
"""
import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).resolve().parent / "python"
NOT_TO_BE_HAD = 3


def build_dir() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("CARGO_TARGET_DIR") or f"{cache}/inferd/target")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", choices=sorted(p.stem for p in PINS.glob("*.txt")))
    parser.add_argument("--python", default=sys.executable)
    args = parser.parse_args()
    files = [PINS / f"{name}.txt" for name in args.names]
    version = subprocess.run([args.python, "-c", "import sys; print('.'.join(map(str, sys.version_info[:3])))"],
                             stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout.strip()
    digest = hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:12]
    home = build_dir() / "python"
    home.mkdir(parents=True, exist_ok=True)
    place = home / f"{'-'.join(args.names)}-{version}-{digest}"
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "made").exists():
            make(args.python, files, place)
    print(place / "bin" / "python")


def make(python: str, files: list, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([python, "-m", "venv", place], check=True, stdout=sys.stderr)
    pip = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
           "--only-binary=:all:", "--require-hashes"]
    for file in files:
        if subprocess.run([*pip, "-r", file], stdout=sys.stderr).returncode != 0:
            shutil.rmtree(place, ignore_errors=True)
            print(f"python_env: pip could not install the wheels of {file.name} for {python}; it needs a package index that "
                  "pip can reach", file=sys.stderr)
            sys.exit(NOT_TO_BE_HAD)
    (place / "made").touch()


if __name__ == "__main__":
    main()
