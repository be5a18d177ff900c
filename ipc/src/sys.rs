//! The system calls that no library wraps: futexes, madvise, leases, process signals, messages that were cut.
//!
//! The only file with raw `libc` calls, beside `sigbus.rs`. Features newer than the kernel floor
//! (5.10) have a fallback; the variable `INFERD_DISABLE` (`futex_waitv,madv_populate,memfd_noexec,landlock,
//! seccomp`) forces the fallback, so that a test can.

use crate::limits::{FUTEX_WAITV_MAX, RECORD_FDS_MAX};
use crate::mem::{Mem, Wait};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// A kernel feature that has a fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `futex_waitv`, Linux 5.16.
    FutexWaitv,
    /// `MADV_POPULATE_*`, Linux 5.14.
    MadvPopulate,
    /// `MFD_NOEXEC_SEAL`, Linux 6.3.
    MemfdNoexec,
    /// Landlock, Linux 5.13, where it is built in and switched on.
    Landlock,
    /// Filters of system calls: everywhere but in kernels and containers without them.
    Seccomp,
}

/// Whether a feature may be used: it may be switched off with `INFERD_DISABLE`.
#[must_use]
pub fn allowed(feature: Feature) -> bool {
    static DISABLED: OnceLock<String> = OnceLock::new();
    let disabled = DISABLED.get_or_init(|| std::env::var("INFERD_DISABLE").unwrap_or_default());
    let name = match feature {
        Feature::FutexWaitv => "futex_waitv",
        Feature::MadvPopulate => "madv_populate",
        Feature::MemfdNoexec => "memfd_noexec",
        Feature::Landlock => "landlock",
        Feature::Seccomp => "seccomp",
    };
    !disabled.split(',').any(|d| d.trim() == name)
}

/// CLOCK_MONOTONIC in nanoseconds.
#[must_use]
#[inline]
pub fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec that outlives the call; the vDSO writes it and nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The CPU that the caller runs on, plus one; 0 where the kernel does not say. It may be another one by the time it is used.
#[must_use]
pub fn this_cpu() -> u64 {
    // SAFETY: no arguments, no memory of ours.
    u64::try_from(unsafe { libc::sched_getcpu() }).map_or(0, |cpu| cpu + 1)
}

/// Time that the calling thread has spent on a CPU, in nanoseconds.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec that outlives the call, which writes it and nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn timespec(d: Duration) -> libc::timespec {
    libc::timespec { tv_sec: d.as_secs().min(i32::MAX as u64) as _, tv_nsec: d.subsec_nanos() as _ }
}

pub(crate) fn futex_wait(word: &AtomicU64, expected: u32, timeout: Option<Duration>) -> Wait {
    let limit = timeout.map(timespec);
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word's low half lies at its address (little-endian, asserted in layout.rs), 4-aligned and mapped
    // while `word` lives; not FUTEX_PRIVATE, since the peer is another process. The kernel only reads it.
    let r = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, limit) };
    let timed_out = r == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT);
    if timed_out { Wait::TimedOut } else { Wait::Woken }
}

