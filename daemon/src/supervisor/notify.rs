//! What the service manager is told, when there is one (`NOTIFY_SOCKET`).
//!
//! One datagram per message, sent without blocking: a manager that does not read misses it, and the
//! loop goes on. The watchdog proves this loop alone; a hung model is the affair of `max_run_ms`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager; silent where there is none.
#[derive(Default)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// How often WATCHDOG is due, if the manager asked for it.
    pub watchdog: Option<Duration>,
    /// The last status sent: the same one is not sent again.
    said: String,
}

impl Notify {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    #[must_use]
    pub fn from_env() -> Notify {
        let var = |name| std::env::var(name).ok();
        let to = var("NOTIFY_SOCKET").and_then(|name| {
            let address = match name.strip_prefix('@') {
                Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name).ok()?,
                None => SocketAddr::from_pathname(&name).ok()?,
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        let ours = var("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let usec = var("WATCHDOG_USEC").and_then(|usec| usec.parse::<u64>().ok()).filter(|usec| *usec > 0 && ours);
        let watchdog = usec.filter(|_| to.is_some()).map(|usec| Duration::from_micros(usec / 2));
        Notify { to, watchdog, said: String::new() }
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.to
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::debug!(%error, "the service manager did not take a notification");
        }
    }

    /// Every configured model is live.
    pub fn ready(&mut self, status: &str) {
        status.clone_into(&mut self.said);
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// A sentence for `systemctl status`.
    pub fn status(&mut self, status: &str) {
        if self.said != status {
            status.clone_into(&mut self.said);
            self.send(&format!("STATUS={}", one_line(status)));
        }
    }

    /// The start may take this much longer.
    pub fn extend_timeout(&self, by: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
    }

    /// The configuration is being read again; [`Notify::ready`] follows.
    pub fn reloading(&self) {
        let usec = super::clock_ns() / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// The end has begun, for this reason, and takes at most so long.
    pub fn stopping(&self, status: &str, within: Duration) {
        let usec = within.as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={usec}\nSTATUS={}", one_line(status)));
    }

    /// The loop turns.
    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }
}

/// A message holds one assignment per line: what comes from a model's error may hold several.
fn one_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}
