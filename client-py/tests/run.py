#!/usr/bin/env python3
"""Runs the tests of the Python client under this interpreter and the oldest and newest that are here, 3.9 and up.

usage: run.py [--env NAME] [PYTHON...]      INFERD_BIN_DIR and INFERD_LIBRARY say where things are built (else CARGO_TARGET_DIR)
Closes with `client-py: N passed, N failed`; a test that lacks something prints `SKIP name: reason`.
"""
from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional, Tuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR")
              or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "inferd/target"))
OLDEST = (3, 9)


def version_of(python: str) -> Optional[Tuple[int, int]]:
    try:
        ran = subprocess.run([python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, universal_newlines=True)
    except OSError:
        return None
    return tuple(map(int, ran.stdout.split())) if ran.returncode == 0 else None  # type: ignore[return-value]


def interpreters() -> List[str]:
    """This one, and where they are others the oldest and the newest in the path and in pyenv."""
    names = [shutil.which(f"python3.{minor}") for minor in range(OLDEST[1], 20)]
    names += sorted(glob.glob(os.path.join(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"), "versions/3.*/bin/python3")))
    found: Dict[Tuple[int, int], str] = {sys.version_info[:2]: sys.executable}
    for name in filter(None, names):
        version = version_of(name)
        if version is not None and version >= OLDEST:
            found.setdefault(version, name)
    wanted = {sys.version_info[:2], min(found), max(found)}
    return [found[version] for version in sorted(wanted)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pythons", nargs="*")
    parser.add_argument("--env", default="tests", help="the environment of scripts/python_env.py to test in")
    args = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'client-py'}:{HERE}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("INFERD_BIN_DIR", str(TARGET / "release"))
    environment.setdefault("INFERD_LIBRARY", str(TARGET / "c" / "libinferd.so"))
    passed = failed = 0
    for python in args.pythons or interpreters():
        made = subprocess.run([sys.executable, ROOT / "scripts" / "python_env.py", args.env, "--python", python], stdout=subprocess.PIPE,
                              universal_newlines=True)
        if made.returncode != 0:
            print(f"SKIP client_py_{os.path.basename(python)}: no environment with NumPy could be made for {python}")
            continue
        print(f"---- {made.stdout.strip()}", flush=True)
        ran = subprocess.run([made.stdout.strip(), "-W", "error::DeprecationWarning", "-m", "unittest", "discover", "-v", "-s", HERE],
                             env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, cwd=HERE)
        # unittest writes `test ... ` before what a test prints: a SKIP begins a line of its own.
        print(re.sub(r"(?m)^(.+ \.\.\. )SKIP ", r"\1\nSKIP ", ran.stdout), flush=True)
        count = re.search(r"(?m)^Ran (\d+) test", ran.stdout)
        bad = sum(map(int, re.findall(r"(?:failures|errors)=(\d+)", ran.stdout.splitlines()[-1] if ran.stdout else "")))
        if count is None or (ran.returncode != 0 and bad == 0):
            bad = bad or 1
        failed += bad
        passed += (int(count[1]) if count else 0) - (bad if count else 0)
    print(f"client-py: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