pub(crate) fn futex_wake_one(word: &AtomicU64) {
    // SAFETY: as above. Exactly one waiter is woken: wake-all lets a hostile peer with many waiters stall us.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// A word to sleep on, with the value that lets us sleep.
#[derive(Debug, Clone, Copy)]
pub struct WaitWord<'a> {
    /// Where it lies.
    pub mem: &'a Mem,
    /// Its offset.
    pub at: usize,
    /// Sleep only while its low half equals this one's.
    pub expected: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FutexWaitv {
    val: u64,
    uaddr: u64,
    flags: u32,
    reserved: u32,
}

/// Sleeps until any of the words changes and is woken. Returns at once when one has changed already.
///
/// # Errors
/// ENOSYS on kernels before 5.16 (use epoll over doorbell sockets there); EINVAL for more than 128 words.
pub fn wait_any(words: &[WaitWord<'_>], timeout: Option<Duration>) -> io::Result<Wait> {
    const FUTEX2_SIZE_U32: u32 = 2;
    if words.is_empty() || words.len() > FUTEX_WAITV_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if !allowed(Feature::FutexWaitv) {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    let mut list = [FutexWaitv { val: 0, uaddr: 0, flags: 0, reserved: 0 }; FUTEX_WAITV_MAX];
    for (entry, w) in list.iter_mut().zip(words) {
        let uaddr = w.mem.word(w.at).as_ptr() as u64;
        *entry = FutexWaitv { val: w.expected & 0xffff_ffff, uaddr, flags: FUTEX2_SIZE_U32, reserved: 0 };
    }
    // futex_waitv takes an absolute time.
    let limit = timeout.map(|d| timespec(Duration::from_nanos(now_ns()).saturating_add(d)));
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `list` holds `words.len()` valid entries whose words are mapped and aligned while `words` lives; the
    // kernel reads them. `limit` is null or a valid timespec.
    let r = unsafe {
        libc::syscall(libc::SYS_futex_waitv, list.as_ptr(), words.len() as u32, 0u32, limit, libc::CLOCK_MONOTONIC)
    };
    if r >= 0 {
        return Ok(Wait::Woken);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR) => Ok(Wait::Woken),
        Some(libc::ETIMEDOUT) => Ok(Wait::TimedOut),
        _ => Err(error),
    }
}

pub(crate) fn madvise_populate(base: *mut u8, bytes: usize, write: bool) -> bool {
    const MADV_POPULATE_READ: i32 = 22;
    const MADV_POPULATE_WRITE: i32 = 23;
    let advice = if write { MADV_POPULATE_WRITE } else { MADV_POPULATE_READ };
    // SAFETY: the range is a mapping of ours; populating changes no byte.
    allowed(Feature::MadvPopulate) && unsafe { libc::madvise(base.cast(), bytes, advice) } == 0
}

pub(crate) fn madvise_dontfork(base: *mut u8, bytes: usize) {
    // SAFETY: the range is a mapping of ours; the advice concerns children only.
    unsafe { libc::madvise(base.cast(), bytes, libc::MADV_DONTFORK) };
}

pub(crate) fn mlock(base: *mut u8, bytes: usize) -> io::Result<()> {
    // SAFETY: the range is a mapping of ours; locking changes no byte.
    check(unsafe { libc::mlock(base.cast(), bytes) }).map(drop)
}

fn check(r: i32) -> io::Result<i32> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

/// Whether no other writable description of this file is open or mapped: a write lease can be taken on this one, which
/// must be opened through a path (the kernel counts those, and not a memfd's first).
#[must_use]
pub fn lease_is_free(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: a lease on a descriptor of ours; given back at once.
    let taken = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) } == 0;
    if taken {
        // SAFETY: as above.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }
    taken
}

/// Receives one message with up to `N` descriptors: bytes, descriptors, and whether any of either were cut off. Every
/// descriptor that the kernel installed is owned by the answer, those of a message that was cut too (`nix` gives an error
/// for such a message, and loses them).
pub(crate) fn receive_message(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    const ROOM: usize = (RECORD_FDS_MAX * size_of::<libc::c_int>()).next_multiple_of(8);
    // Words, so that headers in it are aligned.
    let mut control = [0u64; (size_of::<libc::cmsghdr>() + ROOM) / 8];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: zeroes are a valid msghdr: no address, no buffers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control) as _);
    // SAFETY: the message names `buffer` and `control`, which outlive the call and are written within their lengths.
    let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if bytes < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled in `control` and its length; the macros walk it within that length.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !part.is_null() {
        // SAFETY: `part` is a whole header within `control`, aligned as its words are; the kernel is done with it.
        let (header, data) = unsafe { (*part, libc::CMSG_DATA(part)) };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let length = header.cmsg_len - (data as usize - part as usize);
            for i in 0..length / size_of::<libc::c_int>() {
                // SAFETY: element i lies within this part's length; the kernel has just installed the descriptor for us,
                // and nobody else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.cast::<libc::c_int>().add(i).read_unaligned()) });
            }
        }
        // SAFETY: as for the first.
        part = unsafe { libc::CMSG_NXTHDR(&raw const message, part) };
    }
    Ok((bytes as usize, fds, message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0))
}

/// What lies next in a socket: how many bytes (of at most so many as `buffer` has), 0 at its end, and whether descriptors
/// came with them. Takes nothing, and installs none of them.
///
/// # Errors
/// EAGAIN when nothing lies there.
pub fn look_at_message(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: zeroes are a valid msghdr: no address, no buffers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
    // SAFETY: the message names `buffer`, which outlives the call and is written within its length.
    let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    if bytes < 0 {
        return Err(io::Error::last_os_error());
    }
    // Descriptors without a place to put them count as cut off.
    Ok((bytes as usize, message.msg_flags & libc::MSG_CTRUNC != 0))
}

