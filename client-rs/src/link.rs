//! One attach of a session: its mapped regions, its sockets, and where its tensors lie.
//!
//! A thin layer over `Requester` that adds what needs a descriptor (ringing, the pollable end, the
//! hang-up) and the signature's offsets. A lost link stays readable until it is replaced.

use inferd_ipc::fdpass;
use inferd_ipc::layout::{Backing, Queue, ReplyHeader, ServingState};
use inferd_ipc::mem::Mem;
use inferd_ipc::requester::{RequestMeta, Requester, Ring};
use inferd_ipc::signature::{Signature, TensorSpec, slot_offsets};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Offset within the slot and bytes of each tensor.
#[derive(Debug)]
struct Places(Box<[(u64, u64)]>);

impl Places {
    fn new(tensors: &[TensorSpec]) -> Places {
        let (offsets, _) = slot_offsets(tensors);
        Places(offsets.into_iter().zip(tensors.iter().map(TensorSpec::bytes)).collect())
    }
}

/// What one attach gave; see the module.
#[derive(Debug)]
pub(crate) struct Link {
    requester: Requester,
    /// Handles on both mappings, for [`Link::forget_mappings`] and [`Link::damaged`].
    regions: [Mem; 2],
    socket: OwnedFd,
    doorbell: OwnedFd,
    inputs: Places,
    outputs: Places,
    armed: bool,
    /// Named segments, which another process may truncate.
    guarded: bool,
    pub(crate) signature: Signature,
    pub(crate) generation: u32,
    pub(crate) session: u64,
    pub(crate) spin_us: u32,
    pub(crate) daemon_version: String,
    pub(crate) backing: Backing,
}

/// The parts of a link, as the handshake collects them.
pub(crate) struct Parts {
    pub(crate) requester: Requester,
    pub(crate) regions: [Mem; 2],
    pub(crate) socket: OwnedFd,
    pub(crate) doorbell: OwnedFd,
    pub(crate) signature: Signature,
    pub(crate) generation: u32,
    pub(crate) session: u64,
    pub(crate) spin_us: u32,
    pub(crate) daemon_version: String,
    pub(crate) backing: Backing,
}

impl Link {
    pub(crate) fn new(parts: Parts) -> Link {
        Link {
            requester: parts.requester,
            regions: parts.regions,
            socket: parts.socket,
            doorbell: parts.doorbell,
            inputs: Places::new(&parts.signature.inputs),
            outputs: Places::new(&parts.signature.outputs),
            armed: false,
            guarded: parts.backing == Backing::Posix,
            signature: parts.signature,
            generation: parts.generation,
            session: parts.session,
            spin_us: parts.spin_us,
            daemon_version: parts.daemon_version,
            backing: parts.backing,
        }
    }

    /// Bytes of input `i`, which exists.
    #[inline]
    pub(crate) fn input_bytes(&self, i: usize) -> u64 {
        self.inputs.0[i].1
    }

    /// Bytes of output `i`, which exists.
    #[inline]
    pub(crate) fn output_bytes(&self, i: usize) -> u64 {
        self.outputs.0[i].1
    }

    pub(crate) fn slots(&self) -> u32 {
        self.requester.geometry().slots
    }

    pub(crate) fn queue(&self) -> Queue {
        self.requester.geometry().queue()
    }

    #[inline]
    pub(crate) fn state(&mut self) -> ServingState {
        self.requester.state()
    }

    /// Prepares the next request's slot; false when all are in flight (`in_order`).
    #[inline]
    pub(crate) fn begin(&mut self) -> bool {
        self.requester.begin()
    }

    /// The bytes of input `i` (which exists) in the slot that was begun.
    #[inline]
    pub(crate) fn input_mut(&mut self, i: usize) -> &mut [u8] {
        let (offset, bytes) = self.inputs.0[i];
        self.requester.input_mut(offset, bytes)
    }

    /// Publishes the request that was begun, and rings if the worker sleeps. Returns its number.
    #[inline]
    pub(crate) fn publish(&mut self, meta: &RequestMeta) -> u64 {
        let (number, ring) = self.requester.publish(meta);
        if ring == Ring::Socket {
            fdpass::ring(&self.doorbell);
        }
        number
    }

    /// Whether spinning for the reply would keep the worker from giving one: it waits for the CPU that we run on.
    #[inline]
    pub(crate) fn in_the_workers_way(&self) -> bool {
        self.requester.in_its_way()
    }

    /// Whether the next reply is there.
    #[inline]
    pub(crate) fn reply_ready(&self) -> bool {
        self.requester.reply_ready()
    }

    /// The next reply's header, once it is there.
    #[inline]
    pub(crate) fn poll(&mut self) -> Option<ReplyHeader> {
        self.requester.poll().map(|(_, header)| header)
    }

    /// Copies bytes of output `i` (which exists) of a held reply, from byte `at` on.
    #[inline]
    pub(crate) fn copy_output(&self, reply: u64, i: usize, at: usize, to: &mut [u8]) {
        let (offset, bytes) = self.outputs.0[i];
        assert!(at as u64 + to.len() as u64 <= bytes, "a copy stays within its tensor");
        self.requester.read(reply, offset + at as u64, to);
    }

    /// Where output `i` (which exists) of a held reply lies.
    pub(crate) fn output_ptr(&self, reply: u64, i: usize) -> *const u8 {
        let (offset, bytes) = self.outputs.0[i];
        self.requester.output_pointer(reply, offset, bytes)
    }

    /// Tells the worker how many replies are released, if that has changed; rings if it sleeps for want of slots.
    #[inline]
    pub(crate) fn released(&mut self, count: u64) {
        if count != self.requester.released() && self.requester.release(count) == Ring::Socket {
            fdpass::ring(&self.doorbell);
        }
    }

    /// Sleeps until a reply or another state comes, or for `timeout`; spurious returns are possible.
    pub(crate) fn sleep(&mut self, timeout: Duration) {
        self.armed = false;
        // The state is looked at anew: another one than at the last look does not let us sleep.
        self.requester.state();
        self.requester.sleep(Some(timeout));
    }

    /// Whether the session's socket has ended. One system call.
    pub(crate) fn hung_up(&self) -> bool {
        fdpass::hung_up(&self.socket)
    }

    /// Whether a page of a named segment vanished.
    #[inline]
    pub(crate) fn damaged(&self) -> bool {
        self.guarded && self.regions.iter().any(Mem::damaged)
    }

    pub(crate) fn poll_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    /// Asks the worker to ring the doorbell socket; false when a reply is there already, and nothing is armed.
    pub(crate) fn arm_poll(&mut self) -> bool {
        while !fdpass::drain(&self.doorbell) {}
        self.requester.state();
        self.armed = self.requester.arm_socket();
        self.armed
    }

    pub(crate) fn disarm_poll(&mut self) {
        if self.armed {
            self.armed = false;
            self.requester.wake_up();
        }
    }

    /// In a forked child, where the mappings are absent: they must not be unmapped when this is dropped.
    pub(crate) fn forget_mappings(&self) {
        for region in &self.regions {
            std::mem::forget(region.clone());
        }
    }
}
