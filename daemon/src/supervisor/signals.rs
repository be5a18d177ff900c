//! SIGTERM, SIGINT and SIGHUP, as something the event loop can wait for.
//!
//! A handler raises a flag and writes a byte; everything else happens in the loop. Several signals of
//! one kind between two turns count as one.

use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The signals that came since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// SIGTERM or SIGINT.
    pub terminate: bool,
    /// SIGHUP.
    pub reload: bool,
}

/// The daemon's signal handlers.
pub struct Signals {
    pipe: UnixStream,
    terminate: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// The kernel's, when descriptors have run out.
    pub fn install() -> io::Result<Signals> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let (signals, write_end) = Signals::unheard()?;
        let Signals { terminate, reload, .. } = &signals;
        for (signal, flag) in [(SIGTERM, terminate), (SIGINT, terminate), (SIGHUP, reload)] {
            // Flag first: handlers run in the order of their registration, and the byte makes the loop look.
            signal_hook::flag::register(signal, Arc::clone(flag))?;
            signal_hook::low_level::pipe::register(signal, write_end.try_clone()?)?;
        }
        Ok(signals)
    }

    /// Without a handler, which would be the whole process's, and the end that one writes to.
    pub(super) fn unheard() -> io::Result<(Signals, UnixStream)> {
        let (pipe, write_end) = UnixStream::pair()?;
        let (terminate, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        Ok((Signals { pipe, terminate, reload }, write_end))
    }

    /// Takes what arrived.
    pub fn take(&self) -> Arrived {
        let mut bytes = [0; 64];
        while matches!(recv(self.pipe.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT), Ok(count) if count == bytes.len())
        {
        }
        Arrived {
            terminate: self.terminate.swap(false, Ordering::Relaxed),
            reload: self.reload.swap(false, Ordering::Relaxed),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
