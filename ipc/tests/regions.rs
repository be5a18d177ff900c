//! Regions on both backings: what the kernel refuses after sealing, what an importer finds, and what
//! a truncated named segment does. Runs a second time with every newer kernel feature switched off.

#![allow(clippy::unwrap_used)]

use inferd_ipc::layout::{Backing, Geometry, Queue, ServingState};
use inferd_ipc::region::{self, Access, NewRegion, RegionError, RegionKind};
use inferd_ipc::signature::{DType, Signature, TensorSpec};
use inferd_ipc::sync::Ordering;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::unistd::ftruncate;
use std::os::fd::AsFd;

const BYTES: u64 = 3 * 4096;

fn new(backing: Backing, kind: RegionKind) -> NewRegion {
    region::create(backing, kind, BYTES, &format!("test-{}", std::process::id())).unwrap()
}

struct Unlink(Option<String>);

impl Drop for Unlink {
    fn drop(&mut self) {
        self.0.as_deref().map(region::unlink);
    }
}

fn punch(fd: impl AsFd) -> nix::Result<()> {
    fallocate(fd, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 4096)
}

#[test]
fn a_request_region_is_frozen_once_its_client_has_mapped_it() {
    let region = new(Backing::Memfd, RegionKind::Request);
    let fd = region.fd.as_fd();
    region::verify_import(fd, RegionKind::Request, Backing::Memfd, BYTES).unwrap();
    let mine = region::map(fd, BYTES, Access::ReadWrite, Backing::Memfd).unwrap();
    region::seal_request(fd, BYTES, Backing::Memfd).unwrap();
    assert_eq!(ftruncate(fd, 0), Err(Errno::EPERM));
    assert_eq!(ftruncate(fd, 2 * BYTES as i64), Err(Errno::EPERM));
    assert_eq!(punch(fd), Err(Errno::EPERM));
    assert_eq!(nix::sys::uio::pwrite(fd, b"x", 0), Err(Errno::EPERM));
    assert!(fcntl(fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err());
    assert!(region::map(fd, BYTES, Access::ReadWrite, Backing::Memfd).is_err());
    let theirs = region::map(fd, BYTES, Access::ReadOnly, Backing::Memfd).unwrap();
    mine.word(128).store(7, Ordering::Release);
    assert_eq!(theirs.word(128).load(Ordering::Acquire), 7);
}

#[test]
fn a_client_that_punched_or_sealed_first_is_found_out() {
    let hole = new(Backing::Memfd, RegionKind::Request);
    let _mine = region::map(hole.fd.as_fd(), BYTES, Access::ReadWrite, Backing::Memfd).unwrap();
    punch(&hole.fd).unwrap();
    let found = region::seal_request(hole.fd.as_fd(), BYTES, Backing::Memfd);
    assert!(matches!(found, Err(RegionError::Untrusted(_))), "{found:?}");

    let lazy = new(Backing::Memfd, RegionKind::Request);
    assert!(region::seal_request(lazy.fd.as_fd(), BYTES, Backing::Memfd).is_err(), "never populated");

    let sealed = new(Backing::Memfd, RegionKind::Request);
    fcntl(&sealed.fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL)).unwrap();
    assert!(region::seal_request(sealed.fd.as_fd(), BYTES, Backing::Memfd).is_err(), "sealed first");
}

#[test]
fn a_reply_region_cannot_be_mapped_writable_by_its_client() {
    for backing in [Backing::Memfd, Backing::Posix] {
        let region = new(backing, RegionKind::Reply);
        let _unlink = Unlink(region.name.clone());
        let client = region::for_client(&region, RegionKind::Reply).unwrap();
        assert!(region::map(client.as_fd(), BYTES, Access::ReadWrite, backing).is_err());
        assert!(region::map(client.as_fd(), BYTES, Access::ReadOnly, backing).is_ok());
        if backing == Backing::Memfd {
            assert!(ftruncate(&region.fd, 0).is_err());
            let mode = nix::sys::stat::fstat(&region.fd).unwrap().st_mode & 0o777;
            assert_eq!(mode, 0o400, "nobody else reopens it");
        }
    }
}

#[test]
fn an_importer_refuses_what_is_unsealed_or_of_another_size() {
    let region = new(Backing::Memfd, RegionKind::Reply);
    let refused = region::verify_import(region.fd.as_fd(), RegionKind::Reply, Backing::Memfd, BYTES + 4096);
    assert!(matches!(refused, Err(RegionError::Untrusted(_))));
    let plain = nix::sys::memfd::memfd_create(c"plain", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&plain, BYTES as i64).unwrap();
    assert!(region::verify_import(plain.as_fd(), RegionKind::Reply, Backing::Memfd, BYTES).is_err());
}

