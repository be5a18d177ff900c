#!/usr/bin/env python3
"""Runs a suite of tests in Python, in an environment of pinned wheels, and closes with `SUITE: N passed, N failed`.

usage: run.py SUITE [--env NAME] [PYTHON...]

client-py runs under this interpreter and the oldest and newest that are here, 3.9 and up; the others under one. INFERD_BIN_DIR and
INFERD_LIBRARY say where things are built (else CARGO_TARGET_DIR). What lacks something prints `SKIP name: reason`.
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
#: Folder, environment of scripts/python_env.py, oldest Python, whether under several.
SUITES = {
    "client-py": (HERE, "tests", (3, 9), True),
    "walk": (ROOT / "examples" / "walk", "walk", (3, 11), False),
    "export": (ROOT / "tools" / "export", "torch", (3, 11), False),
    "guides": (ROOT / "tests" / "guides", "guides", (3, 9), False),
}


def version_of(python: str) -> Optional[Tuple[int, int]]:
    try:
        ran = subprocess.run([python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, universal_newlines=True)
    except OSError:
        return None
    return tuple(map(int, ran.stdout.split())) if ran.returncode == 0 else None  # type: ignore[return-value]


def interpreters(oldest: Tuple[int, int], several: bool) -> List[str]:
    """This one if it is new enough, and if several are wanted the oldest and the newest in the path and in pyenv."""
    names = [shutil.which(f"python3.{minor}") for minor in range(oldest[1], 20)]
    names += sorted(glob.glob(os.path.join(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"), "versions/3.*/bin/python3")))
    found: Dict[Tuple[int, int], str] = {sys.version_info[:2]: sys.executable}
    for name in filter(None, names):
        version = version_of(name)
        if version is not None:
            found.setdefault(version, name)
    usable = sorted(version for version in found if version >= oldest)
    if not usable:
        return []
    mine = sys.version_info[:2] if sys.version_info[:2] >= oldest else usable[0]
    return [found[version] for version in (sorted({mine, usable[0], usable[-1]}) if several else [mine])]


def prepare(suite: str, environment: Dict[str, str]) -> Optional[str]:
    """What a suite wants beyond its environment; the reason if it is not to be had."""
    if suite == "walk":
        robots = str(TARGET / "robots")
        environment["INFERD_ROBOTS"] = robots
        if subprocess.run([sys.executable, ROOT / "scripts" / "fetch_robots.py", robots], stdout=subprocess.DEVNULL).returncode != 0:
            return "the robots could not be fetched"
    return None


def run(folder: Path, python: str, environment: Dict[str, str], strict: bool) -> Tuple[int, int]:
    """Passed and failed. strict: what will go out of use counts as an error; not in others' packages."""
    flags = ["-W", "error::DeprecationWarning"] if strict else ["-W", "ignore"]
    ran = subprocess.run([python, *flags, "-m", "unittest", "discover", "-v", "-s", folder],
                         env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, cwd=folder)
    # unittest writes `test ... ` before what a test prints: a SKIP begins a line of its own.
    print(re.sub(r"(?m)^(.+ \.\.\. )SKIP ", r"\1\nSKIP ", ran.stdout), flush=True)
    count = re.search(r"(?m)^Ran (\d+) test", ran.stdout)
    if count is None:
        return 0, 1
    bad = sum(map(int, re.findall(r"(?:failures|errors)=(\d+)", ran.stdout.splitlines()[-1])))
    if ran.returncode != 0 and bad == 0:
        bad = 1
    skipped = len(re.findall(r"(?m)^(?:.+ \.\.\. )?SKIP ", ran.stdout))  # counted by who sums the suites up
    return max(0, int(count[1]) - bad - skipped), bad


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("pythons", nargs="*")
    parser.add_argument("--env", help="another environment to test in")
    args = parser.parse_args()
    folder, env, oldest, several = SUITES[args.suite]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'client-py'}:{folder}", "PYTHONDONTWRITEBYTECODE": "1",
                   "CARGO_TARGET_DIR": str(TARGET)}
    environment.setdefault("INFERD_BIN_DIR", str(TARGET / "release"))
    environment.setdefault("INFERD_LIBRARY", str(TARGET / "c" / "libinferd.so"))
    name = args.suite.replace("-", "_")
    passed = failed = 0
    pythons = args.pythons or interpreters(oldest, several)
    reason = prepare(args.suite, environment) if pythons else f"no Python {oldest[0]}.{oldest[1]} or newer"
    if reason is not None:
        print(f"SKIP {name}: {reason}")
        pythons = []
    for python in pythons:
        made = subprocess.run([sys.executable, ROOT / "scripts" / "python_env.py", *(args.env or env).split(","), "--python", python],
                              stdout=subprocess.PIPE, universal_newlines=True)
        if made.returncode != 0:
            print(f"SKIP {name}_{os.path.basename(python)}: its environment could not be made for {python}")
            continue
        print(f"---- {made.stdout.strip()}", flush=True)
        good, bad = run(folder, made.stdout.strip(), environment, args.suite == "client-py" and args.env is None)
        passed, failed = passed + good, failed + bad
    print(f"{args.suite}: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