/// A descriptor that becomes readable when the process exits.
///
/// # Errors
/// ESRCH when it is gone and reaped; EMFILE.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0u32) };
    let fd = check(fd as i32)?;
    // SAFETY: the kernel just gave us this descriptor (close-on-exec); nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Asks for SIGKILL when the parent thread dies, and says whether the parent is still `parent`.
#[must_use]
pub fn die_with_parent(parent: u32) -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    // SAFETY: always succeeds.
    unsafe { libc::getppid() as u32 == parent }
}

/// Gives back the resident pages of this program's code; what is still needed comes back from the page cache. A worker
/// calls it between loading and warming up: parsing and optimising a model touch ten megabytes of code that no step runs.
pub fn forget_cold_code() {
    let (Ok(program), Ok(maps)) = (std::env::current_exe(), std::fs::read_to_string("/proc/self/maps")) else { return };
    for line in maps.lines() {
        // address-range, permissions, offset, device, inode, path
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some("r-xp")) = (words.next(), words.next()) else { continue };
        if words.nth(3).is_none_or(|path| std::path::Path::new(path) != program) {
            continue;
        }
        let bounds = range.split_once('-').map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16)));
        if let Some((Ok(from), Ok(to))) = bounds {
            // SAFETY: a private file mapping that is not writable holds no page of its own (code has no relocations
            // here), so every page that is dropped comes back from the file unchanged, whoever runs in it meanwhile.
            unsafe { libc::madvise(from as *mut _, to - from, libc::MADV_DONTNEED) };
        }
    }
}

/// Leaves the end of this process to its supervisor: a Ctrl-C or a service manager signals the whole group, and a worker
/// that died of it would lose the request that the drain is about to answer. SIGKILL and the end of the socket remain.
pub fn ignore_stop_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: SIG_IGN runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Sends a signal to a process; 0 for the calling thread, where it comes before the call returns.
#[cfg(feature = "failpoints")]
pub(crate) fn send_signal(pid: u32, signal: i32) {
    // SAFETY: no memory is passed.
    unsafe { if pid == 0 { libc::raise(signal) } else { libc::kill(pid as libc::pid_t, signal) } };
}

/// Ends the process at once: no destructors, no handlers of `atexit`. Standard error has no buffer that this could lose.
pub fn exit_at_once(code: i32) -> ! {
    // SAFETY: no memory is passed; it does not return.
    unsafe { libc::_exit(code) }
}

/// Sets SCHED_FIFO at this priority for the calling thread.
///
/// # Errors
/// EPERM without the right (RLIMIT_RTPRIO).
pub fn set_fifo(priority: u8) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: i32::from(priority) };
    // SAFETY: `param` is valid for the call; 0 names the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) }).map(drop)
}

/// Lets the calling thread run only where nobody else wants to (SCHED_IDLE). Without a right to raise priorities there
/// is no way back: for threads that end.
///
/// # Errors
/// EPERM where a sandbox forbids it.
pub fn set_idle() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is valid for the call; 0 names the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) }).map(drop)
}

/// Whether a thread of this process runs at idle priority; 0 is the calling one.
#[must_use]
pub fn is_idle(thread: i32) -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::sched_getscheduler(thread) == libc::SCHED_IDLE }
}

/// Takes a thread of this process back from idle priority.
///
/// # Errors
/// EPERM without the right (RLIMIT_NICE of at least 20).
pub fn leave_idle(thread: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is valid for the call.
    check(unsafe { libc::sched_setscheduler(thread, libc::SCHED_OTHER, &raw const param) }).map(drop)
}

/// The number that the kernel gives the calling thread.
#[must_use]
pub fn thread_number() -> i32 {
    // SAFETY: no memory is passed.
    unsafe { libc::gettid() }
}

/// The kernel's account of a thread of this process: a file that stays open, for a worker that may open none any more.
#[derive(Debug)]
pub struct ThreadTimes(std::fs::File);

impl ThreadTimes {
    /// Of the calling thread; none when the kernel keeps no account.
    #[must_use]
    pub fn of_this_thread() -> Option<ThreadTimes> {
        let times = ThreadTimes(std::fs::File::open("/proc/thread-self/schedstat").ok()?);
        times.read().is_some().then_some(times)
    }

