//! seccomp: which system calls a confined worker makes, and what the others end in.
//!
//! Three filters, of which the strictest answer counts. What [`FATAL`] lists kills the process. What [`UNKNOWN`] lists
//! does not exist (ENOSYS), so that the C library takes the older call whose arguments a filter can see. The third
//! allows what a worker needs: its rings' futexes, its supervisor's records with their descriptors, memory,
//! clocks, threads and scheduling; everything else is EPERM. A filter costs per system call, and the
//! path of a request that is answered within the spin time makes none.

use super::Profile;

/// Forbids the rest on all threads.
///
/// # Errors
/// Why there is no filter.
pub(super) fn forbid(profile: Profile) -> Result<(), String> {
    if !inferd_ipc::sys::allowed(inferd_ipc::sys::Feature::Seccomp) {
        return Err("switched off by INFERD_DISABLE".to_owned());
    }
    filters::install(profile)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod filters {
    /// The lists are made for the machines that a robot has.
    pub(super) fn install(_profile: super::Profile) -> Result<(), String> {
        Err(format!("there is no list of system calls for {}", std::env::consts::ARCH))
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod filters {
    use super::Profile;
    use libc::c_long;
    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch, apply_filter_all_threads,
    };
    use std::collections::BTreeMap;

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;

    /// Nobody does this by mistake: to look into another process, to become another program, to change the kernel or
    /// the view of the file system, to take another process's descriptors.
    const FATAL: &[c_long] = &[
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_bpf,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_open_by_handle_at,
    ];

    /// `clone3` takes its flags in memory, where no filter looks; the C library then takes `clone`.
    const UNKNOWN: &[c_long] = &[libc::SYS_clone3];

    /// What every worker needs, whatever the arguments.
    const NEEDED: &[c_long] = &[
        // Descriptors that are open: records of the supervisor and what comes with them, doorbells, the log.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwrite64,
        libc::SYS_lseek,
        libc::SYS_recvmsg,
        libc::SYS_recvfrom,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_fstat,
        // By descriptor; a path tells size and times of a file that may not be opened.
        libc::SYS_newfstatat,
        libc::SYS_statx,
        // Waiting.
        libc::SYS_ppoll,
        libc::SYS_pselect6,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_futex,
        libc::SYS_futex_waitv,
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_sched_yield,
        libc::SYS_restart_syscall,
        // Memory; executable memory is below.
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_mincore,
        libc::SYS_msync,
        libc::SYS_mlock,
        libc::SYS_mlock2,
        libc::SYS_mlockall,
        libc::SYS_munlock,
        libc::SYS_munlockall,
        libc::SYS_membarrier,
        libc::SYS_get_mempolicy,
        // Threads that begin and end, and how they are scheduled.
        libc::SYS_clone3,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_getscheduler,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_getparam,
        libc::SYS_sched_setparam,
        libc::SYS_sched_get_priority_max,
        libc::SYS_sched_get_priority_min,
        libc::SYS_getpriority,
        libc::SYS_setpriority,
        libc::SYS_getcpu,
        // Signals of our own: SIGBUS on a named segment, an abort.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        // Clocks, chance, and who and where we are.
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
        libc::SYS_getrusage,
        libc::SYS_times,
        libc::SYS_uname,
        libc::SYS_sysinfo,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        // To give up more.
        libc::SYS_landlock_create_ruleset,
        libc::SYS_landlock_add_rule,
        libc::SYS_landlock_restrict_self,
    ];

    /// Calls that newer machines have under newer names only.
    #[cfg(target_arch = "x86_64")]
    const OLDER: &[c_long] = &[libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_wait, libc::SYS_dup2, libc::SYS_time];
    #[cfg(target_arch = "aarch64")]
    const OLDER: &[c_long] = &[];

    /// What CUDA needs beside: its device nodes, libraries that it loads at first use, and memory that it shares with
    /// the driver.
    const GPU: &[c_long] = &[
        libc::SYS_ioctl,
        libc::SYS_openat,
        libc::SYS_readlinkat,
        libc::SYS_faccessat,
        libc::SYS_getdents64,
        libc::SYS_memfd_create,
        libc::SYS_ftruncate,
        libc::SYS_pipe2,
        libc::SYS_mbind,
        libc::SYS_set_mempolicy,
    ];
    #[cfg(target_arch = "x86_64")]
    const GPU_OLDER: &[c_long] =
        &[libc::SYS_open, libc::SYS_readlink, libc::SYS_access, libc::SYS_stat, libc::SYS_lstat, libc::SYS_pipe];
    #[cfg(target_arch = "aarch64")]
    const GPU_OLDER: &[c_long] = &[];

    /// `fcntl` without locks, leases, and signals to others.
    const FCNTL: &[i32] = &[
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_GET_SEALS,
    ];
    /// `prctl` without the parent-death signal: a worker never outlives its supervisor.
    const PRCTL: &[i32] =
        &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_NO_NEW_PRIVS, libc::PR_GET_NO_NEW_PRIVS, PR_SET_VMA];
    const PR_SET_VMA: i32 = 0x5356_4d41;
    /// Reading and asking for the right to AMX's registers (ARCH_GET_XCOMP_SUPP, ..._PERM, ARCH_REQ_XCOMP_PERM).
    #[cfg(target_arch = "x86_64")]
    const ARCH_PRCTL: &[i32] = &[0x1021, 0x1022, 0x1023];

    /// Namespaces of one's own are no thread's business.
    const CLONE_NEW: i32 = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;

    pub(super) fn install(profile: Profile) -> Result<(), String> {
        for program in programs(profile).map_err(|error| error.to_string())? {
            apply_filter_all_threads(&program).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The three, in the order of their installation: the last one forbids to install another.
    fn programs(profile: Profile) -> Result<[BpfProgram; 3], BackendError> {
        let machine = TargetArch::try_from(std::env::consts::ARCH)?;
        let program = |rules, otherwise, action| -> Result<BpfProgram, BackendError> {
            SeccompFilter::new(rules, otherwise, action, machine)?.try_into()
        };
        let plain = |calls: &[c_long]| calls.iter().map(|call| (*call, Vec::new())).collect::<Rules>();
        Ok([
            program(plain(FATAL), SeccompAction::Allow, SeccompAction::KillProcess)?,
            program(plain(UNKNOWN), SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
            program(allowed(profile)?, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?,
        ])
    }

    fn allowed(profile: Profile) -> Result<Rules, BackendError> {
        let gpu = if profile == Profile::Gpu { [GPU, GPU_OLDER] } else { [&[] as &[c_long]; 2] };
        let lists = [NEEDED, OLDER].into_iter().chain(gpu);
        let mut rules: Rules = lists.flatten().map(|call| (*call, Vec::new())).collect();
        let thread = (libc::CLONE_THREAD | CLONE_NEW) as u64;
        rules.insert(libc::SYS_clone, vec![bits(0, thread, libc::CLONE_THREAD as u64)?]);
        rules.insert(libc::SYS_fcntl, one_of(1, FCNTL)?);
        rules.insert(libc::SYS_prctl, one_of(0, PRCTL)?);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_arch_prctl, one_of(0, ARCH_PRCTL)?);
        // Own limits, to be read.
        rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![equal(0, 0)?, equal_wide(2, 0)?])?]);
        let own = i64::from(std::process::id()) as u64;
        for call in [libc::SYS_kill, libc::SYS_tgkill] {
            rules.insert(call, vec![SeccompRule::new(vec![equal(0, own)?])?]);
        }
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            let any = profile >= Profile::Jit;
            let chain = if any { Vec::new() } else { vec![bits(2, libc::PROT_EXEC as u64, 0)?] };
            rules.insert(call, chain);
        }
        Ok(rules)
    }

    fn equal(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    }

    fn equal_wide(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
    }

    /// The argument has this value in these bits.
    fn bits(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
        let op = SeccompCmpOp::MaskedEq(mask);
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, op, value)?])
    }

    fn one_of(argument: u8, values: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
        values.iter().map(|value| SeccompRule::new(vec![equal(argument, *value as u32 as u64)?])).collect()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_profile_has_programs_that_a_kernel_takes_and_allows_more_than_the_one_before() {
            let most = |profile| programs(profile).expect("sound rules").iter().map(Vec::len).max().unwrap_or(0);
            for profile in [Profile::Strict, Profile::Jit, Profile::Gpu] {
                // BPF_MAXINSNS.
                assert!((1..4096).contains(&most(profile)), "{profile}: {}", most(profile));
            }
            let calls = |profile| allowed(profile).expect("sound rules").into_keys().collect::<Vec<_>>();
            assert!(calls(Profile::Strict).iter().all(|call| calls(Profile::Gpu).contains(call)));
            assert_eq!(calls(Profile::Strict), calls(Profile::Jit), "they differ in the memory that they allow");
        }

        #[test]
        fn nothing_that_kills_is_allowed_and_no_worker_opens_or_connects() {
            let strict = allowed(Profile::Strict).expect("sound rules");
            assert!(FATAL.iter().all(|call| !strict.contains_key(call)));
            for call in [libc::SYS_openat, libc::SYS_openat2, libc::SYS_socket, libc::SYS_connect, libc::SYS_ioctl] {
                assert!(!strict.contains_key(&call), "{call}");
            }
            // Its flags cannot be seen, so it is there for the filter that says that it does not exist.
            assert!(UNKNOWN.iter().all(|call| strict.contains_key(call)));
        }
    }
}
