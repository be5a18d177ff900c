//! What came back: tickets, outcomes, and the reply with its tensors.
//!
//! A [`Reply`] borrows its session and stands for one reply slot, which is given back when it is
//! dropped. Tensors are exposed only when the status says that the output is valid, and only as
//! copies, elements or a raw pointer: no reference to memory that a peer may write is ever formed.

use crate::element::{Element, check_dtype, check_whole};
use crate::error::Error;
use crate::session::Session;
use inferd_ipc::layout::{REPLY_LATE, REPLY_STATE_RESET, ReplyHeader, Status};
use inferd_ipc::signature::TensorSpec;
use std::fmt;
use zerocopy::IntoBytes;

/// One submitted request: which attach of the session (`epoch`), and the request's number within it.
/// A ticket of an earlier attach ends in [`Error::DaemonLost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    pub(crate) epoch: u32,
    pub(crate) number: u64,
}

impl Ticket {
    /// Counts the attaches of this session, from 0: which one the request was submitted in.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Number of the request within its attach, from 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ticket {}.{}", self.epoch, self.number)
    }
}

/// What a reply says beside its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyInfo {
    /// The request that this answers.
    pub ticket: Ticket,
    /// What it ended in. Only `Ok` has output.
    pub status: Status,
    /// The run ended after the deadline; the fallback may already have acted.
    pub late: bool,
    /// This step ran on fresh state.
    pub state_reset: bool,
    /// The caller's label.
    pub observation_id: u64,
    /// The generation that computed, or refused, this.
    pub generation: u32,
    /// `latest`: requests that this one superseded since the previous reply; saturates.
    pub skipped: u32,
    /// CLOCK_MONOTONIC when the request was submitted, in nanoseconds; 0 if that is 256 requests ago or more.
    pub t_submit_ns: u64,
    /// CLOCK_MONOTONIC when the worker took the request, in nanoseconds.
    pub t_start_ns: u64,
    /// CLOCK_MONOTONIC when the output was ready, in nanoseconds.
    pub t_done_ns: u64,
    /// Steps of this session that ended `ok` so far: the recurrent state's version.
    pub step: u64,
}

impl ReplyInfo {
    /// Whether the output is valid.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status == Status::Ok
    }

    /// Checks the status number, the only field that is not free.
    pub(crate) fn from_header(header: &ReplyHeader, epoch: u32, t_submit_ns: u64) -> Result<ReplyInfo, Error> {
        let status =
            Status::from_number(header.status).ok_or_else(|| Error::protocol("a reply with an unknown status"))?;
        Ok(ReplyInfo {
            ticket: Ticket { epoch, number: header.request },
            status,
            late: header.flags & REPLY_LATE != 0,
            state_reset: header.flags & REPLY_STATE_RESET != 0,
            observation_id: header.observation_id,
            generation: header.generation,
            skipped: header.skipped,
            t_submit_ns,
            t_start_ns: header.t_start_ns,
            t_done_ns: header.t_done_ns,
            step: header.step,
        })
    }
}

/// What a ticket ended in.
#[derive(Debug)]
pub enum Outcome<'s> {
    /// A reply; its status says whether there is output.
    Reply(Reply<'s>),
    /// `latest`: the worker took this newer request instead. Not run, state not advanced.
    Superseded {
        /// The newer request, which has a reply of its own.
        by: Ticket,
    },
}

impl Outcome<'_> {
    /// The name used in tables and JSON: a [`Status`] name, or `superseded`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Reply(reply) => reply.status().name(),
            Outcome::Superseded { .. } => "superseded",
        }
    }
}

/// A reply in shared memory. Dropping it releases its slot.
#[derive(Debug)]
pub struct Reply<'s> {
    pub(crate) session: &'s mut Session,
    pub(crate) number: u64,
    pub(crate) info: ReplyInfo,
}

impl Reply<'_> {
    /// What it ended in.
    #[must_use]
    pub fn status(&self) -> Status {
        self.info.status
    }

    /// Whether the output is valid.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.info.is_ok()
    }

    /// Everything beside the tensors.
    #[must_use]
    pub fn header(&self) -> &ReplyInfo {
        &self.info
    }

    /// The run ended after the deadline.
    #[must_use]
    pub fn late(&self) -> bool {
        self.info.late
    }

    /// This step ran on fresh state.
    #[must_use]
    pub fn state_reset(&self) -> bool {
        self.info.state_reset
    }

    /// Copies output `i` whole, row-major.
    ///
    /// # Errors
    /// [`Error::NoOutput`] unless the status is ok; [`Error::Tensor`] when there is no such output, or `to`
    /// has another dtype or length (`u8` takes the raw bytes of any tensor).
    pub fn copy_output<T: Element>(&self, i: usize, to: &mut [T]) -> Result<(), Error> {
        check_whole::<T>(self.output(i)?, i, to.len())?;
        self.session.copy_output_at(self.number, i, 0, to.as_mut_bytes());
        Ok(())
    }

    /// Element `k` of output `i`, counted row-major.
    ///
    /// # Errors
    /// As [`Reply::copy_output`]; also when the tensor has no element `k`.
    pub fn element<T: Element>(&self, i: usize, k: usize) -> Result<T, Error> {
        let tensor = self.output(i)?;
        check_dtype::<T>(tensor, i)?;
        let at = k.checked_mul(size_of::<T>()).filter(|at| (*at as u64) < tensor.bytes());
        let at = at.ok_or(Error::Tensor { index: i, what: "it has fewer elements than that" })?;
        let mut value = T::new_zeroed();
        self.session.copy_output_at(self.number, i, at, value.as_mut_bytes());
        Ok(value)
    }

    /// Where output `i` lies, 64-byte aligned, and its length in bytes. Valid until this reply is dropped; the daemon
    /// does not write there before that. Reading through the pointer is the caller's `unsafe`: no reference should be
    /// formed where the daemon is not trusted.
    ///
    /// # Errors
    /// [`Error::NoOutput`] unless the status is ok; [`Error::Tensor`] when there is no such output.
    pub fn as_ptr(&self, i: usize) -> Result<(*const u8, usize), Error> {
        let bytes = self.output(i)?.bytes() as usize;
        Ok((self.session.output_ptr(self.number, i), bytes))
    }

    /// Gives the slot back; the same as dropping.
    pub fn release(self) {}

    fn output(&self, i: usize) -> Result<&TensorSpec, Error> {
        self.session.check_process()?;
        if !self.is_ok() {
            return Err(Error::NoOutput { status: self.info.status });
        }
        let tensor = self.session.signature().outputs.get(i);
        tensor.ok_or(Error::Tensor { index: i, what: "the model has no such output; see Session::signature" })
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        self.session.release_claimed();
    }
}
