//! Log lines to systemd's journal, readable as they stand and searchable by field.
//!
//! `journalctl -u inferd` shows the sentence with its values (`live model=go2 generation=3`); each value is also a field
//! of its own (`journalctl -u inferd F_MODEL=go2`). One datagram per line in the journal's native form; a line that the
//! journal does not take is lost, and nobody waits for it.

use inferd_ipc::limits::JOURNAL_VALUE_BYTES_MAX;
use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

const SOCKET: &str = "/run/systemd/journal/socket";

/// Sends events to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// A way to the journal, if there is one here.
    ///
    /// # Errors
    /// There is no journal, or descriptors have run out.
    pub fn open() -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // An empty datagram is ignored, and says whether anybody listens.
        socket.send_to(b"", SOCKET)?;
        Ok(Journal { socket })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // To an address each time: a journal that was restarted is found again.
        let _ = self.socket.send_to(&line(event), SOCKET);
    }
}

fn line(event: &Event<'_>) -> Vec<u8> {
    let mut values = Values::default();
    event.record(&mut values);
    let metadata = event.metadata();
    let priority = match *metadata.level() {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    };
    let mut out = Vec::new();
    put(&mut out, "MESSAGE", &format!("{}{}", values.message, values.text));
    put(&mut out, "PRIORITY", priority);
    put(&mut out, "SYSLOG_IDENTIFIER", "inferd");
    put(&mut out, "TARGET", metadata.target());
    for (name, value) in &values.fields {
        put(&mut out, name, value);
    }
    out
}

/// What an event holds: its sentence, the values as text behind it, and the values as fields.
#[derive(Default)]
struct Values {
    message: String,
    text: String,
    fields: Vec<(String, String)>,
}

impl Values {
    fn add(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        let _ = write!(self.text, " {}={value}", field.name());
        self.fields.push((field_name(field.name()), value));
    }
}

impl Visit for Values {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

/// The journal's names are capitals, digits and `_`; the prefix keeps ours apart from its own.
fn field_name(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("F_{}", name.chars().map(letter).collect::<String>())
}

/// One field in the journal's native form: a value of several lines is preceded by its length.
fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(JOURNAL_VALUE_BYTES_MAX)];
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt;

    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            *self.0.lock().expect("not poisoned") = line(event);
        }
    }

    #[test]
    fn a_line_is_a_sentence_with_its_values_and_each_value_is_a_field() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(Kept(Arc::clone(&kept)));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(model = "go2", generation = 3, error = %"two\nlines", "not served");
        });
        let line = kept.lock().expect("not poisoned").clone();
        let mut want = b"MESSAGE\n\x2b\0\0\0\0\0\0\0not served model=go2 generation=3 error=two\nlines\n".to_vec();
        want[8] = "not served model=go2 generation=3 error=two\nlines".len() as u8;
        want.extend_from_slice(b"PRIORITY=4\nSYSLOG_IDENTIFIER=inferd\nTARGET=inferd::journal::tests\n");
        want.extend_from_slice(b"F_MODEL=go2\nF_GENERATION=3\nF_ERROR\n\x09\0\0\0\0\0\0\0two\nlines\n");
        assert_eq!(String::from_utf8_lossy(&line), String::from_utf8_lossy(&want));
    }

    #[test]
    fn an_endless_value_is_cut_between_two_characters() {
        let mut out = Vec::new();
        put(&mut out, "F_X", &"é".repeat(JOURNAL_VALUE_BYTES_MAX));
        assert_eq!(out.len(), "F_X=\n".len() + JOURNAL_VALUE_BYTES_MAX);
        assert!(String::from_utf8(out).is_ok());
    }
}
