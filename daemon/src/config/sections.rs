//! The keys of `inferd.toml`, what each may be, and what contradicts what.

use super::error::ConfigError;
use super::reader::{Document, Section, option_text};
use super::{Config, ModelConfig, SocketConfig, SocketGroup, change, is_backend_name};
use inferd_ipc::attach::is_model_name;
use inferd_ipc::layout::{Backing, Queue};
use inferd_ipc::limits;
use inferd_ipc::worker_records::{Confine, Device, Precision, Scheduling, Waiting};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::{Gid, Group, Pid, Uid, getgroups};
use std::collections::BTreeMap;
use std::path::PathBuf;
use toml::Spanned;

/// Mode of a socket when nothing is configured.
pub(super) const SOCKET_MODE_DEFAULT: u32 = 0o660;

/// A configuration while its files are read.
#[derive(Debug, Default)]
struct Reading {
    config: Config,
    attach_group_named: bool,
    control_group_named: bool,
}

/// Reads documents, each on top of those before it.
pub(super) fn read(documents: impl IntoIterator<Item = Document>, errors: &mut Vec<ConfigError>) -> Config {
    let mut reading = Reading::default();
    for document in documents {
        reading.file(&document, errors);
    }
    reading.finish(errors)
}

impl Reading {
    /// Reads one file on top of those before it.
    pub fn file(&mut self, document: &Document, errors: &mut Vec<ConfigError>) {
        self.config.files.push(document.file().to_owned());
        let Some(mut root) = document.parse(errors) else { return };
        if let Some(section) = root.section("daemon", errors) {
            self.daemon(section, errors);
        }
        if let Some(section) = root.section("ipc", errors) {
            self.ipc(section, errors);
        }
        if let Some(section) = root.section("worker", errors) {
            self.worker(section, errors);
        }
        if let Some(section) = root.section("quota", errors) {
            self.quota(section, errors);
        }
        for (name, section) in root.named("models", errors) {
            self.model(&name, section, errors);
        }
        root.finish(errors);
    }

    /// The configuration, once every file was read.
    pub fn finish(mut self, errors: &mut Vec<ConfigError>) -> Config {
        let count = self.config.models.len();
        if count > limits::MODELS_MAX {
            let what = format!("{count} models are configured, over the limit of {}", limits::MODELS_MAX);
            errors.push(ConfigError::nowhere(what, "serve some of them from a second daemon"));
        }
        if !self.attach_group_named {
            self.config.daemon.attach_socket.group = usable_group("inferd");
        }
        if !self.control_group_named {
            self.config.daemon.control_socket.group = usable_group("inferd-admin");
        }
        self.config
    }

    fn daemon(&mut self, mut s: Section<'_>, errors: &mut Vec<ConfigError>) {
        let d = &mut self.config.daemon;
        if let Some(dir) = absolute(&mut s, "runtime_dir", errors) {
            d.runtime_dir = Some(dir);
        }
        if let Some(dir) = absolute(&mut s, "worker_dir", errors) {
            d.worker_dir = Some(dir);
        }
        if let Some(dir) = absolute(&mut s, "state_dir", errors) {
            d.state_dir = Some(dir);
        }
        set(&mut d.store_bytes, s.count("store_bytes", 0, limits::STORE_BYTES_MAX, errors));
        let generations = s.count("store_generations", 0, limits::STORE_GENERATIONS_MAX as u64, errors);
        set(&mut d.store_generations, generations.map(|v| v as usize));
        set(&mut d.drain_ms, s.count("drain_ms", 0, limits::DRAIN_MS_MAX, errors));
        set(&mut d.allow_unmapped_uids, s.plain("allow_unmapped_uids", "true or false", errors));
        socket(&mut s, ("attach_mode", "attach_group"), &mut d.attach_socket, &mut self.attach_group_named, errors);
        socket(&mut s, ("control_mode", "control_group"), &mut d.control_socket, &mut self.control_group_named, errors);
        s.finish(errors);
    }

    fn ipc(&mut self, mut s: Section<'_>, errors: &mut Vec<ConfigError>) {
        let ipc = &mut self.config.ipc;
        set(&mut ipc.backing, s.plain::<Backing>("backing", "\"memfd\" or \"posix\"", errors));
        set(&mut ipc.waiting, s.plain::<Waiting>("waiting", "\"auto\" or \"epoll\"", errors));
        set(&mut ipc.mlock, s.plain("mlock", "true or false", errors));
        s.finish(errors);
    }

