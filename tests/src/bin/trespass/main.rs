//! inferd-worker-trespass: the villain among models. Its input is the number of what it does (`inferd_tests::trespass`).
//!
//! A worker with a backend of its own, as users write one. Its answer is the number again, or the deed's errno; EPERM and EACCES
//! are errors of the model. The deeds do as little harm as they can where nothing stops them, for that is tested too. With the option
//! `lazy` it opens a file at every run, as a library that loads at first use does at one of them.

use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::worker_records::ModelSpec;
use inferd_tests::trespass::{BY_OLD_THREAD, DEEDS, FIRST};
use inferd_worker::backend::{Backend, Model};
use inferd_worker::files::FileSource;
use inferd_worker::{Fault, ModelError};
use std::io;
use std::sync::mpsc;

struct Trespass;

impl Backend for Trespass {
    fn name(&self) -> &'static str {
        "trespass"
    }

    fn version(&self) -> String {
        "1".to_owned()
    }

    fn load(
        &self,
        spec: &ModelSpec,
        _files: &mut dyn FileSource,
        _warn: &mut dyn FnMut(&str),
    ) -> Result<Box<dyn Model>, ModelError> {
        let (tell, hear) = mpsc::channel::<(u32, mpsc::Sender<io::Result<()>>)>();
        std::thread::spawn(move || {
            for (number, answer) in hear {
                let _ = answer.send(deed(number));
            }
        });
        let tensor = |name| vec![TensorSpec::new(name, DType::U32, &[1])];
        let lazy = spec.options.contains_key("lazy");
        Ok(Box::new(Villain { inputs: tensor("deed"), outputs: tensor("done"), bytes: [0; 4], old: tell, lazy }))
    }
}

struct Villain {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    bytes: [u8; 4],
    old: mpsc::Sender<(u32, mpsc::Sender<io::Result<()>>)>,
    lazy: bool,
}

impl Model for Villain {
    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    fn input_mut(&mut self, _i: usize) -> &mut [u8] {
        &mut self.bytes
    }

    fn run(&mut self) -> Result<(), ModelError> {
        if self.lazy {
            self.does("open", std::fs::File::open("/proc/version").map(drop))?;
        }
        let number = u32::from_ne_bytes(self.bytes);
        let (by_old, number) = if number > BY_OLD_THREAD { (true, number - BY_OLD_THREAD) } else { (false, number) };
        let Some((name, _)) = number.checked_sub(FIRST).and_then(|i| DEEDS.get(i as usize)) else { return Ok(()) };
        let done = if by_old {
            let (answer, heard) = mpsc::channel();
            let _ = self.old.send((number - FIRST, answer));
            heard.recv().unwrap_or_else(|_| Err(io::Error::other("the old thread ended")))
        } else {
            deed(number - FIRST)
        };
        match done {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                self.bytes = error.raw_os_error().unwrap_or(-1).to_ne_bytes();
                Ok(())
            }
            done => self.does(name, done),
        }
    }

    fn output(&self, _i: usize) -> &[u8] {
        &self.bytes
    }
}

impl Villain {
    fn does(&self, name: &str, done: io::Result<()>) -> Result<(), ModelError> {
        done.map_err(|error| ModelError::new(Fault::Run, format!("deed {name}"), error.to_string(), "be good"))
    }
}

fn main() -> ! {
    inferd_worker::control::run_only(&[&Trespass])
}

fn errno(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn descriptor(result: i64) -> io::Result<()> {
    errno(result)?;
    // SAFETY: the kernel has just given us this descriptor; it is used for nothing else.
    unsafe { libc::close(result as i32) };
    Ok(())
}

/// Does number `i` of the list.
fn deed(i: u32) -> io::Result<()> {
    match DEEDS[i as usize].0 {
        "open" => std::fs::File::open("/proc/version").map(drop),
        "open_for_writing" => std::fs::File::create("/tmp/inferd-trespass").map(drop),
        "list_a_folder" => std::fs::read_dir("/").map(drop),
        "unlink" => ok_if_absent(std::fs::remove_file("/tmp/inferd-trespass")),
        "rename" => ok_if_absent(std::fs::rename("/tmp/inferd-trespass", "/tmp/inferd-trespass-2")),
        "unix_socket" => std::os::unix::net::UnixDatagram::unbound().map(drop),
        "socketpair" => std::os::unix::net::UnixStream::pair().map(drop),
        "tcp" => std::net::TcpListener::bind("127.0.0.1:0").map(drop),
        "udp" => std::net::UdpSocket::bind("127.0.0.1:0").map(drop),
        other => raw(other),
    }
}

fn ok_if_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What no library does for us.
fn raw(name: &str) -> io::Result<()> {
    let parent = std::os::unix::process::parent_id() as i32;
    // SAFETY: each call gets valid pointers to statics or to memory of this function, or none; where it succeeds it
    // changes nothing that another part of this process relies on.
    unsafe {
        match name {
            "openat2" => {
                let how = [0u64; 3];
                descriptor(libc::syscall(
                    libc::SYS_openat2,
                    libc::AT_FDCWD,
                    c"/proc/version".as_ptr(),
                    &raw const how,
                    24,
                ))
            }
            "change_a_mode" => ok_if_absent(errno(libc::chmod(c"/tmp/inferd-trespass".as_ptr(), 0o600).into())),
            "memfd" => descriptor(libc::memfd_create(c"trespass".as_ptr(), 0).into()),
            "netlink" => descriptor(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0).into()),
            "fork" => match libc::fork() {
                0 => libc::_exit(0),
                child => {
                    errno(child.into())?;
                    errno(libc::waitpid(child, std::ptr::null_mut(), 0).into())
                }
            },
            "signal_the_supervisor" => errno(libc::kill(parent, 0).into()),
            "keep_living_without_it" => errno(libc::prctl(libc::PR_SET_PDEATHSIG, 0).into()),
            "change_a_limit" => {
                let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
                errno(libc::setrlimit(libc::RLIMIT_CORE, &raw const limit).into())
            }
            "executable_memory" => {
                let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                let page = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
                if page == libc::MAP_FAILED {
                    Err(io::Error::last_os_error())
                } else {
                    errno(libc::munmap(page, 4096).into())
                }
            }
            "io_uring" => {
                let parameters = [0u8; 120];
                descriptor(libc::syscall(libc::SYS_io_uring_setup, 1, &raw const parameters))
            }
            "perf" => descriptor(libc::syscall(libc::SYS_perf_event_open, std::ptr::null::<u8>(), 0, -1, -1, 0)),
            "ptrace" => errno(libc::ptrace(libc::PTRACE_TRACEME)),
            "read_the_supervisor" => {
                errno(libc::process_vm_readv(parent, std::ptr::null(), 0, std::ptr::null(), 0, 0) as i64)
            }
            "exec" => errno(libc::execv(c"/nonexistent".as_ptr(), [std::ptr::null()].as_ptr()).into()),
            "bpf" => errno(libc::syscall(libc::SYS_bpf, 0, std::ptr::null::<u8>(), 0)),
            other => Err(io::Error::other(format!("no deed is called {other}"))),
        }
    }
}
