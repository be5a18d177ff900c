#!/usr/bin/env python3
"""The Python client's driver: speaks the line protocol of tests/DRIVER.md over the package `inferd`.

One command per line of stdin, one JSON object per command on stdout. A command's keys are all understood before anything
is done. It decides nothing: it calls the package as a robot program would, and says what came back.
"""
from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Any, Callable, Dict, List, Optional

import numpy as np

import inferd
from pattern import fill, fnv1a
from looping import loop_command
from words import Keys, Usage

SESSIONS_MAX = 64
TICKETS_MAX = 65536
#: Error names of DRIVER.md; what the package calls otherwise is `other`.
NAMES = set("again timeout pending unavailable shutting_down daemon_lost wrong_process invalid no_daemon unknown_model abi_mismatch "
            "quota clock_skew forbidden bad_request no_resources bad_region not_attached usage".split())


class Attached:
    """A session, the inputs written for its next request, and which attach of the driver it was."""

    def __init__(self, session: inferd.Session, serial: int) -> None:
        self.session = session
        self.serial = serial
        self.request: Optional[inferd.Request] = None
        self.inputs: List[bytes] = [bytes(t.nbytes) for t in session.inputs.order]

    def put(self, request: inferd.Request, index: int, data: bytes) -> None:
        """An input as raw bytes, in place: whatever its dtype says of them."""
        if data:
            request[index].reshape(-1).view("u1")[:] = np.frombuffer(data, "u1")


