#!/usr/bin/env python3
"""What the walking example starts and ends by itself: a daemon in a private folder, and other clients of it.

The daemon runs as whoever starts the example; it needs no root. Everything lies in one folder that is removed at the end.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, Optional

from inferd import admin
from inferd.errors import Error

READY_S = 60.0
STOP_S = 20.0

#: A client that does nothing but call, from another process.
OTHER_CLIENT = """
import numpy, sys, inferd
robot = inferd.Session(sys.argv[1])
zeros = {t.name: t.new() for t in robot.inputs.order}
print("attached", flush=True)
while True:
    try:
        robot(zeros)
    except inferd.Fallback:
        pass
"""


class Stage:
    """A daemon with one model, in a folder of its own."""

    def __init__(self, bin_dir: Path, model: str, policy: Path, manifest: str, config: str = "") -> None:
        # A short path, whatever TMPDIR says: a socket's address holds 107 bytes.
        self.dir = Path(tempfile.mkdtemp(prefix="inferd-walk.", dir="/tmp"))
        self.run = self.dir / "run"
        self.run.mkdir(mode=0o700)
        self.bin_dir, self.model = bin_dir, model
        folder = self.dir / "models" / model
        folder.mkdir(parents=True)
        shutil.copyfile(policy, folder / policy.name)
        (folder / "model.toml").write_text(f'file = "{policy.name}"\n{manifest}')
        (self.dir / "inferd.toml").write_text(f'[models.{model}]\npath = "{folder}"\nmax_run_ms = 500\n{config}')
        self.daemon: Optional["subprocess.Popen[bytes]"] = None
        self.others: List["subprocess.Popen[bytes]"] = []

    def start(self, wait: bool = True) -> None:
        with open(self.dir / "inferd.log", "ab") as log:
            self.daemon = subprocess.Popen(
                [self.bin_dir / "inferd", "--config", self.dir / "inferd.toml", "--runtime-dir", self.run, "--worker-dir", self.bin_dir,
                 "--state-dir", self.dir / "state"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + READY_S
        while wait and not self.ready():
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise RuntimeError("inferd is not ready; its log:\n" + self.log())
            time.sleep(0.01)

    def ready(self) -> bool:
        try:
            return bool(admin.status(runtime_dir=self.run)["state"] == "ready")
        except Error:
            return False

    def log(self) -> str:
        return "\n".join((self.dir / "inferd.log").read_text(errors="replace").splitlines()[-30:])

    def restart(self) -> None:
        """SIGTERM, and another one at once: the robot is not asked."""
        self.stop_daemon()
        self.start(wait=False)

    def add_client(self) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "INFERD_RUNTIME_DIR": str(self.run)}
        other = subprocess.Popen([sys.executable, "-c", OTHER_CLIENT, self.model], env=environment, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert other.stdout is not None
        if other.stdout.readline() != b"attached\n":
            raise RuntimeError("the other client could not attach")
        self.others.append(other)
        return other

    def stop_daemon(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            if self.daemon.wait(STOP_S) != 0:
                raise RuntimeError("inferd did not end with 0; its log:\n" + self.log())

    def close(self) -> None:
        for other in self.others:
            other.kill()
            other.wait()
        try:
            self.stop_daemon()
        finally:
            if self.daemon is not None and self.daemon.poll() is None:
                self.daemon.kill()
            shutil.rmtree(self.dir, ignore_errors=True)
