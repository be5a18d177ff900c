#!/usr/bin/env python3
"""A call in Python beside the same call in C, and a Go2 policy through inferd beside ONNX Runtime in this very process.

Run by `make bench-py`. Blocks of calls take turns, so that both sides see the same machine; the rows are medians over all calls, and
their differences and ratios. The bars: Python at most 5 us over C at the median; Go2 through inferd no slower than ONNX Runtime here
(the same library on both sides is the fair pair; tract, the default, stands beside it). It wants `make ort`.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, List

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR")
              or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "inferd/target"))
BLOCKS, CALLS = 10, 3000
OBS, ACT = (1, 45), (1, 12)
SPIN_US = 2000


def again_in_environment() -> None:
    """This script once more, where NumPy and ONNX Runtime are."""
    made = subprocess.run([sys.executable, ROOT / "scripts" / "python_env.py", "tests", "onnx"], stdout=subprocess.PIPE, text=True)
    if made.returncode != 0:
        print("SKIP bench-py: no environment with NumPy and ONNX Runtime could be made")
        sys.exit(0)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'client-py'}:{ROOT / 'client-py/tests'}", "INFERD_BIN_DIR": str(TARGET / "release"),
                   "INFERD_LIBRARY": str(TARGET / "c/libinferd.so"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.execve(made.stdout.strip(), [made.stdout.strip(), __file__, "--here"], environment)


def timed(call: Callable[[], Any], calls: int) -> List[int]:
    took = []
    clock = time.perf_counter_ns
    for _ in range(calls):
        began = clock()
        call()
        took.append(clock() - began)
    return took


def main() -> None:
    if "--here" not in sys.argv:
        again_in_environment()
    import numpy as np
    import onnxruntime

    import inferd
    from served import Daemon, manifest

    policy = TARGET / "policies/go2/policy.onnx"
    daemon = Daemon()
    config = f'queue = "in_order"\nslots = 4\nspin_us = {SPIN_US}\n'
    daemon.model("echo", manifest([("obs", "f32", OBS)], [("actions", "f32", ACT)]), config)
    for name, backend in (("go2", "tract"), ("go2_ort", "ort")):
        daemon.config += f'[models.{name}]\npath = "{policy}"\nbackend = "{backend}"\noptional = true\n{config}'
    daemon.start()
    scratch = tempfile.TemporaryDirectory(prefix="inferd-bench.")
    c_call = Path(scratch.name) / "c_call"
    subprocess.run([os.environ.get("CC", "cc"), "-O2", f"-I{ROOT / 'include'}", "-o", c_call, ROOT / "client-py/bench/c_call.c",
                    TARGET / "c/libinferd.a"], check=True)
    environment = {**os.environ, "INFERD_RUNTIME_DIR": str(daemon.run)}
    rows: dict = {name: [] for name in ("c", "python", "in_place", "go2", "go2_ort", "onnxruntime")}
    x = np.zeros(OBS, np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    local = onnxruntime.InferenceSession(str(policy), options, providers=["CPUExecutionProvider"])
    try:
        with inferd.Session("echo", runtime_dir=daemon.run) as echo, inferd.Session("go2", runtime_dir=daemon.run) as go2, \
                inferd.Session("go2_ort", runtime_dir=daemon.run) as go2_ort:

            def in_place() -> None:
                request = echo.request()
                request["obs"][:] = x
                reply = request.submit().wait()
                reply.outputs["actions"].copy()
                reply.release()

            for block in range(BLOCKS + 1):
                c = subprocess.run([c_call, "echo", str(CALLS)], env=environment, stdout=subprocess.PIPE, text=True, check=True)
                mine = {"c": [int(n) for n in c.stdout.split()], "python": timed(lambda: echo(obs=x), CALLS),
                        "in_place": timed(in_place, CALLS), "go2": timed(lambda: go2(obs=x), CALLS),
                        "go2_ort": timed(lambda: go2_ort(obs=x), CALLS),
                        "onnxruntime": timed(lambda: local.run(None, {"obs": x}), CALLS)}
                if block > 0:  # the first one warms up
                    for name, took in mine.items():
                        rows[name] += took
    finally:
        daemon.stop()
        scratch.cleanup()
    p50 = {name: float(np.median(took)) / 1e3 for name, took in rows.items()}
    p99 = {name: float(np.percentile(took, 99)) / 1e3 for name, took in rows.items()}
    texts = {"c": "echo model, C: inferd_infer()", "python": "echo model, Python: robot(obs=x)", "in_place": "echo model, Python: written in place",
             "go2": "Go2, Python through inferd (tract)", "go2_ort": "Go2, Python through inferd (ort)",
             "onnxruntime": "Go2, ONNX Runtime in this process"}
    print(f"{'us':40} {'p50':>8} {'p99':>8}      {BLOCKS} x {CALLS} calls each, in turns; f32{list(OBS)} -> f32{list(ACT)}")
    for name, text in texts.items():
        print(f"{text:40} {p50[name]:8.2f} {p99[name]:8.2f}")
    over = p50["python"] - p50["c"]
    print(f"Python over C: {over:+.2f} us at p50 (bar: +5): {'met' if over <= 5 else 'MISSED'}")
    for name, backend in (("go2", "tract"), ("go2_ort", "ort")):
        ratio = p50[name] / p50["onnxruntime"]
        print(f"Go2 through inferd ({backend}) / ONNX Runtime: {ratio:.2f} at p50 (bar: 1): {'met' if ratio <= 1 else 'MISSED'}")


if __name__ == "__main__":
    main()
