//! Landlock: the file system, TCP and abstract sockets, taken away by what they are and not by system call.
//!
//! It is inherited by threads that begin later and reaches those that run already from ABI 8 on only; seccomp, which
//! reaches all, forbids the same by another way. Kernels without it (before 5.13, or switched off) are told of.

use super::Profile;
use inferd_ipc::sys::{Feature, allowed};
use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, RestrictSelfAttr, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// The newest rights that this list was made for; older kernels take what they know of it.
const KNOWN: ABI = ABI::V7;
/// What CUDA and its libraries read after a warm-up: libraries loaded at first use, and what the driver shows.
const GPU_READS: [&str; 7] = ["/usr", "/lib", "/lib64", "/opt", "/etc", "/proc", "/sys"];
/// Device nodes, and the shared memory of the driver.
const GPU_WRITES: [&str; 1] = ["/dev"];

/// How far it went.
pub(super) enum Landlocked {
    /// In force, in the words of this version.
    Abi(i32),
    /// Not in force.
    Missing(String),
}

/// Before a model is loaded: nothing is written, no TCP, no abstract socket, no signal outside.
pub(super) fn outside(profile: Profile) -> Landlocked {
    restrict(|rules| {
        let rules = rules.handle_access(AccessNet::from_all(KNOWN))?.scope(Scope::from_all(KNOWN))?;
        // CUDA writes device nodes and caches while it loads.
        let rules = if profile == Profile::Gpu { rules } else { rules.handle_access(AccessFs::from_write(KNOWN))? };
        rules.create()?.restrict_self()
    })
}

/// Once it is warm: no file at all, but a GPU's.
pub(super) fn inside(profile: Profile) -> Landlocked {
    restrict(|rules| {
        let rules = rules.handle_access(AccessFs::from_all(KNOWN))?.create()?;
        let rules = if profile == Profile::Gpu {
            // Folders that are not there are left out.
            let reads = path_beneath_rules(GPU_READS, AccessFs::from_read(KNOWN));
            rules.add_rules(reads)?.add_rules(path_beneath_rules(GPU_WRITES, AccessFs::from_all(KNOWN)))?
        } else {
            rules
        };
        rules.all_threads(true)?.restrict_self()
    })
}

fn restrict(rules: impl FnOnce(Ruleset) -> Result<RestrictionStatus, RulesetError>) -> Landlocked {
    if !allowed(Feature::Landlock) {
        return Landlocked::Missing("switched off by INFERD_DISABLE".to_owned());
    }
    match rules(Ruleset::default()) {
        Ok(status) => match (status.ruleset, status.landlock) {
            (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
                Landlocked::Missing("the kernel has it switched off: lsm=landlock,... on its command line".to_owned())
            }
            (RulesetStatus::NotEnforced, _) => Landlocked::Missing("the kernel has none".to_owned()),
            (_, LandlockStatus::Available { effective_abi, kernel_abi }) => {
                Landlocked::Abi(kernel_abi.unwrap_or(effective_abi as i32))
            }
            (_, other) => Landlocked::Missing(format!("{other:?}")),
        },
        Err(error) => Landlocked::Missing(error.to_string()),
    }
}
