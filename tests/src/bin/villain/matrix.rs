//! Everything that can be tried on a region by whoever holds its descriptor and a mapping.
//!
//! `matrix phase=before|after`: before MAPPED, or after READY, every attempt in turn on the request and on the reply
//! region. The answer has the errno of each, 0 where it worked. What worked on the request region before MAPPED cost the
//! attach, so each attempt there has an attach of its own, and the answer says what READY said to it.

use crate::Deed;
use inferd_ipc::attach::{AttachStatus, Attached};
use inferd_tests::raw::{RawAttach, RawSession, wish};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open};
use nix::sys::stat::Mode;
use serde_json::{Map, Value, json};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::null_mut;

/// An attempt: on a descriptor, with the region's mapping and its length.
type Attempt = fn(&OwnedFd, *mut libc::c_void, usize) -> nix::Result<()>;

const MADV_REMOVE: i32 = 9;

fn mapped(fd: &OwnedFd, bytes: usize, protection: i32, then: Option<i32>) -> nix::Result<()> {
    // SAFETY: a fresh shared mapping wherever the kernel likes; nobody refers to it before it is unmapped below.
    let at = unsafe { libc::mmap(null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: the mapping just made, whole.
    let more = then.map_or(0, |protection| unsafe { libc::mprotect(at, bytes, protection) });
    let result = Errno::result(more).map(drop);
    if result.is_ok() {
        // SAFETY: writable by what succeeded above; one byte within it. A page that is gone would raise SIGBUS here.
        unsafe { at.cast::<u8>().write_volatile(0x55) };
    }
    // SAFETY: as above; it is not used any more.
    unsafe { libc::munmap(at, bytes) };
    result
}

fn seal(fd: &OwnedFd, flags: SealFlag) -> nix::Result<()> {
    fcntl(fd.as_fd(), FcntlArg::F_ADD_SEALS(flags)).map(drop)
}

/// Names and deeds; `mprotect_own` is the mapping that the session itself uses.
const ATTEMPTS: [(&str, Attempt); 13] = [
    ("shrink", |fd, _, _| nix::unistd::ftruncate(fd, 0)),
    ("grow", |fd, _, bytes| nix::unistd::ftruncate(fd, 2 * bytes as i64)),
    ("punch", |fd, _, _| {
        fallocate(fd, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 4096)
    }),
    ("write", |fd, _, _| nix::sys::uio::pwrite(fd, &[0x55], 0).map(drop)),
    ("map_writable", |fd, _, bytes| mapped(fd, bytes, libc::PROT_READ | libc::PROT_WRITE, None)),
    ("mprotect_new", |fd, _, bytes| mapped(fd, bytes, libc::PROT_READ, Some(libc::PROT_READ | libc::PROT_WRITE))),
    ("mprotect_own", |_, at, bytes| {
        // SAFETY: the session's own mapping, whole; its bytes stay.
        Errno::result(unsafe { libc::mprotect(at, bytes, libc::PROT_READ | libc::PROT_WRITE) }).map(drop)
    }),
    ("madv_remove", |_, at, _| {
        // SAFETY: the first page of the session's own mapping; at worst it reads as zeroes.
        Errno::result(unsafe { libc::madvise(at, 4096, MADV_REMOVE) }).map(drop)
    }),
    ("reopen_writable", |fd, _, _| {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map(drop)
    }),
    ("reopen_truncate", |fd, _, _| {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        open(path.as_str(), OFlag::O_RDWR | OFlag::O_TRUNC | OFlag::O_CLOEXEC, Mode::empty()).map(drop)
    }),
    ("chmod", |fd, _, _| nix::sys::stat::fchmod(fd, Mode::S_IRUSR | Mode::S_IWUSR)),
    ("seal_write", |fd, _, _| seal(fd, SealFlag::F_SEAL_WRITE)),
    ("seal_seal", |fd, _, _| seal(fd, SealFlag::F_SEAL_SEAL)),
];

fn errno(result: nix::Result<()>) -> i32 {
    result.err().map_or(0, |e| e as i32)
}

fn regions(s: &RawSession) -> [(&'static str, &OwnedFd, *mut libc::c_void, usize); 2] {
    let at = |mem: &inferd_ipc::mem::Mem| mem.word(0).as_ptr().cast();
    [
        ("request", &s.request_fd, at(&s.requests), s.requests.bytes()),
        ("reply", &s.reply_fd, at(&s.replies), s.replies.bytes()),
    ]
}

fn begin(deed: &Deed) -> (RawAttach, Attached, Vec<OwnedFd>) {
    let raw = RawAttach::connect(&deed.dir).expect("the daemon listens");
    let (attached, fds) = raw.ask(&wish("m", 4, None));
    assert_eq!(attached.status, AttachStatus::Ok as u32, "attached");
    (raw, attached, fds)
}

/// See the file.
pub fn run(deed: &Deed) -> Value {
    let mut all = Map::new();
    for region in 0..2 {
        for (name, attempt) in ATTEMPTS {
            let (raw, attached, fds) = begin(deed);
            let s = RawSession::map(raw, &attached, fds);
            let after = deed.word("phase") == "after";
            let mut ready = after.then(|| s.mapped());
            let (which, fd, at, bytes) = regions(&s)[region];
            let errno = errno(attempt(fd, at, bytes));
            let ready = *ready.get_or_insert_with(|| s.mapped());
            // A session that goes on must go on answering.
            let answered = ready == AttachStatus::Ok as u32 && {
                s.publish(0, &s.header(0), &[&[0x3e; 64]]);
                s.answered_or_over(0)
            };
            all.insert(format!("{which}.{name}"), json!({ "errno": errno, "ready": ready, "answered": answered }));
        }
    }
    json!({ "attempts": all })
}
