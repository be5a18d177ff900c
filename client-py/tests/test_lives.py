"""Daemons and workers die under a session, models are reloaded, operators command: what Python sees of it."""
from __future__ import annotations

import asyncio
import os
import re
import signal
import time
import unittest
from pathlib import Path

import numpy as np

import inferd
from inferd import admin
from served import Daemon, manifest

X, Y = ("x", "f32", (1, 8)), ("y", "f32", (1, 4))
PAGE = Path(__file__).resolve().parents[2] / "docs" / "control.md"


class Lives(unittest.TestCase):
    def setUp(self) -> None:
        self.daemon = Daemon()
        self.folder = self.daemon.model("m", manifest([X], [Y]))
        self.daemon.model("slow", manifest([X], [Y], more="[options]\nsleep_us = 300000\n"))
        self.daemon.start()
        self.run = self.daemon.run

    def tearDown(self) -> None:
        self.daemon.stop()

    x = np.arange(8, dtype="f4").reshape(1, 8)

    def test_a_session_survives_its_daemon_and_tells_what_is_unknown(self) -> None:
        with inferd.Session("m", runtime_dir=self.run) as robot, inferd.Session("slow", runtime_dir=self.run) as slow:
            robot(x=self.x)
            ticket = slow.submit(x=self.x)
            stale = robot.request()["x"]
            self.daemon.kill()
            with self.assertRaises(inferd.DaemonLost):
                robot(x=self.x, timeout=0.05)
            self.assertEqual(ticket.wait().status, "daemon_lost")
            with self.assertRaises(inferd.Released):
                stale[0]
            with self.assertRaises(inferd.Fallback):
                asyncio.run(robot.infer(x=self.x, timeout=0.05))
            self.daemon.start()
            np.testing.assert_array_equal(robot(x=self.x, timeout=5.0), [[0, 1, 2, 3]])
            self.assertEqual(robot.info.epoch, 1)
            slow.reattach(timeout=5.0)
            self.assertEqual(slow.submit(x=self.x).epoch, 1)

    def test_coroutines_are_told_when_the_daemon_dies(self) -> None:
        async def lose(robot: inferd.Session) -> None:
            waiting = [asyncio.ensure_future(robot.infer(x=self.x, timeout=10.0)) for _ in range(2)]
            await asyncio.sleep(0.05)
            self.daemon.kill()
            began = time.monotonic()
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            self.assertEqual([type(e) for e in ends], [inferd.DaemonLost] * 2)
            self.assertLess(time.monotonic() - began, 5.0)

        with inferd.Session("slow", runtime_dir=self.run) as robot:
            asyncio.run(lose(robot))

    def test_without_reattach_the_caller_decides(self) -> None:
        with inferd.Session("m", runtime_dir=self.run, reattach=False) as robot:
            robot(x=self.x)
            self.daemon.kill()
            self.daemon.start()
            for _ in range(2):
                with self.assertRaises(inferd.DaemonLost):
                    robot(x=self.x)
                time.sleep(0.02)
            robot.reattach(timeout=5.0)
            robot(x=self.x)

    def test_a_lost_worker_costs_one_request_and_says_so(self) -> None:
        with inferd.Session("slow", runtime_dir=self.run) as robot:
            worker = self.daemon.worker("slow")
            ticket = robot.submit(x=self.x)
            time.sleep(0.15)
            os.kill(worker, signal.SIGKILL)
            reply = ticket.wait(timeout=10.0)
            self.assertEqual(reply.status, "worker_lost")
            with self.assertRaisesRegex(inferd.WorkerLost, "slow"):
                reply.take()
            end = time.monotonic() + 10
            while True:
                try:
                    robot(x=self.x)
                    break
                except inferd.Unavailable:
                    self.assertLess(time.monotonic(), end)
                    time.sleep(0.01)

    def test_a_reload_under_a_session_changes_the_generation_between_two_calls(self) -> None:
        with inferd.Session("m", runtime_dir=self.run) as robot:
            robot(x=self.x)
            stages = []
            answer = admin.reload("m", runtime_dir=self.run, progress=lambda p: stages.append(p["stage"]))
            self.assertEqual((answer["from_generation"], answer["to_generation"]), (1, 2))
            self.assertIn("warming", stages)
            robot(x=self.x)
            self.assertEqual((robot.last.generation, robot.last.step), (2, 2))

    def test_the_control_socket_answers_and_refuses_in_python(self) -> None:
        with admin.Control(self.run) as control:
            self.assertEqual(control.status()["state"], "ready")
            self.assertEqual([m["model"] for m in control.models()], ["m", "slow"])
            self.assertGreater(control.limits()["slots_max"], 1)
            with inferd.Session("m", runtime_dir=self.run) as robot:
                robot(x=self.x)
                session = control.sessions()[0]
                self.assertEqual((session["model"], session["pid"]), ("m", os.getpid()))
                end = time.monotonic() + 5  # a worker counts after it has answered
                while control.stats("m")["m"]["outcomes"].get("ok") != 1:
                    self.assertLess(time.monotonic(), end)
                control.disconnect(session["session"])
                time.sleep(0.05)
                with self.assertRaises(inferd.DaemonLost):
                    robot(x=self.x, timeout=0.0)
            control.load("more", self.folder, backend="echo")
            self.assertEqual(control.validate(self.folder, backend="echo")["signature"]["inputs"][0]["name"], "x")
            control.reload("more")
            self.assertTrue(control.reload("more", shadow_steps=0, dry_run=True)["verdict"]["accepted"])
            control.rollback("more")
            self.assertEqual([e["cause"] for e in control.history("more")][0], "rollback")
            recorded = control.dump("m")
            self.assertGreaterEqual(os.fstat(recorded["descriptor"]).st_size, recorded["region_bytes"])
            os.close(recorded["descriptor"])
            control.unload("more")
            control.log("debug")
            self.assertEqual(control.version()["version"], control.status()["version"])
            for call, kind in ((lambda: control.reload("nobody"), inferd.UnknownModel), (lambda: control.call("fly"), inferd.CallerError),
                               (lambda: control.call("reload"), inferd.CallerError),
                               (lambda: control.reload("m", "/nonexistent"), admin.ModelRefused)):
                with self.assertRaises(kind) as raised:
                    call()
                self.assertGreater(len(str(raised.exception)), 10)
            control.drain()
        self.daemon.process.wait(10)
        with self.assertRaises(inferd.NoDaemon):
            admin.status(runtime_dir=self.run)

    def test_every_command_of_the_control_page_is_a_function(self) -> None:
        commands = re.findall(r"(?m)^\| `(\w+)` \|", PAGE.read_text())
        self.assertGreater(len(commands), 13)
        for command in commands:
            self.assertTrue(callable(getattr(admin, command, None)), f"inferd.admin has no {command}()")
            self.assertTrue(callable(getattr(admin.Control, command, None)))
            self.assertIn(command, admin.__all__)


if __name__ == "__main__":
    unittest.main()
