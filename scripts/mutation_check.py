#!/usr/bin/env python3
"""Shows that the tests notice small faults: applies each of tests/mutations.py to a copy of the tree, and its test must fail.

usage: mutation_check.py [--list | --all | --rotate | NAME...]
--list looks whether every mutation still applies and every test is there, and builds nothing. --rotate takes one of each kind
(ipc, unit or C; loom; scenario), chosen by the commit. The copy lies in CARGO_TARGET_DIR/mutations with a target folder of its own; scenarios run the
ordinary test binaries against mutated programs (scripts/build_failpoints.sh: echo alone). Each test must
pass without the fault first, save with --rotate: the suites of the same run show that.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Tuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from mutations import MUTATIONS, Mutation  # noqa: E402

CARGO = os.environ.get("CARGO", "cargo")
TARGET = Path(os.environ.get("CARGO_TARGET_DIR")
              or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "inferd/target"))
PLACE = TARGET / "mutations"
TREE = PLACE / "tree"
#: A test that a lost wake hangs has failed, too.
TEST_S = 120
BUILD_S = 900


def test_file(mutation: Mutation) -> Path:
    kind, _, name = mutation.suite.partition(":")
    if kind == "unit":
        return ROOT / mutation.file
    if kind == "loom":
        return ROOT / "ipc/tests/loom.rs"
    if kind == "c":
        return ROOT / f"client-c/tests/{name}.c"
    return ROOT / ("ipc/tests" if kind == "ipc" else "tests/tests") / f"{name}.rs"


def faults_of_the_list() -> List[str]:
    """What does not apply any more, or names a test that is not there."""
    faults = []
    for m in MUTATIONS:
        count = (ROOT / m.file).read_text().count(m.search) if (ROOT / m.file).exists() else 0
        if count != 1:
            faults.append(f"{m.name}: its text stands {count} times in {m.file}, not once; bring tests/mutations.py up to date")
        test = m.test.split("::")[0]
        if not test_file(m).exists() or not re.search(rf"\b(?:fn|void) {test}\b", test_file(m).read_text()):
            faults.append(f"{m.name}: no test {test} in {test_file(m).relative_to(ROOT)}")
    if len({m.name for m in MUTATIONS}) != len(MUTATIONS):
        faults.append("two mutations have one name")
    return faults


def rotating() -> List[Mutation]:
    """One of each kind, chosen by the commit; by the day where there is none."""
    ran = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    turn = int(ran.stdout[:8], 16) if ran.returncode == 0 else int(time.time() // 86400)
    kinds = [("ipc", "unit", "c"), ("loom",), ("scenario",)]
    classes = [[m for m in MUTATIONS if m.suite.split(":")[0] in kind] for kind in kinds]
    return [of[turn % len(of)] for of in classes]


def copy_tree() -> None:
    """Brings the copy up to date; files that are the same keep their times, so that little is built again."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            stdout=subprocess.PIPE, check=True, text=True).stdout.split("\0")
    wanted = {name for name in listed if name and (ROOT / name).is_file()}
    for name in wanted:
        source, copy = ROOT / name, TREE / name
        if not copy.is_file() or source.read_bytes() != copy.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    for copy in [path for path in TREE.rglob("*") if path.is_file() and str(path.relative_to(TREE)) not in wanted]:
        copy.unlink()
    # What others have built of the registry's crates need not be built again.
    built, mine = TARGET / "failpoints", PLACE / "target/failpoints"
    if built.is_dir() and not mine.exists():
        mine.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(built, mine, symlinks=True, copy_function=shutil.copy2)


def environment(mutation: Mutation) -> Dict[str, str]:
    own = PLACE / ("target-loom" if mutation.suite == "loom" else "target")
    env = {**os.environ, "CARGO_TARGET_DIR": str(own), "CARGO_INCREMENTAL": "1", "INFERD_CAMPAIGN": ""}
    if mutation.suite == "loom":
        env["RUSTFLAGS"] = (os.environ.get("RUSTFLAGS", "") + " --cfg loom").strip()
    return env


def build_and_test(mutation: Mutation) -> Tuple[List[str], List[str], Path]:
    """The command that builds, the one that tests, and where they run."""
    kind, _, name = mutation.suite.partition(":")
    exact = [mutation.test] if kind == "unit" else ["--exact", mutation.test]
    if kind == "scenario":
        return ["sh", "scripts/build_failpoints.sh"], [scenario_binary(name), *exact], ROOT / "tests"
    if kind == "c":
        client, built = TREE / "client-c", str(PLACE / f"target/{name}")
        sources = [client / f"tests/{name}.c", client / "tests/fake.c", *sorted(client.glob("*.c"))]
        flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", f"-I{TREE}/include", f"-I{client}"]
        return [os.environ.get("CC", "cc"), *flags, "-o", built, *map(str, sources), "-pthread"], [built], TREE
    cargo = [CARGO, "test", "--profile", "failpoints", "--locked", "--quiet"]
    if kind == "loom":
        cargo += ["-p", "inferd-ipc", "--test", "loom"]
    elif kind == "ipc":
        cargo += ["-p", "inferd-ipc", "--features", "control", "--test", name]
    else:
        cargo += ["-p", name, "--no-default-features", "--features", "inferd-ipc/control" if name != "inferd-ipc" else "control", "--lib"]
    return [*cargo, "--no-run"], [*cargo, "--", *exact], TREE


