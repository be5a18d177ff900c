//! What a trespassing model does (`src/bin/trespass`), by number: the element of its input.

/// How a deed of a confined model ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is answered with EPERM, which is the model's own error.
    Refused,
    /// It ends the worker.
    Killed,
}

/// A deed: its name and its end. Any other number is no deed at all.
pub type Deed = (&'static str, End);

/// The number of the first deed: warm-ups fill inputs with smaller ones.
pub const FIRST: u32 = 100;
/// Added to a deed's number: a thread does it that the model started while it loaded.
pub const BY_OLD_THREAD: u32 = 1000;

/// All deeds, numbered from [`FIRST`].
pub const DEEDS: [Deed; 24] = [
    ("open", End::Refused),
    ("open_for_writing", End::Refused),
    ("openat2", End::Refused),
    ("list_a_folder", End::Refused),
    ("unlink", End::Refused),
    ("rename", End::Refused),
    ("change_a_mode", End::Refused),
    ("memfd", End::Refused),
    ("tcp", End::Refused),
    ("udp", End::Refused),
    ("unix_socket", End::Refused),
    ("socketpair", End::Refused),
    ("netlink", End::Refused),
    ("fork", End::Refused),
    ("signal_the_supervisor", End::Refused),
    ("keep_living_without_it", End::Refused),
    ("change_a_limit", End::Refused),
    ("executable_memory", End::Refused),
    ("io_uring", End::Refused),
    ("perf", End::Refused),
    ("ptrace", End::Killed),
    ("read_the_supervisor", End::Killed),
    ("exec", End::Killed),
    ("bpf", End::Killed),
];

/// The number of a deed.
///
/// # Panics
/// When there is none of that name.
#[must_use]
pub fn number(name: &str) -> u32 {
    DEEDS.iter().position(|(known, _)| *known == name).expect("a deed") as u32 + FIRST
}
