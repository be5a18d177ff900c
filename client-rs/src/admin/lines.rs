//! Lines from the control socket, and the descriptors that came beside them.
//!
//! A descriptor arrives with the first byte of its line, and the kernel never reads on past the message that brought it:
//! so it belongs to the line that holds the last byte of that read. That binds it to one answer, also where an answer
//! that nobody waits for any more comes first. Lines and waits are bounded; descriptors that nobody takes are closed.

use super::gone;
use crate::clock::now_ns;
use crate::dirs::CONTROL_SOCKET;
use crate::error::Error;
use inferd_ipc::fdpass;
use inferd_ipc::limits::CONTROL_LINE_BYTES_MAX;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A line without its end.
#[derive(Debug)]
pub(super) struct Line {
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
    /// What came beside it.
    pub(super) fds: Vec<OwnedFd>,
}

/// What has been received and not been taken.
#[derive(Debug, Default)]
pub(super) struct Lines {
    received: Vec<u8>,
    /// Each with the place in `received` of a byte of its line.
    fds: Vec<(usize, OwnedFd)>,
}

impl Lines {
    /// The next line.
    ///
    /// # Errors
    /// [`Error::Timeout`] at `limit_ns`, [`Error::DaemonLost`], [`Error::Protocol`] for a line over the limit.
    pub(super) fn next(&mut self, stream: &UnixStream, limit_ns: u64, timeout: Duration) -> Result<Line, Error> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.received[searched..].iter().position(|b| *b == b'\n') {
                return Ok(self.take(searched + end));
            }
            searched = self.received.len();
            if searched > CONTROL_LINE_BYTES_MAX {
                return Err(Error::protocol("an answer over the limit of a line"));
            }
            let left = Duration::from_nanos(limit_ns.saturating_sub(now_ns()));
            if left.is_zero() {
                return Err(Error::Timeout { model: CONTROL_SOCKET.into(), after: timeout });
            }
            stream.set_read_timeout(Some(left)).map_err(|e| Error::os("setting a timeout", e))?;
            let mut buffer = [0; 16 << 10];
            match fdpass::recv(stream, &mut buffer) {
                Ok(got) if got.bytes == 0 => return Err(gone()),
                Ok(got) => self.push(&buffer[..got.bytes], got.fds),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Err(gone()),
                Err(e) => return Err(Error::os("waiting for an answer", e)),
            }
        }
    }

    fn push(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) {
        self.received.extend_from_slice(bytes);
        let last = self.received.len() - 1;
        self.fds.extend(fds.into_iter().map(|fd| (last, fd)));
    }

    fn take(&mut self, end: usize) -> Line {
        let mut bytes: Vec<u8> = self.received.drain(..=end).collect();
        bytes.pop();
        let (mine, later): (Vec<_>, Vec<_>) = self.fds.drain(..).partition(|(at, _)| *at <= end);
        self.fds = later.into_iter().map(|(at, fd)| (at - end - 1, fd)).collect();
        Line { bytes, fds: mine.into_iter().map(|(_, fd)| fd).collect() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    const LIMIT: u64 = u64::MAX;

    fn next(lines: &mut Lines, from: &UnixStream) -> (String, usize) {
        let line = lines.next(from, LIMIT, Duration::from_secs(5)).unwrap();
        (String::from_utf8(line.bytes).unwrap(), line.fds.len())
    }

    #[test]
    fn a_descriptor_belongs_to_its_line_whatever_stands_before_and_behind() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let brought = std::fs::File::open("/dev/null").unwrap();
        here.write_all(b"stale\n").unwrap();
        fdpass::send(&here, b"dump\n", &[brought.as_fd()]).unwrap();
        here.write_all(b"after\n").unwrap();
        let mut lines = Lines::default();
        let got: Vec<_> = (0..3).map(|_| next(&mut lines, &there)).collect();
        assert_eq!(got, [("stale".into(), 0), ("dump".into(), 1), ("after".into(), 0)]);
    }

    #[test]
    fn a_descriptor_comes_with_a_line_that_is_longer_than_one_read() {
        let (here, there) = UnixStream::pair().unwrap();
        let long = "x".repeat(100_000) + "\n";
        let sender = std::thread::spawn(move || {
            let brought = std::fs::File::open("/dev/null").unwrap();
            fdpass::send(&here, &long.as_bytes()[..1], &[brought.as_fd()]).unwrap();
            (&here).write_all(&long.as_bytes()[1..]).unwrap();
            (&here).write_all(b"next\n").unwrap();
        });
        let mut lines = Lines::default();
        let (text, fds) = next(&mut lines, &there);
        assert_eq!((text.len(), fds), (100_000, 1));
        assert_eq!(next(&mut lines, &there), ("next".into(), 0));
        sender.join().unwrap();
        assert!(matches!(lines.next(&there, LIMIT, Duration::ZERO), Err(Error::DaemonLost { .. })));
    }

    #[test]
    fn a_silent_daemon_is_waited_for_no_longer_than_asked() {
        let (_here, there) = UnixStream::pair().unwrap();
        let waited = Lines::default().next(&there, now_ns() + 1_000_000, Duration::from_millis(1));
        assert!(matches!(waited, Err(Error::Timeout { .. })));
    }
}