    fn worker(&mut self, mut s: Section<'_>, errors: &mut Vec<ConfigError>) {
        set(&mut self.config.worker.confine, confine(&mut s, errors));
        s.finish(errors);
    }

    fn quota(&mut self, mut s: Section<'_>, errors: &mut Vec<ConfigError>) {
        let q = &mut self.config.quota;
        for (key, value, most) in [
            ("sessions", &mut q.sessions, limits::SESSIONS_PER_UID_MAX),
            ("connections", &mut q.connections, limits::CONNECTIONS_PER_UID_MAX),
            ("half_attaches", &mut q.half_attaches, limits::HALF_ATTACHES_PER_UID_MAX),
        ] {
            set(value, s.count(key, 1, most as u64, errors).map(|v| v as usize));
        }
        // A region holds at least a page; machines are larger than the default quota, so no upper bound but arithmetic.
        set(&mut q.region_bytes, s.count("region_bytes", 4096, i64::MAX as u64, errors));
        s.finish(errors);
    }

    fn model(&mut self, name: &Spanned<String>, mut s: Section<'_>, errors: &mut Vec<ConfigError>) {
        let place = s.place_of(name);
        let name = name.get_ref();
        if !is_model_name(name) {
            let what = format!("{name:?} is not a model name");
            let remedy = format!(
                "use 1 to {} letters, digits, '.', '_' or '-', the first no '.' or '-'",
                limits::MODEL_NAME_BYTES_MAX
            );
            errors.push(ConfigError::at(place.clone(), what, remedy));
        }
        if let Some(first) = self.config.places.get(name) {
            let what = format!("model {name:?} is configured a second time; the first is at {first}");
            errors.push(ConfigError::at(place, what, "remove one of them, or rename it"));
            return;
        }
        let model = model(name, &mut s, errors);
        s.finish(errors);
        self.config.places.insert(name.clone(), place);
        self.config.models.insert(name.clone(), model);
    }
}

fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

