"""Small faults of the kind that a review misses, and the test that each of them must fail.

scripts/mutation_check.py applies one at a time to a copy of the tree. `search` stands exactly once in `file`; who changes that line
changes it here too (`mutation_check.py --list` says which no longer applies, and so does every `make test`). `suite` is what is
built and run: an ipc test on its own, a loom model, a crate's unit tests, or a scenario of tests/tests/ against mutated programs.
"""
from __future__ import annotations

from typing import List, NamedTuple


class Mutation(NamedTuple):
    name: str
    file: str
    search: str
    replace: str
    #: `ipc:FILE`, `loom`, `unit:CRATE`, `c:FILE` (of client-c/tests) or `scenario:FILE`.
    suite: str
    test: str


REQUESTER, RESPONDER, REGION = "ipc/src/requester.rs", "ipc/src/responder.rs", "ipc/src/region.rs"

MUTATIONS: List[Mutation] = [
    # Seals, sizes and modes: what the kernel is asked to keep.
    Mutation("the size of a request region is not sealed", REGION,
             "RegionKind::Request => size_seals(),", "RegionKind::Request => SealFlag::empty(),",
             "ipc:regions", "a_request_region_is_frozen_once_its_client_has_mapped_it"),
    Mutation("a request region stays open to new writable mappings", REGION,
             "SealFlag::from_bits_retain(F_SEAL_FUTURE_WRITE) | SealFlag::F_SEAL_SEAL;",
             "SealFlag::from_bits_retain(F_SEAL_FUTURE_WRITE & 0) | SealFlag::F_SEAL_SEAL;",
             "ipc:regions", "a_request_region_is_frozen_once_its_client_has_mapped_it"),
    Mutation("holes of a request region are not looked for", REGION,
             "if (stat.st_blocks as u64).saturating_mul(512) < bytes {", "if (stat.st_blocks as u64).saturating_mul(512) < bytes * 0 {",
             "ipc:regions", "a_client_that_punched_or_sealed_first_is_found_out"),
    Mutation("an importer takes a region of any size", REGION,
             'return Err(RegionError::Untrusted("another size than announced"));',
             'if bytes == 0 { return Err(RegionError::Untrusted("another size than announced")); }',
             "ipc:regions", "an_importer_refuses_what_is_unsealed_or_of_another_size"),
    Mutation("an importer takes an unsealed region", REGION,
             "if have.contains(need) { Ok(()) }", "if have.contains(need) || !have.contains(need) { Ok(()) }",
             "ipc:regions", "an_importer_refuses_what_is_unsealed_or_of_another_size"),
    Mutation("a reply region keeps the mode that it was born with", REGION,
             "fchmod(&fd, mode).map_err", "fchmod(&fd, mode | Mode::S_IRWXO).map_err",
             "ipc:regions", "a_reply_region_cannot_be_mapped_writable_by_its_client"),
    Mutation("the client is handed a writable reply region", REGION,
             "reopen(region.fd.as_fd(), if kind == RegionKind::Reply { Access::ReadOnly }",
             "reopen(region.fd.as_fd(), if kind == RegionKind::State { Access::ReadOnly }",
             "ipc:regions", "a_reply_region_cannot_be_mapped_writable_by_its_client"),
    # What a peer claims.
    Mutation("a released count is not checked", RESPONDER,
             "if found < self.released || found > self.next_reply() {", "if found < self.released {",
             "ipc:rings", "sequence_numbers_and_counts_that_lie_end_the_session"),
    Mutation("credit is not bounded by the slots", RESPONDER,
             "Ok(self.next_reply() - found < slots)", "Ok(self.next_reply() - found <= slots)",
             "ipc:rings", "a_client_that_does_not_release_is_not_run_for"),
    Mutation("a sequence number may jump as far as it likes", RESPONDER,
             "if !round || seq - n > REQUEST_JUMP_MAX || seq > REQUEST_NUMBER_MAX {", "if !round {",
             "ipc:rings", "sequence_numbers_and_counts_that_lie_end_the_session"),
    Mutation("unknown request flags are let through", RESPONDER,
             "if h.flags & !REQUEST_FLAGS != 0 {", "if h.flags & !REQUEST_FLAGS == u32::MAX {",
             "ipc:rings", "headers_that_lie_are_rejected_and_the_next_one_is_served"),
    Mutation("a successor believes any reply number", RESPONDER,
             "if seq != 0 && ((seq - 1)", "if seq == u64::MAX && ((seq - 1)",
             "ipc:rings", "a_damaged_reply_region_is_found_by_the_successor"),
    Mutation("a geometry may reach beyond its region", "ipc/src/layout.rs",
             "rule(stride * u64::from(count) <= bytes - slots,", "rule(stride * u64::from(count) <= bytes,",
             "unit:inferd-ipc", "impossible_geometries_are_refused"),
    Mutation("an offset beyond the mapping is not noticed", "ipc/src/mem.rs",
             "assert!(inside, \"offset {at}+{bytes}", "assert!(inside || bytes > 0, \"offset {at}+{bytes}",
             "ipc:regions", "an_offset_outside_the_mapping_panics_instead_of_reaching_beyond"),
    # Orderings, withdrawal, wakes.
    Mutation("latest overwrites a slot without withdrawing it", REQUESTER,
             "seq.store(0, Ordering::Relaxed);", "seq.store(seq.load(Ordering::Relaxed), Ordering::Relaxed);",
             "loom", "a_request_that_is_overwritten_while_it_is_read_is_never_torn"),
    Mutation("the fence after a withdrawal is dropped", REQUESTER,
             "fence(Ordering::Release);", "",
             "loom", "a_request_that_is_overwritten_while_it_is_read_is_never_torn"),
    Mutation("the fence before a slot is confirmed is dropped", RESPONDER,
             "        fence(Ordering::Acquire);\n        self.request.word(self.requests.at(request.number))",
             "        self.request.word(self.requests.at(request.number))",
             "loom", "a_request_that_is_overwritten_while_it_is_read_is_never_torn"),
    Mutation("a request is published without release", REQUESTER,
             "self.request.word(at).store(seq, Ordering::Release);", "self.request.word(at).store(seq, Ordering::Relaxed);",
             "loom", "a_request_and_its_reply_are_seen_whole"),
    Mutation("a reply is published without release", RESPONDER,
             "self.reply.word(at).store(seq, Ordering::Release);", "self.reply.word(at).store(seq, Ordering::Relaxed);",
             "loom", "a_client_on_its_way_to_sleep_does_not_miss_its_reply"),
    Mutation("the client's doorbell is not rung", RESPONDER,
             "self.reply.futex_wake(self.geometry.reply_base as usize + REP_DOORBELL);", "",
             "loom", "a_client_on_its_way_to_sleep_does_not_miss_its_reply"),
    Mutation("the worker's doorbell is not rung", REQUESTER,
             "self.request.futex_wake(self.geometry.request_base as usize + REQ_DOORBELL);", "",
             "loom", "a_worker_on_its_way_to_sleep_does_not_miss_a_request"),
    Mutation("the doorbell's word does not change before the wake", RESPONDER,
             "bell.store(bell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);", "let _ = bell;",
             "loom", "a_client_on_its_way_to_sleep_does_not_miss_its_reply"),
    Mutation("the publisher's fence before it looks for a sleeping worker is dropped", REQUESTER,
             "        full_fence();\n        match self.reply_word(REP_SLEEPING)", "        match self.reply_word(REP_SLEEPING)",
             "loom", "a_worker_on_its_way_to_sleep_does_not_miss_a_request"),
    Mutation("the sleeping client's fence is dropped", REQUESTER,
             "        fence(Ordering::SeqCst);\n        !self.reply_ready()", "        !self.reply_ready()",
             "loom", "a_client_on_its_way_to_sleep_does_not_miss_its_reply"),
    Mutation("a release does not wake a worker without credit", REQUESTER,
             "if self.latest && self.answered < self.next() { self.wake_worker() } else { Ring::Done }", "Ring::Done",
             "loom", "a_worker_without_credit_is_woken_by_the_release"),
    # The other end's release is not here: the fence of the last reply's publish orders as much before it.
    Mutation("a release of the baton is seen without acquire", "ipc/src/baton.rs",
             "self.mem.word(Self::entry(entry) + RELEASED).load(Ordering::Acquire)",
             "self.mem.word(Self::entry(entry) + RELEASED).load(Ordering::Relaxed)",
             "loom", "who_sees_a_release_sees_every_reply_before_it"),
    Mutation("streaming stores are not ordered before a publish", "ipc/src/sync.rs",
             "core::arch::x86_64::_mm_sfence();", "std::arch::asm!(\"\");",
             "ipc:streaming", "tensors_written_with_streaming_stores_are_whole_when_their_request_is_seen"),
    # What a step commits, and what a reply says.
    Mutation("a reset that did not run is forgotten", RESPONDER,
             "self.reset_pending = !ran && request.reset;", "self.reset_pending = false;",
             "ipc:rings", "a_reset_survives_being_superseded_expired_and_a_successor"),
    Mutation("a dead worker's request is answered again and again", RESPONDER,
             "if number < self.next_request() || number > REQUEST_NUMBER_MAX {", "if number > REQUEST_NUMBER_MAX {",
             "ipc:rings", "a_dead_workers_running_request_is_answered_once"),
    Mutation("a step's state is written over the committed half", "worker/src/step.rs",
             "let half = state.half(session.rings.step() + 1);", "let half = state.half(session.rings.step());",
             "scenario:deaths_steps", "a_worker_that_dies_at_any_step_costs_its_running_request_at_most"),
    Mutation("a step's state is not committed", "worker/src/step.rs",
             "self.store_state(session);", "if false { self.store_state(session); }",
             "scenario:rules", "rule_5_state_lives_per_session_and_begins_at_zero::rust_memfd"),
    Mutation("the request that runs is not noted", "worker/src/step.rs",
             "self.baton.run_begins(self.entry, running);", "",
             "scenario:deaths", "a_run_that_hangs_is_worker_lost_after_max_run_ms::rust_memfd"),
    Mutation("a reply bears another generation than the one that computed it", "worker/src/step.rs",
             "let answer = Answer { status: Status::Ok, flags, t_start_ns, t_done_ns, generation: self.generation };",
             "let answer = Answer { status: Status::Ok, flags, t_start_ns, t_done_ns, generation: self.generation.max(2) };",
             "scenario:swap", "rule_10_each_reply_bears_the_generation_that_computed_it::c_memfd"),
    Mutation("NaN passes the guard", "worker/src/guard.rs",
             "if !self.allow_non_finite\n", "if false && !self.allow_non_finite\n",
             "unit:inferd-worker", "nan_and_infinity_are_refused_unless_allowed"),
    # What the supervisor takes back, and what the C client says.
    Mutation("a request region is handed to a worker unsealed", "daemon/src/supervisor/attach.rs",
             "        region::seal_request(parts.request.as_fd(), parts.geometry.request_bytes, parts.backing)\n"
             "            .map_err(|error| (AttachStatus::BadRegion, error.to_string()))?;\n", "",
             "scenario:hostile", "a_client_that_sealed_or_shrank_its_region_first_gets_no_session"),
    Mutation("a worker is not told that a session has ended", "daemon/src/supervisor/attach.rs",
             "self.tell(worker, &ToWorker::RemoveSession { session: number }, &[]);", "let _ = worker;",
             "scenario:deaths_clients", "four_hundred_clients_die_at_every_step_and_nobody_else_notices"),
    Mutation("the region of an ended session is charged for ever", "daemon/src/supervisor/attach.rs",
             "                sessions.released(ended.session);\n            }\n            held", "            }\n            true | held",
             "scenario:deaths_clients", "four_hundred_clients_die_at_every_step_and_nobody_else_notices"),
    Mutation("a drain does not wait for what is in flight", "daemon/src/supervisor/drain.rs",
             "        if self.models.values().any(serving) {\n            return;\n        }\n", "        let _ = serving;\n",
             "scenario:outcomes", "a_drain_answers_what_runs_and_tells_the_rest_shutting_down::rust_memfd"),
    Mutation("the supervisor forgets who has drained", "daemon/src/supervisor/drain.rs",
             "found.drained = true;", "found.drained = false;",
             "scenario:stops", "a_drain_that_begins_at_any_step_accounts_for_every_request_and_exits_in_time"),
    Mutation("the C client keeps what it has released to itself", "client-c/ring.c",
             "atomic_store_explicit(ifd_req_word(s, IFD_REQ_RELEASED), s->released, memory_order_release);", "",
             "scenario:rules", "rule_6_an_abandoned_wait_changes_nothing_and_its_reply_frees_its_slot::c_memfd"),
    Mutation("the C client falls asleep over its reply", "client-c/wait.c",
             "return !ifd_reply_ready(s) &&", "return (ifd_reply_ready(s) || true) &&",
             "c:test_wait", "a_reply_that_came_before_the_sleep_is_not_slept_over"),
]
