//! `backend = "auto"`: what the first backend cannot load goes on to the program that has the second one.
//!
//! The process stays the same, with its number and its socket: it becomes the other program (exec), which finds the
//! records that have come so far, with their descriptors, in a socket that it inherits. So neither the supervisor nor a
//! client knows the difference. Only what another backend can mend is passed on: a missing operator, a shape that depends
//! on values, a panic; not a damaged file, a contradiction in the manifest or a recording that is not reproduced.

use crate::control::{AUTO, refuse};
use crate::link::{Link, LinkError};
use crate::{Fault, ModelError};
use inferd_ipc::fdpass;
use inferd_ipc::worker_records::{FromWorker, ModelSpec, ToWorker, encode};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The backend that is tried first.
pub(crate) const FIRST: &str = "tract";
/// The program that is tried next, beside this one.
const NEXT: &str = "inferd-worker-ort";
/// The argument before the number of the inherited descriptor.
const ARGUMENT: &str = "--handed";

/// The descriptors of the first record, kept while a load is tried; nothing unless the spec leaves the choice.
pub(crate) struct Spare(Option<Vec<OwnedFd>>);

/// The socket with the records that this program inherited, if it did.
pub(crate) fn handed() -> Option<OwnedFd> {
    let mut arguments = std::env::args().skip(1);
    let number = arguments.next().filter(|a| a == ARGUMENT).and_then(|_| arguments.next())?;
    let number: RawFd = number.parse().ok().filter(|n| *n > 2)?;
    // SAFETY: this program was started with the number of a descriptor made for it, which nothing else here knows.
    let handed = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&handed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_ok().then_some(handed)
}

impl Spare {
    pub(crate) fn of(spec: &ModelSpec, fds: &[OwnedFd]) -> io::Result<Spare> {
        // Who was passed a model does not pass it on.
        let asks = spec.backend == AUTO && std::env::args().nth(1).is_none_or(|a| a != ARGUMENT);
        let fds = asks.then(|| fds.iter().map(OwnedFd::try_clone).collect());
        Ok(Spare(fds.transpose()?))
    }

    /// Whether another backend may load what this one could not.
    pub(crate) fn takes(&self, error: &ModelError) -> bool {
        self.0.is_some() && matches!(error.fault, Fault::Unsupported | Fault::Signature | Fault::Panic)
    }

    /// Becomes the other program; comes back only where that is not possible, with the refusal told.
    pub(crate) fn pass_on(
        self,
        link: &Link,
        spec: ModelSpec,
        early: Vec<(ToWorker, Vec<OwnedFd>)>,
        error: &ModelError,
    ) -> Result<i32, LinkError> {
        let program = std::env::current_exe()?.with_file_name(NEXT);
        if !is_executable(&program) {
            let what = format!("{error}; ONNX Runtime was not tried: {} is not there (make ort)", program.display());
            return refuse(link, &what);
        }
        let message = format!("backend \"auto\": {FIRST} cannot serve it, ONNX Runtime is tried: {error}");
        link.send(&FromWorker::Warning { message })?;
        let (ours, theirs) = fdpass::socketpair()?;
        let first = (ToWorker::Load(spec), self.0.unwrap_or_default());
        for (record, fds) in std::iter::once(first).chain(early) {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            fdpass::send(&ours, &encode(&record)?, &fds)?;
        }
        // The reader sees the end after the last record.
        drop(ours);
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(io::Error::from)?;
        let failed = Command::new(&program).arg(ARGUMENT).arg(theirs.as_raw_fd().to_string()).exec();
        refuse(link, &format!("{error}; ONNX Runtime was not tried: {} cannot be started: {failed}", program.display()))
    }
}

fn is_executable(program: &Path) -> bool {
    nix::unistd::access(program, nix::unistd::AccessFlags::X_OK).is_ok() && program.is_file()
}
