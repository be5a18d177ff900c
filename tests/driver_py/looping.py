#!/usr/bin/env python3
"""The verb `loop`: many requests, every outcome entered in a ledger, every rule of DRIVER.md checked.

Inputs are written, and outputs checked, in place, through views. `allocations` is what Python can say of itself: by how many
blocks its heap has grown over the loop, which a leak per request would show.
"""
from __future__ import annotations

import gc
import math
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, Optional

import numpy as np

import inferd
from pattern import FNV_START, fill, fnv1a
from words import Keys, Usage

if TYPE_CHECKING:
    from driver import Attached

DEPTH_MAX = 4096
OBSERVATIONS = 4  # sent in turn by check=answers
GENERATIONS_MAX = 4096  # whose answers are kept
PAUSE_S = 0.001
PER_DOUBLING = 16
U64_MAX = 2**64 - 1


class Histogram:
    """Buckets of at most 1/16 each, made at the start."""

    def __init__(self) -> None:
        self.counts = [0] * (64 * PER_DOUBLING)
        self.total = self.max = 0

    def add(self, ns: int) -> None:
        value = max(ns, 1)
        doubling = value.bit_length() - 1
        fine = (value >> (doubling - 4) if doubling >= 4 else value << (4 - doubling)) - PER_DOUBLING
        self.counts[doubling * PER_DOUBLING + fine] += 1
        self.total += 1
        self.max = max(self.max, ns)

    def percentile(self, part: float) -> int:
        """The upper end of the bucket that holds this part of all values."""
        rank, seen = max(1, math.ceil(self.total * part)), 0
        for i, count in enumerate(self.counts):
            seen += count
            if self.total and seen >= rank:
                return int(math.ldexp(PER_DOUBLING + i % PER_DOUBLING + 1, i // PER_DOUBLING - 4))
        return 0


class Flight:
    __slots__ = ("ticket", "j", "submit_ns", "deadline_ns")

    def __init__(self, j: int, submit_ns: int, deadline_ns: int) -> None:
        self.ticket: Any = None
        self.j, self.submit_ns, self.deadline_ns = j, submit_ns, deadline_ns


class Loop:
    def __init__(self, here: "Attached", keys: Keys, error_name: Callable[[inferd.Error], str]) -> None:
        self.here, self.session, self.error_name = here, here.session, error_name
        self.n, self.rate_hz = keys.optional("n"), keys.number("rate_hz", 0)
        seconds = keys.seconds("seconds")
        self.depth, self.seed = max(1, keys.number("depth", 1)), keys.number("seed", 0)
        self.timeout = keys.number("timeout_us", 5_000_000) * 1e-6
        self.deadline_us, self.reset_every = keys.signed("deadline_us"), keys.number("reset_every", 0)
        self.drop, self.rollbacks = keys.optional("drop"), keys.number("rollbacks", 0) != 0
        self.check = keys.one_of("check", ("echo", "count", "answers", "digest", "none"), "none")
        self.until_lost = keys.one_of("until", ("lost",), "") == "lost"
        keys.end()
        if self.depth > DEPTH_MAX:
            raise Usage("depth is at most 4096")
        if self.n is None and seconds is None:
            raise Usage("n or seconds is missing")
        self.end_after_ns = U64_MAX if seconds is None else int(seconds * 1e9)
        self.flights: Deque[Flight] = deque()
        self.outcomes: Dict[str, int] = {}
        self.errors: Dict[str, int] = {}
        self.sent = self.late = self.skipped = self.state_resets = self.reattaches = self.violations = 0
        self.gap_ns_max = self.last_ok_ns = self.generation = self.generation_first = self.generation_last = 0
        self.epoch, self.next_request = -1, 0
        self.step: Optional[int] = None
        self.count: Optional[int] = None
        self.first_violation, self.lost = "", False
        self.latency, self.age = Histogram(), Histogram()
        self.digest = FNV_START
        self.answers: Dict[int, List[int]] = {}  # hashes by generation, 0 for none
        self.sizes = [t.nbytes for t in self.session.inputs.order]

    # ---- the ledger

    def violation(self, flight: Flight, rule: int, text: str) -> None:
        self.violations += 1
        if self.violations == 1:
            self.first_violation = f"rule {rule}, request {flight.ticket.epoch}.{flight.ticket.number} (j = {flight.j}): {text}"

    def note_sent(self, flight: Flight) -> None:
        ticket = flight.ticket
        self.sent += 1
        if self.epoch != ticket.epoch:
            first = self.epoch < 0
            self.reattaches += not first
            self.epoch, self.generation, self.step = ticket.epoch, 0, None
            # A session may have been used before this loop.
            self.next_request = ticket.number if first else 0
            self.count = None if first and ticket.number != 0 else 0
        if ticket.number != self.next_request:
            self.violation(flight, 2, f"request {self.next_request} was due")
        self.next_request = ticket.number + 1
        self.flights.append(flight)

    def note_reply(self, flight: Flight, reply: inferd.Reply) -> None:
        now_ns = time.monotonic_ns()
        ok = reply.ok
        self.lost = self.lost or reply.status == "shutting_down"
        self.skipped += reply.skipped
        if reply.request != flight.ticket.number or reply.observation_id != self.seed + flight.j:
            self.violation(flight, 3, f"a reply to request {reply.request} with observation id {reply.observation_id}")
        if not self.rollbacks and reply.generation < self.generation:
            self.violation(flight, 4, f"generation {reply.generation} after {self.generation}")
        self.generation = self.generation_last = reply.generation
        self.generation_first = self.generation_first or reply.generation
        if self.step is not None and reply.step != self.step + ok:
            self.violation(flight, 5, f"{reply.status} with step {reply.step} after {self.step}")
        self.step = reply.step
        if ok:
            self.note_ok(flight, reply, now_ns)

    def note_ok(self, flight: Flight, reply: inferd.Reply, now_ns: int) -> None:
        start_ns, done_ns, late = reply.t_start_ns, reply.t_done_ns, reply.late
        self.late += late
        if start_ns < flight.submit_ns or done_ns < start_ns or done_ns > now_ns:
            self.violation(flight, 6, f"submitted {flight.submit_ns}, started {start_ns}, done {done_ns}, now {now_ns}")
        # The package counts a deadline from inside its call, a little after this one was noted: between the two either is right.
        slack_ns = reply.t_submit_ns - flight.submit_ns
        over_ns = done_ns - flight.deadline_ns
        if (late and not flight.deadline_ns) or (flight.deadline_ns and late != (over_ns > 0) and not 0 < over_ns <= slack_ns):
            self.violation(flight, 7, f"late is {late}, done {done_ns}, deadline {flight.deadline_ns}")
        self.latency.add(now_ns - flight.submit_ns)
        self.age.add(max(0, start_ns - flight.submit_ns))
        if self.last_ok_ns:
            self.gap_ns_max = max(self.gap_ns_max, now_ns - self.last_ok_ns)
        self.last_ok_ns = now_ns
        self.check_output(flight, reply)

    def check_output(self, flight: Flight, reply: inferd.Reply) -> None:
        if reply.state_reset:
            self.state_resets += 1
            self.count = 0
        outputs = self.session.outputs.order
        if self.check in ("answers", "digest"):
            of_reply = FNV_START
            for k in range(len(outputs)):
                of_reply = fnv1a(reply.outputs[k].tobytes(), of_reply)
            self.digest = fnv1a(of_reply.to_bytes(8, "little"), self.digest)
            if self.check == "answers":
                self.check_answer(flight, reply.generation, of_reply)
        if self.check in ("echo", "count") and self.sizes and outputs:
            shown = reply.outputs[0].reshape(-1).view("u1")
            sent = fill(self.sizes[0], self.seed + flight.j)
            if outputs[0].nbytes != self.sizes[0]:
                sent = np.resize(sent, outputs[0].nbytes)
            if not (shown == sent).all():
                self.violation(flight, 8, "output 0 is not input 0")
        if self.check == "count":
            value = float(reply.outputs[1].reshape(-1)[0]) if len(outputs) > 1 else -1.0
            due = int(max(value, 0)) if self.count is None else self.count
            if value != due:
                self.violation(flight, 9, f"the state shows {value:g}, {due} was due")
            self.count = due
        if self.count is not None:
            self.count += 1

    def check_answer(self, flight: Flight, generation: int, of_reply: int) -> None:
        """A generation answers the same observation with the same outputs, always."""
        if generation not in self.answers and len(self.answers) == GENERATIONS_MAX:
            self.violation(flight, 11, "more generations than the ledger holds")
            return
        known = self.answers.setdefault(generation, [0] * OBSERVATIONS)
        i = flight.j % OBSERVATIONS
        if known[i] not in (0, of_reply):
            self.violation(flight, 11, f"generation {generation} answered {of_reply:016x} after {known[i]:016x}")
        known[i] = of_reply

    def settle(self) -> None:
        """Waits for the oldest request in flight and enters what became of it."""
        flight = self.flights.popleft()
        try:
            reply = flight.ticket.wait(self.timeout)
        except inferd.Timeout:
            if flight.j != self.drop:
                self.violation(flight, 10, f"no answer within {self.timeout:g} s")
            self.step = self.count = None
            return
        except inferd.Error as e:
            self.violation(flight, 1, f"waiting: {e}")
            return
        if flight.j != self.drop:
            self.outcomes[reply.status] = self.outcomes.get(reply.status, 0) + 1
            if reply.status == "daemon_lost":
                self.lost = True
            elif reply.status != "superseded":
                self.note_reply(flight, reply)
        reply.release()

    # ---- the loop

    def send(self, j: int) -> Optional[inferd.Error]:
        try:
            request = self.session.request()
            number = self.seed + j
            observation = self.seed + {"answers": j % OBSERVATIONS, "digest": 0}.get(self.check, j)
            for k, size in enumerate(self.sizes):
                if size:
                    request[k].reshape(-1).view("u1")[:] = fill(size, observation + k)
            deadline = None if self.deadline_us is None else max(self.deadline_us, 0) * 1e-6
            now_ns = time.monotonic_ns()
            flight = Flight(j, now_ns, 0 if deadline is None else now_ns + int(deadline * 1e9))
            flight.ticket = request.submit(observation_id=number, deadline=deadline,
                                           reset=self.reset_every > 0 and j % self.reset_every == 0)
        except inferd.Error as e:
            return e
        self.note_sent(flight)
        return None

    def pace(self, start_ns: int, j: int) -> None:
        if self.rate_hz:
            due_ns = start_ns + j * 1_000_000_000 // self.rate_hz
            while True:
                left_ns = due_ns - time.monotonic_ns()
                if left_ns <= 0:
                    return
                if left_ns > 100_000:
                    time.sleep((left_ns - 60_000) * 1e-9)

    def run(self) -> None:
        start_ns, j = time.monotonic_ns(), 0
        while (self.n is None or j < self.n) and time.monotonic_ns() - start_ns < self.end_after_ns and not (self.until_lost and self.lost):
            if len(self.flights) >= self.depth:
                self.settle()
                continue
            self.pace(start_ns, j)
            error = self.send(j)
            if error is None:
                j += 1
                continue
            name = self.error_name(error)
            self.errors[name] = self.errors.get(name, 0) + 1
            self.lost = self.lost or name in ("daemon_lost", "shutting_down")
            time.sleep(PAUSE_S)
        while self.flights:
            self.settle()

    def summary(self, grown: int) -> Dict[str, Any]:
        ended = sum(self.outcomes.values())
        if ended != self.sent:
            self.violations += 1
            self.first_violation = self.first_violation or f"rule 1: {self.sent} sent, {ended} ended"
        return {"sent": self.sent, "outcomes": self.outcomes, "errors": self.errors, "late": self.late,
                "violations": self.violations, "first_violation": self.first_violation,
                "generation_first": self.generation_first, "generation_last": self.generation_last,
                "reattaches": self.reattaches, "state_resets": self.state_resets, "skipped": self.skipped,
                "p50_ns": self.latency.percentile(0.5), "p99_ns": self.latency.percentile(0.99),
                "p999_ns": self.latency.percentile(0.999), "max_ns": self.latency.max,
                "gap_ns_max": self.gap_ns_max, "age_p50_ns": self.age.percentile(0.5), "age_ns_max": self.age.max,
                "allocations": max(0, grown), "digest": f"{self.digest:016x}",
                "answers": [{"generation": g, "hashes": [f"{h:016x}" if h else "" for h in hashes]}
                            for g, hashes in self.answers.items()]}


def loop_command(here: "Attached", keys: Keys, error_name: Callable[[inferd.Error], str]) -> Dict[str, Any]:
    loop = Loop(here, keys, error_name)
    gc.collect()
    before = sys.getallocatedblocks()
    loop.run()
    gc.collect()
    return loop.summary(sys.getallocatedblocks() - before)
