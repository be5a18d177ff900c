#!/usr/bin/env python3
"""Finds or fetches ONNX Runtime's library and prints its path.

usage: fetch_onnxruntime.py FOLDER

$ORT_DYLIB_PATH, where it is set; else FOLDER/VERSION, which is filled from the wheel onnxruntime (MIT; CPU only, 24 MB).
pip downloads that one wheel without its dependencies and checks it against the pinned hash; nothing of it is installed
or run. The library, its licence and its notices are unpacked; each is written beside its place and renamed, the library
last, so that a folder that has it is whole.
"""
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("fetch_onnxruntime.requirements.txt")
INSIDE = "onnxruntime/"
NOTICES = ("LICENSE", "ThirdPartyNotices.txt")
LIBRARY = "capi/libonnxruntime.so."


def stop(why: str) -> None:
    sys.exit(f"fetch_onnxruntime: {why}; or set ORT_DYLIB_PATH to a libonnxruntime.so of version 1.18 or newer")


def version() -> str:
    return REQUIREMENTS.read_text().split("onnxruntime==")[1].split()[0]


def download(folder: Path) -> Path:
    """The wheel, checked by pip against the pinned hashes."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    platforms = [part for glibc in ("2_28", "2_27", "2_17") for part in ("--platform", f"manylinux_{glibc}_{machine}")]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes",
           "--disable-pip-version-check", "--python-version", "3.12", "--implementation", "cp", *platforms,
           "--dest", str(folder), "-r", str(REQUIREMENTS)]
    if subprocess.run(pip, stdout=sys.stderr).returncode != 0:
        stop("pip could not download the wheel pinned in scripts/fetch_onnxruntime.requirements.txt; it needs pip for "
             f"this python3 and a package index that pip can reach, and the wheel exists for x86_64 and aarch64 "
             f"(this is {machine})")
    return next(folder.glob("*.whl"))


def put(content: bytes, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


def fill(folder: Path, library: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="inferd-fetch.") as scratch:
        with zipfile.ZipFile(download(Path(scratch))) as archive:
            for name in NOTICES:
                put(archive.read(INSIDE + name), folder / name)
            put(archive.read(INSIDE + LIBRARY + version()), library)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: fetch_onnxruntime.py FOLDER")
    given = os.environ.get("ORT_DYLIB_PATH")
    if given:
        if not Path(given).is_file():
            sys.exit(f"fetch_onnxruntime: ORT_DYLIB_PATH={given} is no file; correct it, or unset it")
        print(given)
        return
    folder = Path(sys.argv[1]).absolute() / version()
    library = folder / f"libonnxruntime.so.{version()}"
    if not library.is_file():
        fill(folder, library)
    print(library)


if __name__ == "__main__":
    main()
