//! What the doctor asks the system: files below a root, systemd's properties of units, users and groups, the daemon.

use super::Finding;
use inferd_client::control::Command as Ask;
use inferd_client::{ATTACH_SOCKET, AdminClient, CONTROL_SOCKET, Error, runtime_dir};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A socket file as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketFile {
    /// Where.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// The group's name, or its number.
    pub group: String,
    /// Whether it is a socket at all.
    pub is_socket: bool,
}

/// What is known of the machine; tests make one up.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Files are read below this folder.
    pub root: PathBuf,
    /// The directory where a client of this user would look.
    pub runtime_dir: PathBuf,
    /// Permission bits of that directory, if it exists.
    pub runtime_dir_mode: Option<u32>,
    /// The sockets that are there, by their file's name.
    pub sockets: BTreeMap<&'static str, SocketFile>,
    /// Properties of the units that systemd knows, by unit; empty without systemd.
    pub units: BTreeMap<String, BTreeMap<String, String>>,
    /// systemd's version.
    pub systemd: Option<u32>,
    /// The daemon is this user's own (`systemctl --user`), not the machine's.
    pub of_user: bool,
    /// Members of the groups that exist.
    pub groups: BTreeMap<&'static str, Vec<String>>,
    /// Who asks.
    pub user: String,
    /// Groups of this very process: a membership that was given meanwhile is not among them.
    pub effective_groups: Vec<String>,
    /// Every line of the configuration, with the file that it stands in.
    pub configuration: Vec<(PathBuf, String)>,
    /// Release of the kernel: major, minor.
    pub kernel: (u32, u32),
}

/// The units that are looked at.
pub const UNITS: [&str; 3] = ["inferd.service", "inferd-attach.socket", "inferd-control.socket"];
const PROPERTIES: &str = "Id,LoadState,ActiveState,UnitFileState,Result,StatusText,Type,LimitRTPRIO,LimitMEMLOCK,RestrictRealtime,ProtectHome,PrivateTmp,NeedDaemonReload";
/// Groups that packages and `sysusers.d` make.
pub const GROUPS: [&str; 2] = ["inferd", "inferd-admin"];

impl Machine {
    /// This machine, as the user who asks sees it.
    #[must_use]
    pub fn here(dir: Option<&Path>) -> Machine {
        let found = runtime_dir(dir, ATTACH_SOCKET).dir;
        let own = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("inferd"));
        let of_user = own.is_some_and(|own| own == found);
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        let (units, systemd) = units(of_user);
        Machine {
            root: PathBuf::from("/"),
            runtime_dir_mode: fs::metadata(&found).ok().map(|meta| meta.mode() & 0o7777),
            sockets: [ATTACH_SOCKET, CONTROL_SOCKET].iter().filter_map(|name| socket(&found, name)).collect(),
            runtime_dir: found,
            units,
            systemd,
            of_user,
            groups: GROUPS.iter().filter_map(|name| Some((*name, members(name)?))).collect(),
            user: user.map_or_else(|| "this user".to_owned(), |user| user.name),
            effective_groups: effective_groups(),
            configuration: configuration(of_user),
            kernel: kernel(),
        }
    }

    /// The text of a file below the root, trimmed; none if it cannot be read.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok().map(|text| text.trim().to_owned())
    }

    /// A property of a unit.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> Option<&str> {
        self.units.get(unit)?.get(name).map(String::as_str)
    }

    /// `systemctl`, for the manager that runs the daemon.
    #[must_use]
    pub fn systemctl(&self) -> &'static str {
        if self.of_user { "systemctl --user" } else { "systemctl" }
    }
}

fn socket(dir: &Path, name: &&'static str) -> Option<(&'static str, SocketFile)> {
    let path = dir.join(name);
    let meta = fs::metadata(&path).ok()?;
    let gid = nix::unistd::Gid::from_raw(meta.gid());
    let group = nix::unistd::Group::from_gid(gid).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name);
    let is_socket = meta.file_type().is_socket();
    Some((name, SocketFile { path, mode: meta.mode() & 0o777, group, is_socket }))
}

fn members(group: &str) -> Option<Vec<String>> {
    nix::unistd::Group::from_name(group).ok().flatten().map(|group| group.mem)
}

