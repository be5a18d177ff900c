#!/usr/bin/env python3
"""The guides in docs/ are run as they stand: their commands in one shell, their programs in between, in the order of the page.

A block of `sh` is part of the shell's script, a block of `python` a program of its own. What a page promises that its reader
has (a clone, a daemon, a folder of one's own) is made first. The messages of the FAQ are produced, and looked for there.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "client-py" / "tests"))

import inferd  # noqa: E402
from served import Daemon, manifest  # noqa: E402

BIN = Path(os.environ["INFERD_BIN_DIR"])
TARGET = BIN.parent
TIME_S = 280


def blocks(page: str) -> List[Tuple[str, str]]:
    """Language and text of every fenced block."""
    text = (ROOT / "docs" / page).read_text()
    return [(language.partition(",")[0], body) for language, body in re.findall(r"(?ms)^```([\w,]+)\n(.*?)^```$", text)]


def environment(home: Path, **more: str) -> Dict[str, str]:
    """A reader's: a home of their own, the toolchain where it is."""
    user = os.path.expanduser("~")
    kept = {"CARGO_HOME": f"{user}/.cargo", "RUSTUP_HOME": f"{user}/.rustup", "PYENV_ROOT": f"{user}/.pyenv",
            "PIP_CACHE_DIR": f"{user}/.cache/pip"}
    return {**{k: os.environ.get(k, v) for k, v in kept.items()}, "PATH": os.environ["PATH"], "HOME": str(home),
            "STATE_DIRECTORY": str(home / "state"),
            "CARGO_TARGET_DIR": str(TARGET), "PYTHONDONTWRITEBYTECODE": "1", **more}


def script(page: str, python: str, take: Callable[[int, str, str], Optional[str]]) -> str:
    """The page as one shell script; `take` may replace a block."""
    lines = ["set -euo pipefail"]
    for i, (language, body) in enumerate(blocks(page)):
        replaced = take(i, language, body)
        if replaced is not None:
            lines.append(replaced)
        elif language == "sh":
            lines.append(body)
        elif language == "python":
            lines.append(f"{python} - <<'END_OF_PROGRAM'\n{body}END_OF_PROGRAM")
        else:
            raise AssertionError(f"{page}: nobody runs a block of {language}")
    return "\n".join(lines)


