#!/usr/bin/env python3
"""Finds or fetches libtorch 2.11.0 and prints the folder that holds its `lib` and `include`.

usage: fetch_libtorch.py FOLDER

In this order: $LIBTORCH, where it is set; a PyTorch 2.11.0 that this python3 has; else FOLDER, which is filled with what
serving on CPUs wants of torch's wheel and of the two wheels that its CPU library links. pip downloads these without
their dependencies and checks them against pinned hashes; nothing of them is installed or run. The CUDA libraries are
left out (550 MB in place of 5 GB): whoever serves on a GPU has a PyTorch there, and names it at run time in
INFERD_LIBTORCH. A folder that was filled before is taken as it is: a file written last says that it is whole.
"""
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "2.11.0"
LIBRARIES = ("torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1",
             "nvidia/cu13/lib/libcupti.so.13", "nvidia/cu13/lib/libcudart.so.13")
HEADERS = "torch/include/"
KEPT = ("torch/version.py",)
LICENCES = ("LICENSE", "NOTICE", "License.txt")
REQUIREMENTS = Path(__file__).with_name("fetch_libtorch.requirements.txt")
DISK_BYTES = 1_200_000_000


def stop(why: str) -> None:
    sys.exit(f"fetch_libtorch: {why}; or set LIBTORCH to a folder of libtorch {VERSION} (with lib and include)")


def version_of(libtorch: Path) -> str:
    """What a PyTorch's or a libtorch's own folder says of its version; empty where it says nothing."""
    for name in ("version.py", "build-version"):
        if (libtorch / name).is_file():
            text = (libtorch / name).read_text()
            for line in text.splitlines():
                if "=" not in line or line.startswith("__version__"):
                    return line.split("=")[-1].strip().strip("'\"")
    return ""


def is_libtorch(folder: Path) -> bool:
    return (folder / "lib/libtorch_cpu.so").is_file() and (folder / "include/torch/script.h").is_file()


def given() -> Path | None:
    """$LIBTORCH, which has to be right; else an installed PyTorch, which may be another version."""
    if os.environ.get("LIBTORCH"):
        folder = Path(os.environ["LIBTORCH"]).resolve()
        version = version_of(folder)
        if not is_libtorch(folder) or version.split("+")[0] not in ("", VERSION):
            sys.exit(f"fetch_libtorch: LIBTORCH={folder} holds {version or 'no libtorch'}; libtorch {VERSION} is wanted, "
                     "with lib/libtorch_cpu.so and include/torch/script.h")
        return folder
    found = importlib.util.find_spec("torch")
    folder = Path(found.origin).parent if found and found.origin else None
    if folder and is_libtorch(folder) and version_of(folder).split("+")[0] == VERSION:
        return folder
    return None


def download(folder: Path) -> list[Path]:
    """The wheels, checked by pip against the pinned hashes."""
    platforms = [part for glibc in ("2_28", "2_25", "2_17") for part in ("--platform", f"manylinux_{glibc}_x86_64")]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
           "--require-hashes", "--disable-pip-version-check", "--python-version", "3.12", "--implementation", "cp",
           *platforms, "--platform", "manylinux2014_x86_64", "--dest", str(folder), "-r", str(REQUIREMENTS)]
    if subprocess.run(pip, stdout=sys.stderr).returncode != 0:
        stop("pip could not download the wheels pinned in scripts/fetch_libtorch.requirements.txt; it needs pip for "
             "this python3, a package index that pip can reach, and 1.2 GB of disk")
    return sorted(folder.glob("*.whl"))


def wanted(name: str) -> bool:
    licence = ".dist-info/" in name and name.endswith(LICENCES)
    return name in LIBRARIES or name in KEPT or licence or (name.startswith(HEADERS) and not name.endswith("/"))


def fill(folder: Path) -> None:
    """Filled under another name and renamed, so that two fetches at once leave one whole folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder.parent).free < DISK_BYTES:
        stop(f"{folder.parent} has less than {DISK_BYTES // 10**6} MB free")
    with tempfile.TemporaryDirectory(prefix=".libtorch.", dir=folder.parent) as scratch:
        part = Path(scratch) / "part"
        wheels = Path(scratch) / "wheels"
        for wheel in download(wheels):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(part, [name for name in archive.namelist() if wanted(name)])
            wheel.unlink()
        lacking = [name for name in LIBRARIES if not (part / name).is_file()]
        if lacking:
            sys.exit(f"fetch_libtorch: the pinned wheels lack {', '.join(lacking)}: correct LIBRARIES in {__file__}")
        (part / "whole").write_text(f"libtorch {VERSION}, CPU only\n")
        try:
            part.rename(folder)
        except OSError:
            if not (folder / "whole").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                part.rename(folder)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: fetch_libtorch.py FOLDER")
    folder = Path(sys.argv[1]).absolute()
    libtorch = given()
    if libtorch is None:
        if not (folder / "whole").is_file():
            if platform.machine() not in ("x86_64", "AMD64"):
                stop(f"wheels are pinned for x86-64 only, and this is {platform.machine()}: "
                     f"pip install torch=={VERSION} for this python3")
            fill(folder)
        libtorch = folder / "torch"
    print(libtorch)


if __name__ == "__main__":
    main()
