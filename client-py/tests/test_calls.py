"""The calls of a control loop, what they return, and the sentence that every misuse gets."""
from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import threading
import time
import unittest

import numpy as np

import inferd
from served import Daemon, environment, manifest

X, Y = ("x", "f32", (1, 8)), ("y", "f32", (1, 4))
COUNTER = dict(inputs=[X, ("h", "f32", (1, 4))], outputs=[Y, ("peek", "f32", (1, 4)), ("h_out", "f32", (1, 4))],
               more='[[state]]\ninput = "h"\noutput = "h_out"\n[options]\nshow_state = "peek"\n')


class Calls(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        daemon = cls.daemon = Daemon()
        units = 'elements = ["vx [m/s]", "b", "c [rad]", "d"]\n'
        daemon.model("m", manifest([X], [Y], y=units))
        daemon.model("two", manifest([X, ("n", "i32", ())], [Y, ("n_out", "i32", ())]))
        daemon.model("counter", manifest(**COUNTER))
        daemon.model("slow", manifest([X], [Y], more="[options]\nsleep_us = 300000\n"))
        daemon.model("latest", manifest([X], [Y], more="[options]\nsleep_us = 200000\n"), 'queue = "latest"\nslots = 4\n')
        daemon.model("halves", manifest([("x", "bf16", (4,))], [("y", "bf16", (4,))]))
        daemon.start()
        os.environ["INFERD_RUNTIME_DIR"] = str(daemon.run)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.daemon.stop()

    x = np.arange(8, dtype="f4").reshape(1, 8)

    def test_a_call_returns_a_copy_and_last_says_how_it_went(self) -> None:
        with inferd.Session("m") as robot:
            first = robot(x=self.x)
            second = robot(x=self.x + 1, observation_id=7)
            np.testing.assert_array_equal(first, [[0, 1, 2, 3]])
            np.testing.assert_array_equal(second, [[1, 2, 3, 4]])
            self.assertEqual((first.shape, first.dtype), ((1, 4), np.float32))
            last = robot.last
            self.assertEqual((last.status, last.generation, last.observation_id, last.late), ("ok", 1, 7, False))
            self.assertEqual(last.step, 2)
            self.assertTrue(0 < last.age < last.latency < 1)
            self.assertTrue(last.t_submit_ns <= last.t_start_ns <= last.t_done_ns <= time.monotonic_ns())

    def test_the_signature_has_names_dtypes_shapes_and_units(self) -> None:
        with inferd.Session("m") as robot:
            y = robot.outputs["y"]
            self.assertEqual((list(robot.inputs), y.shape, y.dtype, y.dtype_name), (["x"], (1, 4), np.float32, "f32"))
            self.assertEqual((y.names, y.units), (["vx", "b", "c", "d"], ["m/s", "", "rad", ""]))
            self.assertEqual(y.new().shape, (1, 4))
            self.assertFalse(robot.stateful)
            self.assertEqual((robot.info.slots, robot.info.queue, robot.info.state), (4, "in_order", "serving"))
            with self.assertRaisesRegex(inferd.Misuse, "'z'.*x: f32"):
                robot.inputs["z"]

    def test_inputs_go_by_name_in_a_dict_or_alone(self) -> None:
        with inferd.Session("m") as robot, inferd.Session("two") as two:
            for way in (robot(self.x), robot({"x": self.x}), robot(x=self.x), robot(x=self.x[0]), robot(x=list(range(8)))):
                np.testing.assert_array_equal(way, [[0, 1, 2, 3]])
            out = two(x=self.x, n=5)
            self.assertEqual(set(out), {"y", "n_out"})
            self.assertEqual((out["n_out"].shape, int(out["n_out"])), ((), 5))
            np.testing.assert_array_equal(two({"n": np.int32(3), "x": self.x})["y"], [[0, 1, 2, 3]])

    def test_misuse_gets_a_sentence_with_the_remedy_and_nothing_is_published(self) -> None:
        with inferd.Session("m") as robot, inferd.Session("two") as two:
            for value, words in ((self.x.astype("f8"), r"float64.*astype\('float32'\)"), (self.x[:, :3], r"\(1, 3\).*\(1, 8\)"),
                                 (self.x.T, r"\(8, 1\)"), ("text", "float32"), (None, "NoneType"), ([["a"]], "list"),
                                 (object(), "object")):
                with self.assertRaisesRegex(inferd.Misuse, words):
                    robot(x=value)
            for call, words in ((lambda: robot(), "takes x: f32"), (lambda: robot(z=self.x), "given inputs z"),
                                (lambda: robot(self.x, self.x), "one dict"), (lambda: two(self.x), "2 inputs"),
                                (lambda: two(x=self.x), "n: i32"), (lambda: robot(x=self.x, timeout=-1), "negative"),
                                (lambda: robot(x=self.x, deadline="soon"), "seconds"),
                                (lambda: robot(x=self.x, timeout=math.nan), "seconds"),
                                (lambda: robot.submit(z=self.x), "given inputs z")):
                with self.assertRaisesRegex(inferd.Misuse, words):
                    call()
            self.assertIsInstance(self._raised(lambda: robot(x=self.x.astype("f8"))), TypeError)
            robot(x=self.x)
            self.assertEqual(robot.last.step, 1, "a refused call reached the model")
            self.assertEqual(robot.last.request, 0)
        for wish, words in ((dict(queue="newest"), "newest"), (dict(slots=-1), "slots"), (dict(slots=65), "65")):
            with self.assertRaisesRegex(inferd.Misuse, words):
                inferd.Session("m", **wish)  # type: ignore[arg-type]
        with self.assertRaisesRegex(inferd.Misuse, "closed"):
            robot(x=self.x)
        with self.assertRaisesRegex(inferd.Misuse, "model name"):
            inferd.Session("no such/name")

    @staticmethod
    def _raised(call) -> BaseException:
        try:
            call()
        except BaseException as e:
            return e
        raise AssertionError("nothing was raised")

    def test_an_unknown_model_and_an_absent_daemon_are_the_operators(self) -> None:
        with self.assertRaisesRegex(inferd.UnknownModel, "counter.*latest"):
            inferd.Session("nobody")
        with self.assertRaisesRegex(inferd.NoDaemon, "/nonexistent/here"):
            inferd.Session("m", runtime_dir="/nonexistent/here")
        self.assertTrue(issubclass(inferd.NoDaemon, inferd.OperatorError) and issubclass(inferd.NoDaemon, ConnectionError))

    def test_a_request_in_place_and_its_reply(self) -> None:
        with inferd.Session("m") as robot:
            request = robot.request()
            request["x"][:] = self.x
            reply = request.submit(observation_id=7).wait(timeout=1.0)
            self.assertEqual((reply.status, reply.ok, reply.generation, reply.late, reply.observation_id), ("ok", True, 1, False, 7))
            self.assertGreater(reply.age, 0)
            np.testing.assert_array_equal(reply.outputs["y"], [[0, 1, 2, 3]])
            np.testing.assert_array_equal(reply.take(), [[0, 1, 2, 3]])
            with robot.submit(x=self.x).wait() as reply:
                self.assertEqual(list(reply.outputs), ["y"])
            self.assertEqual(robot.info.in_flight, 0)

    def test_the_deadline_and_the_timeout_are_the_callers(self) -> None:
        with inferd.Session("slow") as robot:
            began = time.monotonic()
            with self.assertRaisesRegex(inferd.Timeout, "timeout"):
                robot(x=self.x, deadline=0.15)
            self.assertLess(time.monotonic() - began, 3.0)
            time.sleep(0.4)
            robot(x=self.x, deadline=0.15, timeout=10.0)
            self.assertTrue(robot.last.late)
            first = robot.submit(x=self.x)
            with self.assertRaisesRegex(inferd.Expired, "slow.*expired"):
                robot(x=self.x, deadline=0.001, timeout=10.0)
            first.abandon()
            reply = robot.submit(x=self.x, deadline=1e-9).wait()
            self.assertEqual(reply.status, "expired")
            with self.assertRaises(inferd.Fallback) as raised:
                reply.outputs
            self.assertIs(raised.exception.reply, reply)
            # A wait in slices, for Ctrl-C, keeps its time and its outcome.
            np.testing.assert_array_equal(robot(x=self.x, timeout=30.0), [[0, 1, 2, 3]])
            self.assertEqual(robot.submit(x=self.x).wait(timeout=math.inf).status, "ok")

    def test_in_order_refuses_when_all_slots_are_in_flight_and_latest_supersedes(self) -> None:
        with inferd.Session("slow") as robot:
            tickets = [robot.submit(x=self.x, observation_id=i) for i in range(4)]
            with self.assertRaises(inferd.Again):
                robot.request()
            self.assertIsNone(tickets[3].poll())
            self.assertEqual([t.wait().observation_id for t in tickets], [0, 1, 2, 3])
            with self.assertRaises(inferd.TicketUsed):
                tickets[0].wait()
        with inferd.Session("latest") as robot:
            tickets = [robot.submit(x=self.x) for _ in range(3)]
            first, second, newest = (t.wait() for t in tickets)
            self.assertEqual(second.status, "superseded")
            # Whether the first was taken before the third came is the scheduler's affair.
            self.assertEqual((newest.status, newest.skipped), ("ok", 2 if first.status == "superseded" else 1))

    def test_a_reply_that_nobody_refers_to_gives_its_slot_back(self) -> None:
        with inferd.Session("m", slots=2) as robot:
            for _ in range(50):
                robot.submit(x=self.x).wait()  # dropped
            held = [robot.submit(x=self.x).wait() for _ in range(2)]
            with self.assertRaises(inferd.Again):
                robot.request()
            view = held[0].outputs["y"]
            del held[:]
            with self.assertRaises(inferd.Again):  # the view keeps the first one's slot, and credit goes by order
                robot.submit(x=self.x), robot.submit(x=self.x)
            self.assertEqual(float(view[0, 3]), 3.0)
            del view
            robot(x=self.x)

    def test_state_counts_and_resets(self) -> None:
        with inferd.Session("counter") as robot:
            self.assertTrue(robot.stateful)
            self.assertEqual(list(robot.inputs), ["x"])
            shown = [float(robot(x=self.x)["peek"][0, 0]) for _ in range(3)]
            self.assertEqual(shown, [0, 1, 2])
            self.assertEqual(float(robot(x=self.x, reset=True)["peek"][0, 0]), 0)
            self.assertTrue(robot.last.state_reset)
            robot.reset()
            self.assertEqual(float(robot(x=self.x)["peek"][0, 0]), 0)
            self.assertEqual(robot.request().submit(reset=True).wait().state_reset, True)

    def test_asyncio_waits_through_the_descriptor_and_many_at_once(self) -> None:
        async def many(robot: inferd.Session) -> None:
            beats = 0

            async def beat() -> None:
                nonlocal beats
                while True:
                    beats += 1
                    await asyncio.sleep(0.002)

            heart = asyncio.ensure_future(beat())
            actions = await asyncio.gather(*(robot.infer(x=self.x + i, timeout=10.0) for i in range(4)))
            for i, action in enumerate(actions):
                np.testing.assert_array_equal(action, [[i, i + 1, i + 2, i + 3]])
            self.assertGreater(beats, 10, "the loop stood still")
            with self.assertRaises(inferd.Timeout):
                await robot.infer(x=self.x, timeout=0.002)
            ticket = robot.submit(x=self.x)
            self.assertEqual((await ticket).status, "ok")
            task = asyncio.ensure_future(robot.infer(x=self.x))
            await asyncio.sleep(0.001)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            heart.cancel()

        with inferd.Session("slow") as robot:
            for _ in range(2):  # one session in two loops, one after the other
                asyncio.run(many(robot))
            with self.assertRaises(inferd.Misuse):
                asyncio.run(robot.infer(x=self.x[0, :3]))

    def test_the_gil_is_released_while_waiting(self) -> None:
        counted = []
        stop = threading.Event()

        def count() -> None:
            n = 0
            while not stop.is_set():
                n += 1
            counted.append(n)

        with inferd.Session("slow", spin_us=100000) as robot:
            thread = threading.Thread(target=count)
            thread.start()
            robot(x=self.x)
            before = time.monotonic()
            while time.monotonic() - before < 0.2:
                robot(x=self.x)
            stop.set()
            thread.join()
        # Held, the GIL would have let the thread in once per 300 ms call: some tens of turns of 5 ms at most.
        self.assertGreater(counted[0], 1000)

    def test_a_second_thread_gets_a_sentence(self) -> None:
        with inferd.Session("slow") as robot:
            said = []

            def intrude() -> None:
                time.sleep(0.1)
                said.append(self._raised(lambda: robot(x=self.x)))

            thread = threading.Thread(target=intrude)
            thread.start()
            robot(x=self.x)
            thread.join()
            self.assertIsInstance(said[0], inferd.Misuse)
            self.assertIn("one thread at a time", str(said[0]))

    def test_bf16_is_ml_dtypes_where_that_is_installed_and_raw_bits_else(self) -> None:
        bits = np.array([0x3F80, 0x4000, 0xBF80, 0], "u2")  # 1, 2, -1, 0
        with inferd.Session("halves") as robot:
            out = robot(x=bits)
            np.testing.assert_array_equal(out.view("u2"), bits)
            try:
                import ml_dtypes
            except ImportError:
                self.assertEqual(out.dtype, np.uint16)
                print("SKIP python_bf16: ml_dtypes is not installed here", file=sys.stderr)
                return
            self.assertEqual(out.dtype, ml_dtypes.bfloat16)
            np.testing.assert_array_equal(robot(x=np.array([1, 2, -1, 0], ml_dtypes.bfloat16)).astype("f4"), [1, 2, -1, 0])
            request = robot.request()
            request["x"] = np.array([1, 2, -1, 0], ml_dtypes.bfloat16)
            self.assertEqual(np.asarray(request["x"]).dtype, ml_dtypes.bfloat16)
            np.testing.assert_array_equal(request.submit().wait().take().astype("f4"), [1, 2, -1, 0])

    def test_a_tensor_of_pytorch_is_taken_without_importing_it(self) -> None:
        with inferd.Session("m") as robot, inferd.Session("halves") as halves:
            self.assertNotIn("torch", sys.modules)
            try:
                import torch
            except ImportError:
                robot(x=Foreign(self.x))
                print("SKIP python_torch: PyTorch is not installed here", file=sys.stderr)
                return
            tensor = torch.arange(8, dtype=torch.float32).reshape(1, 8).requires_grad_()
            np.testing.assert_array_equal(robot(x=tensor), [[0, 1, 2, 3]])
            with self.assertRaisesRegex(inferd.WrongType, "float64"):
                robot(x=tensor.double())
            out = halves(x=torch.tensor([1, 2, -1, 0], dtype=torch.bfloat16))
            np.testing.assert_array_equal(out.view("u2"), [0x3F80, 0x4000, 0xBF80, 0])
            request = robot.request()
            torch.from_dlpack(request["x"])[:] = tensor.detach()
            np.testing.assert_array_equal(request.submit().wait().take(), [[0, 1, 2, 3]])

    def test_python_m_inferd_lists_what_is_served(self) -> None:
        def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
            return subprocess.run([sys.executable, "-m", "inferd", *arguments], env=environment(self.daemon),
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)

        listed = run()
        self.assertEqual(listed.returncode, 0, listed.stderr)
        for words in ("MODEL", "x:f32[1,8]", "counter", "latest"):
            self.assertIn(words, listed.stdout)
        one = run("m")
        self.assertIn("output y: f32[1, 4]", one.stdout)
        self.assertIn("vx [m/s]", one.stdout)
        for wrong in (run("nobody"), run("--runtime-dir", "/nonexistent")):
            self.assertEqual(wrong.returncode, 1)
            self.assertTrue(wrong.stderr.startswith("inferd: "), wrong.stderr)
        self.assertIn("libinferd 0.", run("--version").stdout)


class Foreign:
    """An array of somebody else's library."""

    def __init__(self, array) -> None:
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


if __name__ == "__main__":
    unittest.main()
