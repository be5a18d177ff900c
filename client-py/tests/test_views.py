"""Views are views, and die with their slot; what cannot die is lent; a child of fork() gets a sentence."""
from __future__ import annotations

import ctypes
import gc
import os
import re
import unittest

import numpy as np

import inferd
from served import Daemon, manifest

VGA = (480, 640, 3)


def mappings(address: int) -> "np.ndarray":
    """The whole mapping of this process that an address lies in, as the kernel says."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(n, 16) for n in re.match(r"(\w+)-(\w+)", line).groups())  # type: ignore[union-attr]
            if first <= address < last:
                assert "inferd" in line, line
                return np.ctypeslib.as_array((ctypes.c_uint8 * (last - first)).from_address(first))
    raise AssertionError("no mapping there")


def address(array: "np.ndarray") -> int:
    return int(array.__array_interface__["data"][0])


class Views(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.daemon = Daemon()
        cls.daemon.model("m", manifest([("x", "f32", (2, 4))], [("y", "f32", (2, 4))]))
        cls.daemon.model("vga", manifest([("image", "u8", VGA)], [("copy", "u8", VGA)]))
        cls.daemon.start()
        os.environ["INFERD_RUNTIME_DIR"] = str(cls.daemon.run)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.daemon.stop()

    x = np.arange(8, dtype="f4").reshape(2, 4)

    def test_a_view_of_a_vga_image_is_the_slot_itself_on_both_sides(self) -> None:
        with inferd.Session("vga") as robot:
            image = np.random.default_rng(1).integers(0, 255, VGA, np.uint8)
            request = robot.request()
            view = request["image"]
            lent = np.asarray(view)
            mapping = mappings(address(lent))
            self.assertTrue(np.shares_memory(lent, mapping))
            self.assertTrue(np.shares_memory(view, mapping))
            self.assertEqual((address(lent) % 64, lent.nbytes), (0, image.nbytes))
            view[:] = image
            at = address(lent) - address(mapping)
            np.testing.assert_array_equal(mapping[at:at + image.nbytes], image.ravel())  # written in place: there it is
            del lent
            with request.submit().wait() as reply:
                out = np.asarray(reply.outputs["copy"])
                self.assertTrue(np.shares_memory(out, mappings(address(out))))
                self.assertFalse(np.shares_memory(out, mapping), "replies lie in a region of their own")
                np.testing.assert_array_equal(out, image)
                del out

    def test_a_call_with_big_tensors_returns_arrays_of_their_own(self) -> None:
        with inferd.Session("vga") as robot:
            image = np.full(VGA, 7, np.uint8)
            first, second = robot(image=image), robot(image=image[::-1, :, :] * 2)
            self.assertEqual((first[0, 0, 0], second[0, 0, 0]), (7, 14))
            self.assertFalse(np.shares_memory(first, second))
            wide = np.zeros((480, 640, 4), np.uint8)
            wide[..., :3] = 9
            self.assertEqual(robot(image=wide[..., :3])[479, 639, 2], 9, "a strided array arrives whole")

    def test_a_view_behaves_as_an_array(self) -> None:
        with inferd.Session("m") as robot:
            request = robot.request()
            view = request["x"]
            view[:] = self.x
            view[0] += 1
            view[1, 2:] *= 2
            np.add(view, 1, out=view)
            np.copyto(view[0, :2], [8, 9])
            want = self.x.copy()
            want[0] += 1
            want[1, 2:] *= 2
            want += 1
            want[0, :2] = 8, 9
            np.testing.assert_array_equal(view, want)
            np.testing.assert_array_equal(view * 2 + view, want * 3)
            self.assertIsInstance(view * 2, np.ndarray)
            self.assertEqual((view.shape, view.dtype, view.ndim, view.size, view.nbytes, len(view)), ((2, 4), "f4", 2, 8, 32, 2))
            self.assertEqual((float(view.sum()), float(np.max(view)), float(view[1, 1])), (want.sum(), want.max(), want[1, 1]))
            for part in (view[0], view.T, view.reshape(8), view[::-1], view[..., None], np.transpose(view), view.view("u4")):
                self.assertIsInstance(part, inferd.View)
            self.assertIsInstance(view[[0, 1]], np.ndarray)
            np.testing.assert_array_equal(np.concatenate([view, view])[2:], want)
            self.assertEqual([float(row[0]) for row in view], [8.0, want[1, 0]])
            view.fill(5)
            self.assertTrue((view == 5).all())
            self.assertIn("View(array", repr(view))
            self.assertEqual(np.asarray(view, "f8").dtype, np.float64)
            with self.assertRaises(inferd.Misuse):
                request["nothing"]
            with self.assertRaisesRegex(inferd.WrongType, "float64"):
                request["x"] = self.x.astype("f8")

    def test_a_view_raises_after_its_slot_went_back_whatever_is_asked_of_it(self) -> None:
        uses = [lambda v: v[0, 0], lambda v: v.__setitem__(0, 1), lambda v: v + 1, lambda v: np.add(1, v), lambda v: v.sum(),
                lambda v: v.shape, lambda v: np.asarray(v), lambda v: np.sum(v), lambda v: len(v), lambda v: list(v),
                lambda v: v.copy(), lambda v: np.copyto(v, 0), lambda v: v.__dlpack__(), lambda v: float(v[0, 0]), lambda v: v.T]
        with inferd.Session("m") as robot:
            request = robot.request()
            written, part, method = request["x"], request["x"][0], request["x"].sum
            written[:] = self.x
            reply = request.submit().wait()
            read, row = reply.outputs["y"], reply.outputs["y"][1]
            np.testing.assert_array_equal(read, self.x)
            for view, words in ((written, "submitted"), (part, "submitted")):
                with self.assertRaisesRegex(inferd.Released, words):
                    view[0]
            for use in uses:
                with self.assertRaisesRegex(inferd.Released, "submitted"):
                    use(written)
            with self.assertRaises(inferd.Released):
                method()
            with self.assertRaisesRegex(ValueError, "read-only"):
                read[0] = 1
            reply.release()
            for use in uses:
                with self.assertRaisesRegex(inferd.Released, "released"):
                    use(read)
            with self.assertRaises(inferd.Released):
                row[0]
            self.assertIn("released", repr(read))
            for late in (lambda: request["x"], request.submit, reply.take, lambda: reply.outputs["y"]):
                with self.assertRaises(inferd.Released):
                    late()
            reply.release()  # again is nothing
            stale = robot.request()
            stale_view = stale["x"]
            robot(x=self.x)
            with self.assertRaisesRegex(inferd.Released, "later call"):
                stale_view[0] = 1
            with self.assertRaises(inferd.Released):
                stale.submit()
            last = robot.request()["x"]
        with self.assertRaisesRegex(inferd.Released, "closed"):
            last[0] = 1

    def test_a_plain_array_over_a_slot_is_lent_and_holds_it(self) -> None:
        with inferd.Session("m") as robot:
            request = robot.request()
            row = np.asarray(request["x"][0])  # of a part
            row[:] = 3
            request["x"][1] = 4
            for give_back in (request.submit, robot.request, lambda: robot(x=self.x)):
                with self.assertRaisesRegex(inferd.Lent, "delete it"):
                    give_back()
            further = row[1:]
            del row
            with self.assertRaises(inferd.Lent):  # what was made from it counts too
                request.submit()
            del further
            reply = request.submit().wait()
            out = np.asarray(reply.outputs["y"])
            with self.assertRaises(inferd.Lent):
                reply.release()
            np.testing.assert_array_equal(out, [[3] * 4, [4] * 4])
            del out
            gc.collect()
            reply.release()

    def test_a_plain_array_outlives_the_session_without_harm(self) -> None:
        robot = inferd.Session("m")
        request = robot.request()
        lent = np.asarray(request["x"])
        lent[:] = 6
        robot.close()
        del robot, request
        gc.collect()
        np.testing.assert_array_equal(lent, np.full((2, 4), 6))  # still mapped
        where = address(lent)
        del lent
        gc.collect()
        with self.assertRaises(AssertionError):
            mappings(where)  # and now it is not

    def test_a_forked_child_gets_a_sentence_and_the_parent_goes_on(self) -> None:
        with inferd.Session("m") as robot:
            request = robot.request()
            view = request["x"]
            view[:] = self.x
            lent = np.asarray(view)
            calls = [lambda: view[0], lambda: view.__setitem__(0, 1), lambda: robot(x=self.x), robot.request, lambda: robot.info,
                     request.submit, lambda: robot.fileno(), lambda: robot.submit(x=self.x), lambda: np.asarray(view)]
            read_end, write_end = os.pipe()
            child = os.fork()
            if child == 0:
                said = b"nothing"
                try:
                    right = 0
                    for call in calls:
                        try:
                            call()
                        except inferd.WrongProcess as e:
                            right += "fork" in str(e)
                    own = inferd.Session("m")
                    right += float(own(x=self.x)[1, 3]) == 7.0
                    lent[:] = lent + 1  # no crash, and nobody else's memory
                    right += float(lent[1, 3]) == 1.0
                    robot.close()
                    said = b"%d" % right
                except BaseException as e:
                    said = repr(e).encode()
                finally:
                    os.write(write_end, said)
                    os._exit(0)
            os.close(write_end)
            _, status = os.waitpid(child, 0)
            with os.fdopen(read_end, "rb") as pipe:
                self.assertEqual((status, pipe.read()), (0, b"%d" % (len(calls) + 2)))
            del lent
            np.testing.assert_array_equal(request.submit().wait().take(), self.x)


if __name__ == "__main__":
    unittest.main()