class Guides(unittest.TestCase):
    def setUp(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="inferd-guide.", dir="/tmp"))
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)

    def bash(self, text: str, cwd: Path, env: Dict[str, str]) -> str:
        """Runs it as a process group of its own, which ends with it: a daemon in the background too."""
        (self.home / "page.sh").write_text(text)
        with open(self.home / "out", "wb") as out:
            shell = subprocess.Popen(["bash", self.home / "page.sh"], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out,
                                     stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: Any = shell.wait(TIME_S)
        except subprocess.TimeoutExpired:
            code = f"running on after {TIME_S} s"
        finally:
            try:
                os.killpg(shell.pid, 9)
            except ProcessLookupError:
                pass
        said = (self.home / "out").read_text(errors="replace")
        self.assertEqual(code, 0, said)
        return said

    def test_the_quick_start_works_as_written_in_three_languages(self) -> None:
        if subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", self.home / "probe", "numpy"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
            print("SKIP guide_quick_start: pip reaches no package index here", file=sys.stderr)
            return
        seen: List[str] = []

        def take(_: int, language: str, body: str) -> Optional[str]:
            first = language not in seen
            seen.append(language)
            if language in ("c", "python") and first:
                (self.home / f"robot.{'py' if language == 'python' else 'c'}").write_text(body)
                return ""
            if language == "rust":
                (self.home / "robot.rs").write_text(body)
                library = max(TARGET.glob("release/deps/libinferd_client-*.rlib"), key=lambda p: p.stat().st_mtime)
                return (f"rustc --edition 2024 -L dependency={library.parent} --extern inferd_client={library} "
                        '-o "$HOME/robot-rust" "$HOME/robot.rs"')
            if "./robot-c" in body:
                return body + "./robot-rust\n"
            return None

        said = self.bash(script("quick-start.md", '"$HOME/robot/bin/python"', take), ROOT, environment(self.home))
        actions = re.findall(r"^generation 1: FR hip (-?[\d.]+)$", said, re.M)
        self.assertEqual(len(actions), 3, f"three programs print an action:\n{said}")
        self.assertEqual(len(set(actions)), 1, f"the same one:\n{said}")
        for words in ("go2 ", "gyro_x [rad/s * 0.25]", "generation 1 -> 2", "(1, 12)", "late False"):
            self.assertIn(words, said)
        self.assertEqual(len(seen), len(blocks("quick-start.md")))

    def client(self, daemon: Daemon) -> Dict[str, str]:
        return environment(self.home, INFERD_RUNTIME_DIR=str(daemon.run), INFERD_LIBRARY=os.environ["INFERD_LIBRARY"],
                           PYTHONPATH=str(ROOT / "client-py"), PATH=f"{BIN}:{os.environ['PATH']}")

    def test_bringing_a_policy_works_as_written(self) -> None:
        daemon = Daemon().start()
        try:
            said = self.bash(script("own-policy.md", sys.executable, lambda *_: None), self.home, self.client(daemon))
        finally:
            daemon.stop()
        self.assertIn("served as it was exported", said)
        self.assertIn('elements = ["name [unit]"]', said)

    def test_the_programs_of_the_real_time_guide_run(self) -> None:
        folder = subprocess.run([sys.executable, ROOT / "scripts" / "fetch_policy.py", TARGET / "policies" / "go2"],
                                stdout=subprocess.PIPE, universal_newlines=True)
        if folder.returncode != 0:
            print("SKIP guide_real_time: the policy could not be fetched", file=sys.stderr)
            return
        daemon = Daemon()
        daemon.config = f'[models.go2]\npath = "{folder.stdout.strip()}"\n'
        daemon.start()

        def take(_: int, language: str, body: str) -> Optional[str]:
            return body if language == "sh" else None

        try:
            text = script("real-time.md", sys.executable, take)
            said = self.bash(re.sub(r"(?m)^cat (/sys\S+) (/sys\S+)$", r"cat \1 \2 || true", text), self.home, self.client(daemon))
        finally:
            daemon.stop()
        self.assertIn("call [us]: p50", said)
        self.assertIn("missed:", said)

    def test_every_message_of_the_faq_is_a_real_one(self) -> None:
        said = self.messages()
        page = (ROOT / "docs" / "faq.md").read_text()
        promised = re.findall(r"(?m)^\*\*`(.+)`\*\*$", page)
        self.assertGreater(len(promised), 9)
        for message in promised:
            pattern = ".*".join(map(re.escape, message.split("...")))
            self.assertTrue(any(re.search(pattern, text, re.S) for text in said), f"nothing says {message!r} any more:\n" + "\n".join(said))

    def messages(self) -> List[str]:
        """What the situations of the page say today."""
        x = np.zeros((1, 45), np.float32)
        daemon = Daemon()
        daemon.model("m", manifest([("obs", "f32", (1, 45))], [("y", "f32", (1, 12))]))
        slow = "[options]\nsleep_us = 200000\nfail_at = 3\n"
        daemon.model("slow", manifest([("obs", "f32", (1, 45))], [("y", "f32", (1, 12))], more=slow))
        daemon.start()
        said: List[str] = []

        def note(call: Callable[[], Any]) -> None:
            try:
                call()
            except inferd.Error as e:
                said.append(f"{e.name}: {e}")

        try:
            note(lambda: inferd.Session("m", runtime_dir="/nonexistent"))
            note(lambda: inferd.Session("nobody", runtime_dir=daemon.run))
            with inferd.Session("m", runtime_dir=daemon.run) as robot, inferd.Session("slow", runtime_dir=daemon.run) as other:
                note(lambda: robot(obs=x.astype("f8")))
                note(lambda: robot(obs=x[0, :3]))
                request = robot.request()
                view = request["obs"]
                plain = np.asarray(view)
                note(request.submit)
                del plain
                held = [request.submit()]
                note(lambda: view[0])
                held += [robot.submit(obs=x) for _ in range(3)]
                note(robot.request)
                robot._lock.acquire()  # as another thread would hold it
                note(lambda: robot(obs=x))
                robot._lock.release()
                note(lambda: self.in_a_fork(robot, x, said))
                note(lambda: other(obs=x, timeout=0.01))
                note(lambda: [other(obs=x, timeout=5.0) for _ in range(3)])
                for ticket in held:
                    ticket.abandon()
                daemon.kill()
                note(lambda: robot(obs=x, timeout=0.1))
                note(lambda: robot(obs=x, timeout=0.1))
        finally:
            daemon.stop()
        return said

    @staticmethod
    def in_a_fork(robot: inferd.Session, x: Any, said: List[str]) -> None:
        read_end, write_end = os.pipe()
        if os.fork() == 0:
            try:
                robot(obs=x)
            except inferd.Error as e:
                os.write(write_end, str(e).encode())
            os._exit(0)
        os.close(write_end)
        os.wait()
        with os.fdopen(read_end) as pipe:
            said.append(pipe.read())


if __name__ == "__main__":
    unittest.main()