BINARIES: Dict[str, str] = {}


def scenario_binary(name: str) -> str:
    """The ordinary test binary of the tree that is not mutated."""
    if name not in BINARIES:
        ran = subprocess.run([CARGO, "test", "--release", "--locked", "--workspace", "--test", name, "--no-run", "--message-format=json"],
                             cwd=ROOT, env={**os.environ, "CARGO_TARGET_DIR": str(TARGET)}, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
        found = [json.loads(line).get("executable") for line in ran.stdout.splitlines() if line.startswith("{")]
        found = [path for path in found if path and Path(path).name.startswith(f"{name}-")]
        if ran.returncode != 0 or not found:
            sys.exit(f"mutation_check: the scenarios {name} cannot be built:\n{ran.stderr[-2000:]}")
        BINARIES[name] = found[-1]
    return BINARIES[name]


def run(mutation: Mutation, log: List[str]) -> str:
    """`passed`, `failed` (the named test), `hung` or `broken` (anything else), for the copy as it stands."""
    build, test, where = build_and_test(mutation)
    env = environment(mutation)
    if mutation.suite.startswith("scenario"):
        programs = PLACE / "target/failpoints"
        env_test = {**os.environ, "INFERD_BIN_DIR": str(programs), "INFERD_C_DRIVER": str(programs / "c/driver_c"),
                    "INFERD_CAMPAIGN": "", "CI": "", "TORCH": "0", "ORT": "0"}
    else:
        env_test = env
    try:
        built = subprocess.run(build, cwd=TREE, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_S)
    except subprocess.TimeoutExpired:
        return "broken"
    log.append(built.stdout)
    if built.returncode != 0:
        return "broken"
    segments = set(Path("/dev/shm").glob("inferd.*"))
    # A session of its own: what a hung test has started goes with it.
    process = subprocess.Popen(test, cwd=where, env=env_test, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    try:
        said, _ = process.communicate(timeout=TEST_S)
    except subprocess.TimeoutExpired:
        end_group(process)
        log.append(process.communicate()[0])
        for left in set(Path("/dev/shm").glob("inferd.*")) - segments:
            left.unlink()
        return "hung"
    finally:
        end_group(process)
    log.append(said)
    if mutation.suite.startswith("c:"):
        if f": {mutation.test}: " in said:
            return "failed"
        return "passed" if process.returncode == 0 and f"ok {mutation.test}\n" in said else "broken"
    ran = re.search(r"(?m)^test result: \w+\. (\d+) passed; (\d+) failed", said)
    if ran is None or "SKIP" in said:
        # A sanity check of the model or of an allocator may end the process instead of the test.
        return "failed" if process.returncode < 0 or "panicked at" in said else "broken"
    if int(ran[1]) + int(ran[2]) == 0:
        return "broken"
    return "passed" if process.returncode == 0 else "failed"


def end_group(process: "subprocess.Popen[str]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def killed(mutation: Mutation, sound: Dict[Tuple[str, str], str], trusted: bool) -> Tuple[bool, str]:
    key, log = (mutation.suite, mutation.test), []
    if key not in sound:
        sound[key] = "passed" if trusted else run(mutation, log)
    if sound[key] != "passed":
        return False, f"its test has {sound[key]} without the fault\n" + "\n".join(log)[-3000:]
    file = TREE / mutation.file
    text = file.read_text()
    if text.count(mutation.search) != 1:
        return False, "it does not apply"
    file.write_text(text.replace(mutation.search, mutation.replace))
    try:
        verdict = run(mutation, log)
    finally:
        # With a new time: what was built of the fault must be built again.
        file.write_text(text)
    if verdict in ("failed", "hung"):
        return True, f"{mutation.test} {verdict}"
    what = "SURVIVED: no test noticed it" if verdict == "passed" else "the faulty tree could not be built or tested"
    return False, what + "\n" + "\n".join(log)[-3000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    for flag in ("--list", "--all", "--rotate"):
        choice.add_argument(flag, action="store_true")
    parser.add_argument("names", nargs="*", help="mutations whose name contains one of these")
    args = parser.parse_args()
    faults = faults_of_the_list()
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"mutation_check: {len(MUTATIONS)} mutations, {len(faults)} of them out of date", flush=True)
    if args.list or faults:
        return 1 if faults else 0
    chosen = MUTATIONS if args.all else [m for m in MUTATIONS if any(name in m.name for name in args.names)]
    if args.rotate:
        chosen = rotating()
    copy_tree()
    survivors, sound = 0, {}
    # Whoever ends this program ends the test that it runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for m in chosen:
        start = time.monotonic()
        dead, what = killed(m, sound, args.rotate)
        survivors += not dead
        print(f"{'killed' if dead else 'ALIVE '} {m.name} ({m.file}): {what} [{time.monotonic() - start:.0f} s]", flush=True)
    print(f"mutations: {len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
