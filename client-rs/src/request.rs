//! A request while it is being written: tensors in place, then submit.
//!
//! The slot lies in the request region, which this process alone writes, so inputs may be handed out
//! as slices. Dropping a request without submitting it publishes nothing.

use crate::clock::{as_ns, now_ns};
use crate::element::{Element, check_dtype, check_sized};
use crate::error::Error;
use crate::reply::Ticket;
use crate::session::Session;
use inferd_ipc::requester::RequestMeta;
use inferd_ipc::signature::TensorSpec;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// A free request slot of a session. Its bytes are what an earlier request left there: write every input.
#[derive(Debug)]
pub struct Request<'s> {
    session: &'s mut Session,
    meta: RequestMeta,
    deadline_in_ns: Option<u64>,
    submitted: bool,
}

impl<'s> Request<'s> {
    pub(crate) fn new(session: &'s mut Session) -> Request<'s> {
        Request { session, meta: RequestMeta::default(), deadline_in_ns: None, submitted: false }
    }

    /// The bytes of input `i`, 64-byte aligned, row-major, to be written in place.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the model has no such input.
    pub fn input_mut(&mut self, i: usize) -> Result<&mut [u8], Error> {
        self.input(i)?;
        Ok(self.session.input_mut(i))
    }

    /// The elements of input `i`, row-major, to be written in place.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is no such input, or its dtype is another one.
    pub fn input_as_mut<T: Element>(&mut self, i: usize) -> Result<&mut [T], Error> {
        check_dtype::<T>(self.input(i)?, i)?;
        let bytes = self.session.input_mut(i);
        <[T]>::mut_from_bytes(bytes).map_err(|_| Error::Tensor { index: i, what: "its bytes are not whole elements" })
    }

    /// Copies `from` into input `i`.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is no such input, or `from` has another dtype or length (`u8` gives the
    /// raw bytes of any tensor).
    pub fn write<T: Element>(&mut self, i: usize, from: &[T]) -> Result<(), Error> {
        check_sized::<T>(self.input(i)?, self.session.input_bytes(i), i, from.len())?;
        self.session.input_mut(i).copy_from_slice(from.as_bytes());
        Ok(())
    }

    /// The caller's own label; comes back in the reply. Default 0.
    #[must_use]
    pub fn observation_id(mut self, id: u64) -> Request<'s> {
        self.meta.observation_id = id;
        self
    }

    /// The run shall not begin later than this after submission; else the outcome is `expired`.
    #[must_use]
    pub fn deadline_in(mut self, after: Duration) -> Request<'s> {
        self.deadline_in_ns = Some(as_ns(after));
        self
    }

    /// The run shall not begin after this moment of CLOCK_MONOTONIC, in nanoseconds ([`crate::now_ns`]); 0 for no deadline.
    #[must_use]
    pub fn deadline_ns(mut self, at_ns: u64) -> Request<'s> {
        self.meta.deadline_ns = at_ns;
        self.deadline_in_ns = None;
        self
    }

    /// Steps of the previous action chunk that were executed: a label for chunked policies. Default 0.
    #[must_use]
    pub fn executed(mut self, steps: u32) -> Request<'s> {
        self.meta.executed = steps;
        self
    }

    /// Run this step on fresh state; carried into the next request that runs if this one is skipped.
    #[must_use]
    pub fn reset(mut self) -> Request<'s> {
        self.meta.reset = true;
        self
    }

    /// Publishes the request. Never blocks; rings the worker only if it sleeps.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::DaemonLost`] when the model stopped serving since [`Session::request`], and
    /// [`Error::WrongProcess`]: nothing was published then.
    pub fn submit(mut self) -> Result<Ticket, Error> {
        self.session.check_process()?;
        self.meta.t_submit_ns = now_ns();
        if let Some(after) = self.deadline_in_ns {
            self.meta.deadline_ns = self.meta.t_submit_ns.saturating_add(after).max(1);
        }
        let ticket = self.session.publish(&self.meta)?;
        self.submitted = true;
        Ok(ticket)
    }

    fn input(&self, i: usize) -> Result<&TensorSpec, Error> {
        self.session.check_process()?;
        let tensor = self.session.signature().inputs.get(i);
        tensor.ok_or(Error::Tensor { index: i, what: "the model has no such input; see Session::signature" })
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if !self.submitted {
            self.session.cancel();
        }
    }
}
