//! Tells a forked child from the process that attached.
//!
//! A session's mappings are absent in a forked child (MADV_DONTFORK): touching them there is a
//! SIGSEGV, and unmapping them would hit whatever lies there now. So every call asks first.

use crate::error::Error;
use inferd_ipc::fork::ForkMark;

/// Made by the process that attaches.
#[derive(Debug)]
pub(crate) struct ForkGuard {
    pid: u32,
    /// Asks without a system call, where the kernel can.
    mark: Option<ForkMark>,
}

impl ForkGuard {
    /// Remembers this process.
    pub(crate) fn new() -> ForkGuard {
        ForkGuard { pid: std::process::id(), mark: ForkMark::new() }
    }

    /// Whether this is a child of the process that attached.
    #[inline]
    pub(crate) fn in_child(&self) -> bool {
        self.mark.as_ref().map_or_else(|| std::process::id() != self.pid, ForkMark::in_child)
    }

    /// [`Error::WrongProcess`] in a child.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.in_child() { Err(Error::WrongProcess { attached_pid: self.pid }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_attached_passes_and_a_child_is_told_whose_session_it_is() {
        assert!(ForkGuard::new().check().is_ok());
        assert!(matches!(ForkGuard { pid: 1, mark: None }.check(), Err(Error::WrongProcess { attached_pid: 1 })));
    }
}
