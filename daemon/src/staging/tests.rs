//! Tests of this module: good and bad input, and what each message must name.

use super::*;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn below(folder: &Path, name: &str) -> Result<Staged, StageError> {
    let file = StageFile::Below { folder: folder.to_owned(), name: name.to_owned() };
    stage(&file, None, &AtomicBool::new(false))
}

fn at(path: &Path) -> Result<Staged, StageError> {
    stage(&StageFile::Path { path: path.to_owned() }, None, &AtomicBool::new(false))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn a_staged_file_is_whole_hashed_and_cannot_be_changed_by_anybody() {
    let dir = folder();
    fs::write(dir.path().join("m"), "abc").expect("written");
    let staged = at(&dir.path().join("m")).expect("staged");
    assert_eq!((staged.sha256.as_str(), staged.bytes), (ABC, 3));
    fs::write(dir.path().join("m"), "xyz").expect("rewritten");
    let mut file = File::from(staged.fd);
    let mut text = String::new();
    file.read_to_string(&mut text).expect("from the beginning");
    assert_eq!(text, "abc");
    assert_eq!(file.write(b"x").expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32));
    assert_eq!(file.set_len(1).expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32));
    assert_eq!(file.metadata().expect("stat").permissions().mode() & 0o777, 0o400);
}

#[test]
fn a_large_file_comes_over_whole() {
    let dir = folder();
    let bytes: Vec<u8> = (0..1_000_003u32).map(|i| i as u8).collect();
    fs::write(dir.path().join("m"), &bytes).expect("written");
    let staged = below(dir.path(), "m").expect("staged");
    let mut copy = Vec::new();
    File::from(staged.fd).read_to_end(&mut copy).expect("read");
    assert_eq!(copy, bytes);
}

#[test]
fn a_wrong_hash_is_refused_and_names_both() {
    let dir = folder();
    fs::write(dir.path().join("m"), "abc").expect("written");
    let file = StageFile::Path { path: dir.path().join("m") };
    let flag = AtomicBool::new(false);
    assert!(stage(&file, Some(ABC), &flag).is_ok());
    let error = stage(&file, Some(&"0".repeat(64)), &flag).expect_err("another hash");
    assert!(error.to_string().contains(ABC) && error.to_string().contains("0000"), "{error}");
}

#[test]
fn what_is_no_readable_file_says_so_without_blocking() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("d")).expect("created");
    fs::write(path("empty"), "").expect("written");
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("created");
    for modern in [true, false] {
        let open = |name: &str| open::below_with(dir.path(), name, modern).map(|_| ());
        assert_eq!(open("absent"), Err(StageError::Missing));
        assert_eq!(open("d"), Err(StageError::NotAFile));
        assert_eq!(open("pipe"), Err(StageError::NotAFile));
        assert_eq!(open("empty"), Err(StageError::Empty));
        assert_eq!(open("empty/x"), Err(StageError::NotAFile));
        for bad in ["", "/etc/passwd", "../x", "d/../../x", "a/", "./x/..", "a\0b", &"x".repeat(256)] {
            assert_eq!(open(bad), Err(StageError::BadName), "{bad}");
        }
    }
    assert_eq!(at(&path("pipe")).map(|_| ()), Err(StageError::NotAFile));
    assert_eq!(at(Path::new("/dev/zero")).map(|_| ()), Err(StageError::NotAFile));
    assert_eq!(at(&path("empty")).map(|_| ()), Err(StageError::Empty));
}

#[test]
fn links_never_lead_out_of_the_folder() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("model/data")).expect("created");
    fs::write(path("secret"), "s").expect("written");
    fs::write(path("model/data/w"), "abc").expect("written");
    for (to, link) in [("../secret", "up"), ("/etc", "etc"), ("data/w", "inside"), ("..", "parent")] {
        symlink(to, path("model").join(link)).expect("linked");
    }
    symlink("/proc/self/fd", path("model/magic")).expect("linked");
    for modern in [true, false] {
        let open = |name: &str| open::below_with(&path("model"), name, modern).map(|_| ());
        for name in ["up", "etc/passwd", "parent/secret", "magic/0"] {
            assert_eq!(open(name), Err(StageError::Escapes), "{name} modern {modern}");
        }
        assert_eq!(open("data/w"), Ok(()));
    }
    assert!(open::below_with(&path("model"), "inside", true).is_ok(), "a link that stays below");
    assert_eq!(open::below_with(&path("model"), "inside", false).map(|_| ()), Err(StageError::Escapes));
    symlink("secret", path("operator")).expect("linked");
    assert!(at(&path("operator")).is_ok(), "the operator's own path may be a link");
}

#[test]
fn a_file_over_the_limit_is_refused_before_it_is_read() {
    let dir = folder();
    let sparse = File::create(dir.path().join("m")).expect("created");
    if sparse.set_len(limits::MODEL_FILE_BYTES_MAX + 1).is_err() {
        println!("SKIP a_file_over_the_limit: the file system has no sparse files of that size");
        return;
    }
    let error = at(&dir.path().join("m")).expect_err("too large");
    assert_eq!(error, StageError::TooLarge { bytes: limits::MODEL_FILE_BYTES_MAX + 1 });
}

#[test]
fn a_file_that_grows_or_shrinks_while_it_is_read_is_refused() {
    let dir = folder();
    let path = dir.path().join("m");
    fs::write(&path, "abc").expect("written");
    let flag = AtomicBool::new(false);
    // Half-read: what remains is shorter than what fstat said.
    let mut file = File::open(&path).expect("opened");
    file.read_exact(&mut [0]).expect("read");
    assert_eq!(copy::into_memory(&mut file, "m", &flag).map(|_| ()), Err(StageError::Changed));
    flag.store(true, Ordering::Relaxed);
    let mut file = File::open(&path).expect("opened");
    assert_eq!(copy::into_memory(&mut file, "m", &flag).map(|_| ()), Err(StageError::Cancelled));
}

#[test]
fn an_old_kernel_s_memfd_serves_as_well() {
    for modern in [true, false] {
        let fd = copy::memory("a name\0with\nrubbish", modern).expect("made");
        assert_eq!(File::from(fd).metadata().expect("stat").len(), 0);
    }
}

#[test]
fn the_event_loop_is_woken_and_finds_every_result() {
    let dir = folder();
    fs::write(dir.path().join("m"), "abc").expect("written");
    let mut stager = Stager::start().expect("started");
    let good = stager.submit(StageFile::Path { path: dir.path().join("m") }, Some(ABC));
    let bad = stager.submit(StageFile::Path { path: dir.path().join("absent") }, None);
    let mut done = Vec::new();
    while done.len() < 2 {
        let timeout = PollTimeout::try_from(Duration::from_secs(10)).expect("short enough");
        let ready = poll(&mut [PollFd::new(stager.wake_fd(), PollFlags::POLLIN)], timeout).expect("polled");
        assert_eq!(ready, 1, "woken");
        done.extend(stager.take_done());
    }
    assert_eq!(stager.running(), 0);
    done.sort_by_key(|d| d.id);
    assert!(done[0].id == good && done[0].result.is_ok());
    assert!(done[1].id == bad && matches!(done[1].result, Err(StageError::Missing)));
    let none = poll(&mut [PollFd::new(stager.wake_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).expect("polled");
    assert_eq!(none, 0, "the bell is silent again");
}

#[test]
fn a_worker_cannot_ask_for_files_without_end() {
    let mut allowance = FileAllowance::default();
    assert_eq!((0..1000).filter(|_| allowance.ask().is_ok()).count(), limits::MODEL_FILES_MAX);
}