class Driver:
    def __init__(self) -> None:
        self.sessions: Dict[int, Attached] = {}
        self.tickets: Dict[int, Any] = {}
        self.given = 0
        self.attaches = 0

    # ---- answers

    def attached(self, here: Attached) -> Dict[str, Any]:
        info = here.session.info
        return {"session": info.session, "generation": info.generation, "slots": info.slots, "queue": info.queue,
                "spin_us": info.spin_us, "epoch": info.epoch, "daemon": here.session.daemon_version}

    @staticmethod
    def outcome(reply: inferd.Outcome, outputs: Optional[List[bytes]], show: str, waited_s: float) -> Dict[str, Any]:
        answer: Dict[str, Any] = {"outcome": reply.status, "waited_us": int(waited_s * 1e6)}
        if reply.status == "superseded":
            answer["by"] = reply.request
        elif reply.status != "daemon_lost":
            for name in ("late", "state_reset", "request", "observation_id", "generation", "skipped", "step", "t_start_ns", "t_done_ns"):
                answer[name] = getattr(reply, name)
        if outputs is not None and show == "hex":
            answer["outputs"] = [data.hex() for data in outputs]
        elif outputs is not None and show == "hash":
            answer["hash"] = f"{fnv1a(b''.join(outputs)):016x}"
        return answer

    def replied(self, here: Attached, reply: inferd.Reply, show: str, waited_s: float, **more: Any) -> Dict[str, Any]:
        outputs = None
        if reply.ok and show != "none":
            outputs = [reply.outputs[name].tobytes() for name in here.session.outputs]
        answer = self.outcome(reply, outputs, show, waited_s)
        reply.release()
        return {**answer, **more}

    # ---- keys that several verbs have

    @staticmethod
    def labels(keys: Keys) -> Dict[str, Any]:
        deadline_us = keys.signed("deadline_us")
        labels: Dict[str, Any] = {"observation_id": keys.number("id", 0), "executed": keys.number("executed", 0),
                                  "reset": keys.number("reset", 0) == 1}
        # The package takes seconds from now, none of them negative: a deadline in the past is the nearest one to now.
        labels["deadline"] = None if deadline_us is None else max(deadline_us, 0) * 1e-6
        return labels

    @staticmethod
    def show(keys: Keys) -> str:
        return keys.one_of("out", ("hex", "hash", "none"), "hex")

    def give_ticket(self, here: Attached, ticket: inferd.Ticket) -> int:
        self.tickets[self.given] = (here.serial, ticket)
        self.tickets.pop(self.given - TICKETS_MAX, None)
        self.given += 1
        return self.given - 1

    def find_ticket(self, here: Attached, keys: Keys) -> Callable[[], inferd.Ticket]:
        number = keys.need("ticket")

        def find() -> inferd.Ticket:
            if number not in self.tickets:
                raise Usage("this ticket was never given out, or lies too far back")
            serial, ticket = self.tickets[number]
            if serial != here.serial:
                raise inferd.Misuse("this ticket belongs to another session")
            return ticket  # type: ignore[no-any-return]

        return find

    # ---- verbs

    def attach(self, s: int, keys: Keys) -> Dict[str, Any]:
        model = keys.text("model")
        if model is None:
            raise Usage("model is missing")
        spin_us = keys.optional("spin_us")
        timeout_us = keys.optional("timeout_us")
        wishes: Dict[str, Any] = {"slots": keys.number("slots", 0), "spin_us": spin_us, "queue": keys.text("queue"),
                                  "reattach": keys.number("auto_reattach", 1) != 0}
        if timeout_us is not None:
            wishes["attach_timeout"] = timeout_us * 1e-6
        keys.end()
        session = inferd.Session(model, **wishes)
        self.forget(s)
        self.attaches += 1
        here = self.sessions[s] = Attached(session, self.attaches)
        return self.attached(here)

    def forget(self, s: int) -> None:
        here = self.sessions.pop(s, None)
        if here is not None:
            here.session.close()

    def versions(self, s: int) -> Dict[str, Any]:
        answer = {"client": "python", "library": inferd.library_version(), "abi": "1.0"}
        if s in self.sessions:
            answer["daemon"] = self.sessions[s].session.daemon_version
        return answer

    def signature(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        keys.end()

        def tensors(ts: Any) -> List[Dict[str, Any]]:
            return [{"name": t.name, "dtype": t.dtype_name, "shape": list(t.shape), "bytes": t.nbytes} for t in ts.order]

        session = here.session
        return {"stateful": session.stateful, "inputs": tensors(session.inputs), "outputs": tensors(session.outputs)}

    def request(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        keys.end()
        here.request = here.session.request()
        return {}

    def write(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        index, seed, text = keys.need("input"), keys.optional("fill"), keys.text("hex")
        keys.end()
        if index >= len(here.inputs):
            raise Usage("there is no such input")
        if (seed is None) == (text is None):
            raise Usage("write takes one of hex and fill")
        size = len(here.inputs[index])
        data = fill(size, seed).tobytes() if seed is not None else unhex(text or "")
        if len(data) != size:
            raise Usage("hex is not as long as the input")
        here.inputs[index] = data
        if here.request is not None:
            here.put(here.request, index, data)
        return {}

    def submit(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        labels = self.labels(keys)
        keys.end()
        request = here.session.request()
        for index, data in enumerate(here.inputs):
            here.put(request, index, data)
        here.request = None
        ticket = request.submit(**labels)
        return {"ticket": self.give_ticket(here, ticket), "request": ticket.number}

    def send(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        seed, n, labels = keys.need("fill"), keys.number("n", 1), self.labels(keys)
        keys.end()
        answer: Dict[str, Any] = {}
        for j in range(n):
            answer["n"] = j
            try:
                request = here.session.request()
                here.request = None
                for index, data in enumerate(here.inputs):
                    here.put(request, index, fill(len(data), seed + j + index).tobytes())
                ticket = request.submit(**labels)
            except inferd.Error as e:
                return {**answer, **failure(e)}
            given = self.give_ticket(here, ticket)
            if j == 0:
                answer = {"ticket": given, "request": ticket.number}
            labels["observation_id"] += 1
        return {**answer, "n": n}

    def wait(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        find, timeout, show = self.find_ticket(here, keys), keys.seconds_of_us("timeout_us"), self.show(keys)
        keys.end()
        ticket = find()
        began = time.monotonic()
        reply = ticket.wait(timeout)
        return self.replied(here, reply, show, time.monotonic() - began)

    def try_(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        find, show = self.find_ticket(here, keys), self.show(keys)
        keys.end()
        reply = find().poll()
        if reply is None:
            return {"ok": False, "error": "pending", "message": "not answered yet"}
        return self.replied(here, reply, show, 0.0)

    def pollwait(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        find, timeout, show = self.find_ticket(here, keys), keys.seconds_of_us("timeout_us"), self.show(keys)
        keys.end()
        ticket, began, polls = find(), time.monotonic(), 0
        while True:
            armed = here.session.arm()
            reply = ticket.poll()
            waited = time.monotonic() - began
            if reply is not None:
                return self.replied(here, reply, show, waited, polls=polls)
            if waited >= timeout:
                raise inferd.Timeout("no doorbell within the timeout")
            if armed:
                poller = select.poll()
                poller.register(here.session, select.POLLIN)
                polls += 1
                poller.poll(min(3_600_000, (timeout - waited) * 1e3 + 1))

    def abandon(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        find = self.find_ticket(here, keys)
        keys.end()
        find().abandon()
        return {}

    def infer(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        seed, text = keys.optional("fill"), keys.text("hex")
        timeout, labels, show = keys.seconds_of_us("timeout_us"), self.labels(keys), self.show(keys)
        keys.end()
        if (seed is None) == (text is None):
            raise Usage("infer takes one of fill and hex")
        session = here.session
        given = [fill(len(d), seed + k).tobytes() for k, d in enumerate(here.inputs)] if seed is not None else \
            [unhex(part) for part in (text or "").split(",")]
        inputs: Dict[str, Any] = {}
        for k, data in enumerate(given):
            array = np.frombuffer(data, "u1")
            tensor = session.inputs.order[k] if k < len(here.inputs) else None
            if tensor is not None and len(data) == tensor.nbytes:
                array = array.view(tensor.dtype).reshape(tensor.shape)
            inputs[tensor.name if tensor is not None else f"too many {k}"] = array
        began = time.monotonic()
        try:
            result = session(inputs, timeout=timeout, **labels)
        except inferd.Error as e:
            if e.reply is None:
                raise
            return self.outcome(e.reply, None, show, time.monotonic() - began)
        waited = time.monotonic() - began
        outputs = [result] if len(session.outputs) == 1 else [result[name] for name in session.outputs]
        return self.outcome(session.last, [a.tobytes() for a in outputs], show, waited)

    def fork(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        keys.end()
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            said = "ok"
            try:
                here.session.request()
            except inferd.Error as e:
                said = error_name(e)
            finally:
                os.write(write_end, said.encode())
                os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        if status != 0:
            return {"ok": False, "error": "other", "message": "the child did not exit by itself"}
        return {"child": said}

    def info(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        keys.end()
        return self.attached(here)

    def reattach(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        timeout_us = keys.optional("timeout_us")
        keys.end()
        here.session.reattach(None if timeout_us is None else timeout_us * 1e-6)
        return self.attached(here)

    def loop(self, here: Attached, keys: Keys) -> Dict[str, Any]:
        here.request = None
        return loop_command(here, keys, error_name)

    # ---- lines

    def command(self, line: str) -> Dict[str, Any]:
        verb, _, rest = line.partition(" ")
        keys = Keys(rest)
        s = keys.number("s", 0)
        if s >= SESSIONS_MAX:
            raise Usage("s is at most 63")
        if verb == "attach":
            return self.attach(s, keys)
        if verb in ("versions", "counters", "detach"):
            keys.end()
            if verb == "versions":
                return self.versions(s)
            if verb == "counters":
                return {"allocations": sys.getallocatedblocks()}
            self.forget(s)
            return {}
        if s not in self.sessions:
            return {"ok": False, "error": "not_attached", "message": "attach first"}
        method = getattr(self, "try_" if verb == "try" else verb, None)
        if verb not in VERBS or method is None:
            raise Usage("unknown verb")
        return method(self.sessions[s], keys)  # type: ignore[no-any-return]


VERBS = set("reattach signature request write submit send wait try pollwait abandon infer loop fork info".split())


def unhex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Usage("hex has other characters than 0-9 and a-f, or an odd length") from None


def error_name(error: inferd.Error) -> str:
    return error.name if error.name in NAMES else "other"


def failure(error: inferd.Error) -> Dict[str, Any]:
    return {"ok": False, "error": error_name(error), "message": str(error)}


def main() -> None:
    driver = Driver()
    for line in sys.stdin:
        line = line.rstrip("\r\n")
        if line == "quit":
            break
        try:
            answer = driver.command(line)
        except Usage as e:
            answer = {"ok": False, "error": "usage", "message": str(e)}
        except inferd.Error as e:
            answer = failure(e)
        print(json.dumps({"ok": True, **answer}, separators=(",", ":")), flush=True)
    for s in list(driver.sessions):
        driver.forget(s)


if __name__ == "__main__":
    main()
