//! The socket to the supervisor: records in and out, with their descriptors.
//!
//! The socket is this process's standard input, so that no descriptor number has to be agreed. A
//! record that cannot be read, or an end of file, ends the worker: it never outlives its supervisor.

use inferd_ipc::fdpass;
use inferd_ipc::limits::WORKER_RECORD_BYTES_MAX;
use inferd_ipc::worker_records::{FromWorker, ToWorker, WorkerRecordError, decode, encode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Why the link is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The supervisor is gone.
    #[error("the supervisor closed the socket")]
    Closed,
    /// A record was cut, or is not one.
    #[error("a record from the supervisor cannot be read: {0}; install daemon and worker of the same version")]
    Record(#[from] WorkerRecordError),
    /// A record was cut.
    #[error("a record from the supervisor was cut off")]
    Truncated,
    /// The kernel's.
    #[error("the socket to the supervisor: {0}; inferd-worker is started by inferd, not by hand")]
    Os(#[from] io::Error),
}

/// The socket; see the module.
pub struct Link {
    socket: OwnedFd,
    /// Records that another worker program had received before it became this one; they come first.
    handed: Option<OwnedFd>,
    buffer: Vec<u8>,
}

impl Link {
    /// Takes standard input as the socket. `handed` holds records that come before those of the socket.
    ///
    /// # Errors
    /// EMFILE.
    pub fn from_stdin(handed: Option<OwnedFd>) -> io::Result<Link> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Link { socket, handed, buffer: vec![0; WORKER_RECORD_BYTES_MAX] })
    }

    /// For waiting on it.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits for the next record.
    ///
    /// # Errors
    /// [`LinkError`]: exit.
    pub fn receive(&mut self) -> Result<(ToWorker, Vec<OwnedFd>), LinkError> {
        while let Some(handed) = &self.handed {
            // All of them were sent before this program began, and their sender is gone.
            match fdpass::recv(handed, &mut self.buffer) {
                Ok(got) if got.bytes == 0 => self.handed = None,
                Ok(got) if got.truncated => return Err(LinkError::Truncated),
                Ok(got) => return Ok((decode(&self.buffer[..got.bytes])?, got.fds)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        loop {
            match fdpass::recv(&self.socket, &mut self.buffer) {
                Ok(got) if got.bytes == 0 => return Err(LinkError::Closed),
                Ok(got) if got.truncated => return Err(LinkError::Truncated),
                Ok(got) => return Ok((decode(&self.buffer[..got.bytes])?, got.fds)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLIN)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(LinkError::Closed),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Sends a record, waiting while the supervisor is slow.
    ///
    /// # Errors
    /// [`LinkError`]: exit.
    pub fn send(&self, record: &FromWorker) -> Result<(), LinkError> {
        let bytes = encode(record)?;
        loop {
            match fdpass::send(&self.socket, &bytes, &[]) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLOUT)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(LinkError::Closed),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        poll(&mut [PollFd::new(self.socket.as_fd(), flags)], PollTimeout::NONE)?;
        Ok(())
    }
}
