"""A daemon for the tests of the Python client: one private folder, echo models, an orderly end.

INFERD_BIN_DIR says where the programs are built, INFERD_LIBRARY where libinferd.so is.
"""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from inferd import admin
from inferd.errors import Error

#: name, dtype, shape
Spec = Tuple[str, str, Tuple[int, ...]]


def manifest(inputs: List[Spec], outputs: List[Spec], more: str = "", **extra: str) -> str:
    text = f"input_order = {[n for n, _, _ in inputs]}\noutput_order = {[n for n, _, _ in outputs]}\n".replace("'", '"')
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        for name, dtype, shape in tensors:
            text += f'[{kind}.{name}]\ndtype = "{dtype}"\nshape = {list(shape)}\n{extra.get(name, "")}\n'
    return text + more


class Daemon:
    """inferd with models of its own. `model` before `start`."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="inferd-py.", dir="/tmp"))
        self.run = self.dir / "run"
        self.run.mkdir(mode=0o700)
        self.config = ""
        self.process: Optional["subprocess.Popen[bytes]"] = None

    def model(self, name: str, text: str, config: str = 'queue = "in_order"\nslots = 4\n', backend: str = "echo") -> Path:
        folder = self.dir / "models" / name
        folder.mkdir(parents=True)
        (folder / "model.toml").write_text(text)
        self.config += f'[models.{name}]\npath = "{folder}"\nbackend = "{backend}"\n{config}'
        return folder

    def start(self) -> "Daemon":
        (self.dir / "inferd.toml").write_text(self.config)
        with open(self.dir / "log", "ab") as log:
            self.process = subprocess.Popen(
                [os.path.join(os.environ["INFERD_BIN_DIR"], "inferd"), "--config", self.dir / "inferd.toml", "--runtime-dir", self.run,
                 "--state-dir", self.dir / "state"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 30
        while True:
            try:
                if admin.status(runtime_dir=self.run)["state"] == "ready":
                    return self
            except Error:
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError("inferd is not ready; its log:\n" + (self.dir / "log").read_text())
            time.sleep(0.005)

    def worker(self, model: str) -> int:
        return int(next(m for m in admin.models(runtime_dir=self.run) if m["model"] == model)["worker_pid"])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                code: Any = self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                code = "a kill: it did not stop"
            if code != 0:
                raise AssertionError(f"inferd ended with {code}; its log:\n" + (self.dir / "log").read_text())
        shutil.rmtree(self.dir, ignore_errors=True)


def environment(daemon: Daemon) -> Dict[str, str]:
    return {**os.environ, "INFERD_RUNTIME_DIR": str(daemon.run)}