/// Reads `[models.NAME]`; what does not fit stays at its default and is noted.
fn model(name: &str, s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> ModelConfig {
    let count = errors.len();
    let path = absolute(s, "path", errors);
    if path.is_none() && errors.len() == count {
        let what = format!("{} is missing", s.key("path"));
        errors.push(ConfigError::at(s.place(), what, "name the model file, or a folder with model.toml"));
    }
    let mut model = ModelConfig::new(name, &path.unwrap_or_default());
    model.backend = backend(s, errors);
    model.device = device(s, errors);
    model.precision = precision(s, errors);
    set(&mut model.slots, s.count("slots", 1, u64::from(limits::SLOTS_MAX), errors).map(|v| v as u32));
    set(&mut model.queue, s.plain::<Queue>("queue", "\"latest\" or \"in_order\"", errors));
    model.cpu = cpu(s, errors);
    let scheduling = scheduling(s, errors);
    model.scheduling = scheduling.as_ref().map_or(Scheduling::Other, |v| *v.get_ref());
    let nice = s.number("nice", -20..=19, errors);
    if let (Some(nice), Scheduling::Fifo(_)) = (&nice, model.scheduling) {
        let what = format!("{} has no effect beside scheduling \"fifo\"", s.key("nice"));
        s.refuse(nice, what, "remove one of the two", errors);
    }
    model.nice = nice.map(|v| v.into_inner() as i32);
    model.spin_us = spin_us(s, model.scheduling, errors).unwrap_or(limits::SPIN_US_DEFAULT);
    model.confine = confine(s, errors);
    set(&mut model.max_run_ms, s.count("max_run_ms", 1, limits::RUN_MS_MAX, errors));
    set(&mut model.load_ms, s.count("load_ms", 1, limits::LOAD_MS_MAX, errors));
    set(&mut model.optional, s.plain("optional", "true or false", errors));
    set(&mut model.keep_previous, change::keep_previous(s, errors));
    model.record = change::record(s, errors);
    set(&mut model.watch, s.plain("watch", "true or false", errors));
    model.gate = change::gate(s, errors);
    if let Some(section) = s.section("options", errors) {
        model.options = options(section, errors);
    }
    model
}

/// Whether workers are confined.
fn confine(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> Option<Confine> {
    s.plain("confine", "\"on\", \"off\" or \"require\"", errors)
}

/// An absolute path.
fn absolute(s: &mut Section<'_>, key: &'static str, errors: &mut Vec<ConfigError>) -> Option<PathBuf> {
    let value: Spanned<String> = s.value(key, "an absolute path, in quotes", errors)?;
    let path = PathBuf::from(value.get_ref());
    if path.is_absolute() && !value.get_ref().contains('\0') {
        return Some(path);
    }
    let what = format!("{}: {:?} is not an absolute path", s.key(key), value.get_ref());
    s.refuse(&value, what, "write the whole path from /", errors);
    None
}

/// A backend's name, in a configuration or a manifest.
pub(crate) fn backend(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> Option<String> {
    let expected = format!("one of {}, or the name of a worker of your own", crate::manifest::BACKENDS.join(", "));
    let value: Spanned<String> = s.value("backend", &expected, errors)?;
    if is_backend_name(value.get_ref()) {
        return Some(value.into_inner());
    }
    let what = format!("{}: {:?} is not a backend's name", s.key("backend"), value.get_ref());
    s.refuse(&value, what, &format!("give {expected}"), errors);
    None
}

/// The device that a model runs on, in a configuration or a manifest.
pub(crate) fn device(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> Option<Device> {
    const EXPECTED: &str = "\"cpu\" or \"cuda:N\"";
    named(s, "device", EXPECTED, Device::from_name, errors)
}

/// What a model computes in, in a configuration or a manifest.
pub(crate) fn precision(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> Option<Precision> {
    const EXPECTED: &str = "\"fp32\", \"fp16\" or \"bf16\"";
    named(s, "precision", EXPECTED, Precision::from_name, errors)
}

fn named<T>(
    s: &mut Section<'_>,
    key: &'static str,
    expected: &str,
    read: impl Fn(&str) -> Option<T>,
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    let value: Spanned<String> = s.value(key, expected, errors)?;
    let found = read(value.get_ref());
    if found.is_none() {
        s.refuse(&value, format!("{} is {:?}", s.key(key), value.get_ref()), &format!("give {expected}"), errors);
    }
    found
}

/// Options of a backend: strings, numbers and truth values, all handed on as text.
pub(crate) fn options(section: Section<'_>, errors: &mut Vec<ConfigError>) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    let (place, title) = (section.place(), section.key("options"));
    for (name, value) in section.rest() {
        match option_text(value.get_ref()) {
            Some(text) => {
                options.insert(name.into_inner(), text);
            }
            None => {
                let what = format!("option `{}` is neither a string, a number nor a truth value", name.get_ref());
                errors.push(ConfigError::at(place.clone(), what, "give one of these; lists go into a string"));
            }
        }
    }
    if options.len() > limits::OPTIONS_MAX {
        let what = format!("{} options, over the limit of {} ({title})", options.len(), limits::OPTIONS_MAX);
        errors.push(ConfigError::at(place, what, "remove some"));
        options.clear();
    }
    options
}

/// CPUs that this process may run on, as it was started.
fn allowed_cpus() -> Vec<u32> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).map(|cpu| cpu as u32).collect()
}

/// `0-3,6`.
fn cpu_list(cpus: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let text = ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    text.collect::<Vec<_>>().join(",")
}

fn cpu(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> Option<u32> {
    let value: Spanned<u32> = s.value("cpu", "the number of a CPU", errors)?;
    let allowed = allowed_cpus();
    if allowed.is_empty() || allowed.contains(value.get_ref()) {
        return Some(value.into_inner());
    }
    let what = format!("{}: inferd may not run on CPU {}", s.key("cpu"), value.get_ref());
    let remedy = format!("choose one of {}, or widen the affinity that inferd is started with", cpu_list(&allowed));
    s.refuse(&value, what, &remedy, errors);
    None
}

fn scheduling(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> Option<Spanned<Scheduling>> {
    let value: Spanned<String> = s.value("scheduling", "\"other\" or \"fifo:PRIORITY\"", errors)?;
    let text = value.get_ref();
    let parsed = match text.strip_prefix("fifo:") {
        Some(priority) => priority.parse().ok().filter(|p| (1..=99).contains(p)).map(Scheduling::Fifo),
        None => (text == "other").then_some(Scheduling::Other),
    };
    if let Some(scheduling) = parsed {
        return Some(Spanned::new(value.span(), scheduling));
    }
    let what = format!("{}: {text:?} is no scheduling", s.key("scheduling"));
    s.refuse(&value, what, "give \"other\", or \"fifo:\" and a priority from 1 to 99", errors);
    None
}

fn spin_us(s: &mut Section<'_>, scheduling: Scheduling, errors: &mut Vec<ConfigError>) -> Option<u64> {
    let value = s.number("spin_us", 0..=limits::SPIN_US_MAX as i64, errors)?;
    let most = limits::SPIN_US_FIFO_MAX;
    if matches!(scheduling, Scheduling::Fifo(_)) && *value.get_ref() > most as i64 {
        let what = format!("{} is {} under scheduling \"fifo\"", s.key("spin_us"), value.get_ref());
        let remedy = format!("give at most {most}, or the kernel's real-time throttling stops everybody on that CPU");
        s.refuse(&value, what, &remedy, errors);
        return None;
    }
    u64::try_from(value.into_inner()).ok()
}

fn socket(
    s: &mut Section<'_>,
    (mode_key, group_key): (&'static str, &'static str),
    socket: &mut SocketConfig,
    named: &mut bool,
    errors: &mut Vec<ConfigError>,
) {
    if let Some(value) = s.value::<String>(mode_key, "an octal mode in quotes, as \"0660\"", errors) {
        // Without rw for the owner the daemon's own user could not connect; further bits mean nothing on a socket.
        let mode = u32::from_str_radix(value.get_ref(), 8).ok().filter(|m| m & !0o666 == 0 && m & 0o600 == 0o600);
        match mode {
            Some(mode) if mode_key == "control_mode" && mode & 0o006 != 0 => {
                let what = format!("{} {:?} would let everybody swap models", s.key(mode_key), value.get_ref());
                s.refuse(
                    &value,
                    what,
                    "give at most \"0660\", and name the operators' group in `control_group`",
                    errors,
                );
            }
            Some(mode) => socket.mode = mode,
            None => {
                let what = format!("{}: {:?} is no mode of a socket", s.key(mode_key), value.get_ref());
                s.refuse(&value, what, "give octal digits in quotes from \"0600\" to \"0666\"", errors);
            }
        }
    }
    if let Some(value) = s.value::<String>(group_key, "the name of a group", errors) {
        *named = true;
        match group(value.get_ref()) {
            Ok(group) => socket.group = group,
            Err((what, remedy)) => s.refuse(&value, format!("{}: {what}", s.key(group_key)), &remedy, errors),
        }
    }
}

/// A group that exists and that this process may give a socket to; an empty name is no group.
fn group(name: &str) -> Result<Option<SocketGroup>, (String, String)> {
    if name.is_empty() {
        return Ok(None);
    }
    let found = Group::from_name(name).map_err(|e| {
        (format!("group {name:?} cannot be looked up: {e}"), "check /etc/group and nsswitch.conf".into())
    })?;
    let Some(found) = found else {
        return Err((format!("group {name:?} does not exist"), format!("create it (groupadd --system {name})")));
    };
    let gid = found.gid;
    let member = Gid::effective() == gid || getgroups().is_ok_and(|all| all.contains(&gid));
    if !Uid::effective().is_root() && !member {
        let what = format!("the user that runs inferd is not a member of group {name:?}");
        return Err((what, format!("add it (usermod -aG {name} USER), or remove the key")));
    }
    Ok(Some(SocketGroup { name: name.to_owned(), gid: gid.as_raw() }))
}

fn usable_group(name: &str) -> Option<SocketGroup> {
    group(name).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn cpus_are_listed_as_ranges() {
        assert_eq!(cpu_list(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(cpu_list(&[]), "");
    }

    /// A CPU that this process may run on.
    pub fn some_cpu() -> u32 {
        allowed_cpus()[0]
    }
}
