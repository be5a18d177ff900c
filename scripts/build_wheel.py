#!/usr/bin/env python3
"""Builds the wheel of the Python client with libinferd.so in it, and prints its path. usage: build_wheel.py LIBRARY FOLDER

The backend is pinned by hash, in a virtual environment of its own. The platform tag is the truth about the library: the
newest GLIBC_2.x symbol version that it asks for, read from its ELF tables, and the machine that it is for. The package holds
no other native code, so one wheel serves every Python: py3-none-manylinux_2_XX_ARCH. A library that asks for anything
but libc, or for something newer than the tag could say, is refused.
"""
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "client-py"
# PEP 600 lists what any manylinux system has; libinferd needs no more than these.
ALLOWED = {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
MACHINES = {62: "x86_64", 183: "aarch64"}
# The oldest manylinux tag that pip knows by this name.
OLDEST = (2, 17)
SHT_DYNAMIC, SHT_GNU_VERNEED = 6, 0x6FFFFFFE
DT_NULL, DT_NEEDED = 0, 1


class Elf:
    """Just enough of a 64-bit little-endian shared object: what it needs, and in which versions."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        if self.data[:6] != b"\x7fELF\x02\x01":
            sys.exit(f"build_wheel: {path} is no 64-bit little-endian ELF file")
        (self.machine,) = struct.unpack_from("<H", self.data, 18)
        (table,) = struct.unpack_from("<Q", self.data, 40)
        size, count = struct.unpack_from("<HH", self.data, 58)
        # type, file offset, size, linked section, entries
        self.sections = [self._section(table + i * size) for i in range(count)]

    def _section(self, at: int) -> Tuple[int, int, int, int, int]:
        _, kind, _, _, offset, size, link, info = struct.unpack_from("<IIQQQQII", self.data, at)
        return kind, offset, size, link, info

    def _text(self, section: int, at: int) -> str:
        start = self.sections[section][1] + at
        return self.data[start:self.data.index(b"\0", start)].decode()

    def needed(self) -> Set[str]:
        """DT_NEEDED."""
        names = set()
        for kind, offset, size, link, _ in self.sections:
            for at in range(offset, offset + size, 16) if kind == SHT_DYNAMIC else ():
                tag, value = struct.unpack_from("<QQ", self.data, at)
                if tag == DT_NULL:
                    break
                if tag == DT_NEEDED:
                    names.add(self._text(link, value))
        return names

    def versions(self) -> Iterator[Tuple[str, str]]:
        """Library and symbol version of everything that is asked for."""
        for kind, offset, _, link, count in self.sections:
            at = offset
            for _ in range(count if kind == SHT_GNU_VERNEED else 0):
                _, aux_count, file, aux, following = struct.unpack_from("<HHIII", self.data, at)
                entry = at + aux
                for _ in range(aux_count):
                    _, _, _, name, next_aux = struct.unpack_from("<IHHII", self.data, entry)
                    yield self._text(link, file), self._text(link, name)
                    entry += next_aux
                at += following


def platform_tag(library: Path) -> str:
    elf = Elf(library)
    strange = elf.needed() - ALLOWED
    if strange or elf.machine not in MACHINES:
        sys.exit(f"build_wheel: {library} asks for {', '.join(sorted(strange)) or 'a machine that is not known here'}")
    newest = OLDEST
    for _, version in elf.versions():
        match = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(\.\d+)?", version)
        if match is None:
            sys.exit(f"build_wheel: {library} asks for {version}, which no manylinux tag stands for")
        newest = max(newest, (int(match[1]), int(match[2])))
    return f"manylinux_{newest[0]}_{newest[1]}_{MACHINES[elf.machine]}"


def build(library: Path, scratch: Path) -> Path:
    """A wheel of the package with the library beside the sources, as the backend makes it."""
    tree = scratch / "tree"
    shutil.copytree(PACKAGE, tree, ignore=shutil.ignore_patterns("__pycache__", "tests", "bench"))
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copyfile(ROOT / name, tree / name)
    shutil.copyfile(library, tree / "inferd" / "libinferd.so")
    made = subprocess.run([sys.executable, ROOT / "scripts" / "python_env.py", "wheel"], stdout=subprocess.PIPE, universal_newlines=True)
    if made.returncode != 0:
        sys.exit(made.returncode)
    # The backend's hook by itself: nothing is resolved, nothing is downloaded.
    hook = "import os, setuptools.build_meta as b; print(b.build_wheel(os.environ['OUT']))"
    environment = {**os.environ, "OUT": str(scratch), "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "1700000000")}
    built = subprocess.run([made.stdout.strip(), "-c", hook], cwd=tree, stdout=subprocess.PIPE, universal_newlines=True, env=environment)
    if built.returncode != 0:
        sys.exit("build_wheel: the backend failed, as it says above")
    return scratch / built.stdout.splitlines()[-1]


def retag(wheel: Path, platform: str, into: Path) -> Path:
    """The same wheel for this platform alone: tag in its name and metadata, RECORD to match."""
    name, version = wheel.name.split("-")[:2]
    out = into / f"{name}-{version}-py3-none-{platform}.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel) as source:
        files: Dict[str, bytes] = {n: source.read(n) for n in source.namelist() if not n.endswith("/")}
    metadata = re.sub(r"(?m)^Tag: .*$", f"Tag: py3-none-{platform}", files[f"{info}/WHEEL"].decode())
    files[f"{info}/WHEEL"] = re.sub(r"(?m)^Root-Is-Purelib: .*$", "Root-Is-Purelib: false", metadata).encode()
    record: List[str] = []
    for path, data in files.items():
        if not path.endswith("/RECORD"):
            digest = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(data)}")
    files[f"{info}/RECORD"] = ("\n".join([*record, f"{info}/RECORD,,"]) + "\n").encode()
    into.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as target:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, (2023, 11, 14, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if path.endswith(".so") else 0o644) << 16
            target.writestr(entry, data)
    part.replace(out)
    return out


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: build_wheel.py LIBRARY FOLDER")
    library, folder = Path(sys.argv[1]), Path(sys.argv[2])
    if not library.is_file():
        sys.exit(f"build_wheel: {library} is not built; run `make c`")
    if b"INFERD_FAILPOINTS" in library.read_bytes():
        sys.exit(f"build_wheel: {library} has failpoints, steps at which tests end a process; a wheel takes what `make c` builds")
    platform = platform_tag(library)
    with tempfile.TemporaryDirectory(prefix="inferd-wheel.") as scratch:
        wheel = build(library.resolve(), Path(scratch))
        for old in folder.glob("inferd-*.whl"):
            old.unlink()
        print(retag(wheel, platform, folder))


if __name__ == "__main__":
    main()