fn effective_groups() -> Vec<String> {
    let mut gids = nix::unistd::getgroups().unwrap_or_default();
    gids.push(nix::unistd::getegid());
    let name = |gid| nix::unistd::Group::from_gid(gid).ok().flatten().map(|group| group.name);
    gids.into_iter().filter_map(name).collect()
}

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Properties of our units, and systemd's version; nothing where there is no systemd.
fn units(of_user: bool) -> (BTreeMap<String, BTreeMap<String, String>>, Option<u32>) {
    let mut show = Command::new("systemctl");
    if of_user {
        show.arg("--user");
    }
    let Ok(shown) = show.args(["show", "-p", PROPERTIES, "--"]).args(UNITS).output() else { return Default::default() };
    let mut units = BTreeMap::new();
    for block in String::from_utf8_lossy(&shown.stdout).split("\n\n") {
        let pairs = block.lines().filter_map(|line| line.split_once('='));
        let properties: BTreeMap<String, String> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        if let Some(id) = properties.get("Id") {
            units.insert(id.clone(), properties);
        }
    }
    let version = Command::new("systemctl").arg("--version").output().ok();
    let version = version.and_then(|said| String::from_utf8_lossy(&said.stdout).split(' ').nth(1)?.parse().ok());
    (units, version)
}

/// The lines of the configuration that can be read, comments left out.
fn configuration(of_user: bool) -> Vec<(PathBuf, String)> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let of_home = || std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
    let base = if of_user { of_home() } else { Some(PathBuf::from("/etc")) };
    let Some(dir) = base.map(|base| base.join("inferd")) else { return Vec::new() };
    let named = std::env::var_os("INFERD_CONFIG").map(PathBuf::from).unwrap_or_else(|| dir.join("inferd.toml"));
    let dropins = fs::read_dir(named.with_file_name("inferd.d")).into_iter().flatten().flatten().map(|e| e.path());
    let mut files: Vec<PathBuf> = dropins.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files.insert(0, named);
    let mut lines = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let kept = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.extend(kept.map(|line| (file.clone(), line.to_owned())));
    }
    lines
}

/// What the running daemon says of itself and of its models, if this user may ask.
#[must_use]
pub fn daemon(dir: Option<&Path>) -> Vec<Finding> {
    const ABOUT: &str = "daemon";
    let mut client = match AdminClient::connect(dir) {
        Ok(client) => client,
        Err(Error::NoDaemon { .. }) => {
            let remedy = "join the group of control.sock (usermod -a -G inferd-admin USER, then log in again), or start the daemon";
            return vec![Finding::hint(ABOUT, "it cannot be asked: no daemon answers this user", remedy)];
        }
        Err(error) => return vec![Finding::fault(ABOUT, error.to_string(), "journalctl -u inferd says more")],
    };
    client.set_timeout(Some(std::time::Duration::from_secs(5)));
    let mut findings = Vec::new();
    match client.status() {
        Ok(status) if status.version == inferd_client::version() => {
            findings.push(Finding::ok(
                ABOUT,
                format!("{}, version {}, {} sessions", status.state, status.version, status.sessions),
            ));
        }
        Ok(status) => {
            let what = format!("it runs version {}, this program is {}", status.version, inferd_client::version());
            findings.push(Finding::hint(ABOUT, what, "restart the service after an upgrade"));
        }
        Err(error) => findings.push(Finding::fault(ABOUT, error.to_string(), "journalctl -u inferd says more")),
    }
    let models = client.call(&Ask::Models {}).unwrap_or_default();
    for model in models.as_array().into_iter().flatten() {
        findings.extend(of_model(model));
    }
    findings
}

/// What is to be said of one model, from the daemon's answer.
#[must_use]
pub fn of_model(model: &Value) -> Vec<Finding> {
    const ABOUT: &str = "model";
    let text = |key: &str| model[key].as_str().unwrap_or_default();
    let (name, state) = (text("model"), text("state"));
    let mut findings = Vec::new();
    match state {
        "live" => findings.push(Finding::ok(ABOUT, format!("{name} is live in generation {}", model["generation"]))),
        "quarantined" => {
            let what = format!("{name} is quarantined: its workers keep dying. {}", text("message"));
            findings.push(Finding::fault(
                ABOUT,
                what,
                format!("look at journalctl -u inferd F_MODEL={name}, then inferctl reload {name}"),
            ));
        }
        "failed" => {
            let what = format!("{name} is not served: {}", text("message"));
            findings.push(Finding::fault(ABOUT, what, format!("correct it, then inferctl reload {name}")));
        }
        _ => findings.push(Finding::hint(ABOUT, format!("{name} is {state}"), "look again in a moment")),
    }
    for warning in model["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let (what, remedy) = warning.rsplit_once("; ").unwrap_or((warning, "see the daemon's log"));
        findings.push(Finding::hint(ABOUT, format!("{name}: {what}"), remedy));
    }
    findings
}