#[test]
fn a_truncated_named_segment_marks_its_mapping_and_kills_nobody() {
    let region = new(Backing::Posix, RegionKind::Request);
    let _unlink = Unlink(region.name.clone());
    let mine = region::map(region.fd.as_fd(), BYTES, Access::ReadOnly, Backing::Posix).unwrap();
    let other = new(Backing::Posix, RegionKind::Request);
    let _unlink_other = Unlink(other.name.clone());
    let bystander = region::map(other.fd.as_fd(), BYTES, Access::ReadOnly, Backing::Posix).unwrap();
    ftruncate(&region.fd, 0).unwrap();
    let mut bytes = vec![1; BYTES as usize];
    mine.copy_out(0, &mut bytes);
    assert_eq!(bytes, vec![0; BYTES as usize]);
    assert!(mine.damaged() && !bystander.damaged());
}

#[test]
fn leftover_segments_of_this_instance_are_swept_and_others_stay() {
    let instance = format!("sweep-{}", std::process::id());
    let mine = region::create(Backing::Posix, RegionKind::Reply, BYTES, &instance).unwrap();
    let other = region::create(Backing::Posix, RegionKind::Reply, BYTES, &format!("{instance}x")).unwrap();
    let _unlink = Unlink(other.name.clone());
    assert_eq!(region::sweep(&instance), 1);
    let there = |r: &NewRegion| std::path::Path::new(&format!("/dev/shm{}", r.name.as_deref().unwrap())).exists();
    assert!(!there(&mine) && there(&other));
}

#[test]
fn a_mapping_that_outlives_its_session_is_noticed() {
    let region = new(Backing::Memfd, RegionKind::Request);
    let reopened = region::reopen(region.fd.as_fd(), Access::ReadWrite).unwrap();
    let client = region::for_client(&region, RegionKind::Request).unwrap();
    let mine = region::map(client.as_fd(), BYTES, Access::ReadWrite, Backing::Memfd).unwrap();
    region::seal_request(region.fd.as_fd(), BYTES, Backing::Memfd).unwrap();
    drop(region);
    assert!(region::still_held(reopened.as_fd()));
    drop(client);
    assert!(region::still_held(reopened.as_fd()), "the mapping alone counts");
    drop(mine);
    assert!(!region::still_held(reopened.as_fd()));
}

#[test]
fn an_offset_outside_the_mapping_panics_instead_of_reaching_beyond() {
    let mem = inferd_ipc::mem::Mem::heap(4096);
    let panics = |access: &dyn Fn(&inferd_ipc::mem::Mem)| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| access(&mem))).is_err()
    };
    assert!(!panics(&|mem| mem.copy_out(4088, &mut [0; 8])), "the last word");
    assert!(panics(&|mem| mem.copy_out(4089, &mut [0; 8])));
    assert!(panics(&|mem| mem.copy_out(usize::MAX, &mut [0; 8])));
    assert!(panics(&|mem| mem.copy_in(4096, &[0; 1])));
    assert!(panics(&|mem| mem.word(4096).store(1, Ordering::Relaxed)));
    assert!(panics(&|mem| mem.word(4).store(1, Ordering::Relaxed)), "unaligned");
}

#[test]
fn the_signature_is_read_back_from_the_reply_region() {
    let tensor = |n: &str| vec![TensorSpec::new(n, DType::F32, &[1, 45])];
    let signature = Signature { inputs: tensor("obs"), outputs: tensor("action"), stateful: false };
    let geometry = Geometry::new(&signature, 4, Queue::Latest, 9).unwrap();
    let region = region::create(Backing::Memfd, RegionKind::Reply, geometry.reply_bytes, "").unwrap();
    let mem = region::map(region.fd.as_fd(), geometry.reply_bytes, Access::ReadWrite, Backing::Memfd).unwrap();
    region::init_reply(&mem, 7, 3, &signature, &geometry, ServingState::Serving);
    let (header, read) = region::read_signature(&mem, geometry.reply_base).unwrap();
    assert_eq!((header.session, header.generation, read), (7, 3, signature));
    mem.word(0).store(0, Ordering::Release);
    assert!(region::read_signature(&mem, geometry.reply_base).is_err());
}

#[test]
fn everything_holds_on_a_kernel_without_the_newer_features() {
    const DISABLE: &str = "INFERD_DISABLE";
    if std::env::var_os(DISABLE).is_some() {
        return;
    }
    let again = std::process::Command::new(std::env::current_exe().unwrap())
        .env(DISABLE, "futex_waitv,madv_populate,memfd_noexec")
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
}