    /// How long it has run, and how long it has waited for a CPU while it could have run, in nanoseconds; none when it
    /// has ended.
    #[must_use]
    pub fn read(&self) -> Option<(u64, u64)> {
        let mut text = [0; 96];
        let bytes = self.0.read_at(&mut text, 0).ok()?;
        let mut words = std::str::from_utf8(&text[..bytes]).ok()?.split_ascii_whitespace().map(str::parse);
        Some((words.next()?.ok()?, words.next()?.ok()?))
    }
}

/// Promises the kernel that this process, its threads and its children never gain a privilege.
///
/// # Errors
/// None that is known: Linux has it since 3.5.
pub fn set_no_new_privileges() -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Sets the niceness of a thread of this process that is as nice as a new one or less.
///
/// # Errors
/// ESRCH when the thread has ended.
pub fn set_nice_of(thread: i32, nice: i32) -> io::Result<()> {
    // SAFETY: no memory is passed; on Linux, PRIO_PROCESS with a thread's number is that thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, thread.unsigned_abs(), nice) }).map(drop)
}

/// Sets the niceness of the calling thread.
///
/// # Errors
/// EACCES or EPERM when it would be lowered without the right.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: no memory is passed; on Linux, PRIO_PROCESS with 0 is the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// Locks all present and future memory of the process.
///
/// # Errors
/// EPERM or ENOMEM against RLIMIT_MEMLOCK.
pub fn lock_all_memory() -> io::Result<()> {
    // SAFETY: no memory is passed; locking changes no byte.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) }).map(drop)
}

/// Makes denormal floats zero on the calling thread, in and out: they cost a hundred times as much.
pub fn flush_denormals_to_zero() {
    #[cfg(target_arch = "x86_64")]
    {
        let mut mxcsr: u32 = 0;
        // SAFETY: MXCSR exists on every x86-64; bits 15 (flush to zero) and 6 (denormals are zero) change
        // only how floats of this thread are computed. `mxcsr` is valid for the store and the load.
        unsafe {
            core::arch::asm!("stmxcsr [{0}]", in(reg) &raw mut mxcsr, options(nostack));
            mxcsr |= (1 << 15) | (1 << 6);
            core::arch::asm!("ldmxcsr [{0}]", in(reg) &raw const mxcsr, options(nostack));
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: FPCR bit 24 (flush to zero) changes only how floats of this thread are computed.
    unsafe {
        let mut fpcr: u64;
        core::arch::asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack));
        fpcr |= 1 << 24;
        core::arch::asm!("msr fpcr, {}", in(reg) fpcr, options(nomem, nostack));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_on_a_changed_word_returns_at_once() {
        let mem = Mem::heap(4096);
        assert_eq!(mem.futex_wait(0, 7, None), Wait::Woken);
        let word = WaitWord { mem: &mem, at: 128, expected: 7 };
        if let Ok(wait) = wait_any(&[word], None) {
            assert_eq!(wait, Wait::Woken);
        }
    }

    #[test]
    fn a_wait_takes_as_many_words_as_the_kernel_and_no_more() {
        let mem = Mem::heap(4096);
        let word = WaitWord { mem: &mem, at: 0, expected: 7 };
        let refused = wait_any(&[word; FUTEX_WAITV_MAX + 1], None).expect_err("one word too many");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        if let Err(error) = wait_any(&[word; FUTEX_WAITV_MAX], None) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "a kernel before 5.16");
        }
    }

    #[test]
    fn a_wait_ends_in_time() {
        let mem = Mem::heap(4096);
        assert_eq!(mem.futex_wait(0, 0, Some(Duration::from_millis(2))), Wait::TimedOut);
        let word = WaitWord { mem: &mem, at: 128, expected: 0 };
        if let Ok(wait) = wait_any(&[word], Some(Duration::from_millis(2))) {
            assert_eq!(wait, Wait::TimedOut);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn denormals_become_zero_on_this_thread() {
        let halve = |x: f32| std::hint::black_box(x) * std::hint::black_box(0.5);
        std::thread::spawn(move || {
            assert_ne!(halve(f32::MIN_POSITIVE), 0.0);
            flush_denormals_to_zero();
            assert_eq!(halve(f32::MIN_POSITIVE), 0.0);
        })
        .join()
        .expect("the thread's assertions hold");
    }
}
