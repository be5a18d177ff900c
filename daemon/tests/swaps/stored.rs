//! What the disk remembers, and what it does wrong: restarts, rollbacks, damaged and missing stores, watched files.

use super::{Daemon, folder, message, within};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub const SCENARIOS: &[(&str, fn())] = &[
    ("a_restart_serves_what_served_last_under_its_number", restart),
    ("a_restart_serves_the_configured_file_where_the_configuration_names_another", restart_elsewhere),
    ("a_damaged_store_is_refused_and_never_an_outage", damaged),
    ("a_store_that_cannot_be_written_is_never_an_outage", unwritable),
    ("a_full_disk_is_never_an_outage", full_disk),
    ("a_generation_that_is_kept_on_disk_comes_back_from_there", kept_on_disk),
    ("a_kept_worker_that_is_killed_comes_back_from_the_disk", kept_killed),
    ("a_watched_file_that_is_renamed_into_place_is_reloaded_and_half_a_file_never_is", watched),
    ("a_watched_file_that_is_refused_is_tried_once", watched_refused),
    ("a_watched_folder_that_is_replaced_or_away_for_a_while_is_watched_again", watched_replaced),
    ("a_watched_model_that_could_not_be_served_at_the_start_is_served_once_it_is_mended", watched_from_a_failed_start),
];

/// Waits until the live generation is stored, and returns its entry.
fn stored(daemon: &Daemon) -> Value {
    within("it is stored", || daemon.history()[0]["stored"] == true);
    daemon.history()[0].clone()
}

fn blob(daemon: &Daemon, entry: &Value) -> PathBuf {
    daemon.dir.path().join("state/blobs").join(entry["sha256"].as_str().expect("a hash"))
}

fn damage(path: &Path) {
    fs::remove_file(path).expect("it was stored");
    fs::write(path, "something else").expect("written");
}

fn restart() {
    let mut daemon = Daemon::start("none");
    daemon.reload("good");
    let before = stored(&daemon);
    assert_eq!((&before["generation"], &before["cause"]), (&json!(2), &json!("reload")));
    daemon.restart();
    daemon.serves(2);
    let model = daemon.model();
    assert_eq!(
        (&model["sha256"], &model["kept_generation"], &model["kept"]),
        (&before["sha256"], &json!(1), &json!("disk"))
    );
    assert!(model["drift"].as_str().is_some_and(|drift| drift.contains("reload m --path")), "{model}");
    assert_eq!(daemon.history()[0]["cause"], "restart");
    assert_eq!(daemon.reload("none")["result"]["to_generation"], 3, "numbers go on");
    let answer = daemon.call("rollback", json!({"model": "m"}));
    assert_eq!(answer["result"]["to_generation"], 2, "{answer}");
    daemon.serves(2);
    let ends: Vec<_> = daemon.history().iter().map(|e| (e["generation"].clone(), e["ended"].clone())).collect();
    assert_eq!(ends[0], (json!(2), Value::Null), "{ends:?}");
    assert_eq!(ends[1], (json!(3), json!("rolled back to 2")), "{ends:?}");
    daemon.drain();
}

fn restart_elsewhere() {
    let mut daemon = Daemon::start("none");
    daemon.reload("good");
    stored(&daemon);
    super::configure(daemon.dir.path(), &folder(daemon.dir.path(), "another"), "");
    daemon.restart();
    daemon.serves(3);
    assert_eq!((&daemon.model()["drift"], &daemon.history()[0]["cause"]), (&Value::Null, &json!("start")));
    daemon.drain();
}

fn damaged() {
    let mut daemon = Daemon::start("none");
    let first = stored(&daemon);
    daemon.reload("good");
    let second = stored(&daemon);
    daemon.restart();
    daemon.serves(2);
    damage(&blob(&daemon, &first));
    let answer = daemon.call("rollback", json!({"model": "m"}));
    assert!(message(&answer).contains("the stored copy of"), "{answer}");
    daemon.serves(2);
    damage(&blob(&daemon, &second));
    daemon.restart();
    daemon.serves(3);
    let causes: Vec<_> = daemon.history().iter().take(2).map(|e| e["cause"].clone()).collect();
    assert_eq!(causes, [json!("start"), json!("restart")], "the stored one was tried, the configured one serves");
    // What was written last was cut short by a power failure: the rest counts.
    assert_eq!(stored(&daemon)["generation"], 3);
    let file = daemon.dir.path().join("state/history/m.jsonl");
    let text = fs::read_to_string(&file).expect("a history");
    fs::write(&file, &text[..text.len() - 30]).expect("cut");
    daemon.restart();
    daemon.await_state("live");
    daemon.drain();
}

fn unwritable() {
    let daemon = Daemon::start("none");
    stored(&daemon);
    let blobs = daemon.dir.path().join("state/blobs");
    fs::remove_dir_all(&blobs).expect("removed");
    fs::write(&blobs, "a file where a folder was").expect("written");
    assert_eq!(daemon.reload("good")["result"]["to_generation"], 2);
    assert_eq!(daemon.reload("none")["result"]["to_generation"], 3);
    daemon.serves(3);
    assert_eq!(daemon.history()[0]["stored"], false);
    daemon.drain();
}

/// A small file system of its own, gone with this value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<SmallDisk> {
        fs::create_dir_all(&at).expect("a folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&at).status();
        mounted.is_ok_and(|status| status.success()).then_some(SmallDisk(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn full_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(dir.path().join("small")) else {
        return println!("SKIP a_full_disk_is_never_an_outage: file systems cannot be mounted here (run as root)");
    };
    let mut daemon = Daemon::start("none");
    daemon.restart_on(&disk.0);
    stored(&daemon);
    let large = folder(daemon.dir.path(), "large");
    fs::write(large.join("model.bin"), vec![1; 1 << 20]).expect("written");
    let answer = daemon.call("reload", json!({"model": "m", "path": large}));
    assert_eq!(answer["result"]["to_generation"], 2, "{answer}");
    assert_eq!(daemon.reload("none")["result"]["to_generation"], 3);
    within("what fits is stored again", || daemon.history()[0]["stored"] == true);
    assert_eq!(daemon.history()[1]["stored"], false, "the large one does not fit");
    assert_eq!(fs::read_dir(disk.0.join("blobs")).expect("there").count(), 2, "the manifest and the file that fits");
    daemon.serves(3);
    daemon.drain();
}

fn kept_on_disk() {
    let daemon = Daemon::start_with("none", "keep_previous = \"disk\"\n");
    let first = daemon.model()["worker_pid"].as_u64().expect("a worker");
    stored(&daemon);
    daemon.reload("good");
    within("the old worker is gone", || !Path::new(&format!("/proc/{first}")).exists());
    assert_eq!((&daemon.model()["kept"], &daemon.model()["kept_generation"]), (&json!("disk"), &json!(1)));
    for (from, to) in [(2, 1), (1, 2), (2, 1)] {
        stored(&daemon);
        let answer = daemon.call("rollback", json!({"model": "m"}));
        assert_eq!(
            (&answer["result"]["from_generation"], &answer["result"]["to_generation"]),
            (&json!(from), &json!(to))
        );
        daemon.serves(to);
    }
    daemon.drain();
}

fn kept_killed() {
    let daemon = Daemon::start("none");
    let first = daemon.model()["worker_pid"].as_i64().expect("a worker") as i32;
    stored(&daemon);
    daemon.reload("good");
    assert_eq!(daemon.model()["kept"], "alive");
    let score = fs::read_to_string(format!("/proc/{first}/oom_score_adj")).expect("it waits");
    assert_eq!(score.trim(), "1000", "the kernel takes it first");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL).expect("it waits");
    within("it is gone", || daemon.model()["kept"] == "disk");
    assert_eq!(daemon.call("rollback", json!({"model": "m"}))["result"]["to_generation"], 1);
    daemon.serves(1);
    let again = daemon.model()["worker_pid"].as_i64().expect("a worker");
    let score = fs::read_to_string(format!("/proc/{again}/oom_score_adj")).expect("it serves");
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("ours");
    assert_eq!(score, own, "who serves is not expendable");
    daemon.drain();
}

fn watched() {
    let daemon = Daemon::start_with("none", "watch = true\n");
    let file = folder(daemon.dir.path(), "none").join("model.bin");
    let whole = daemon.dir.path().join("next.bin");
    fs::write(&whole, "the second").expect("written");
    fs::rename(&whole, &file).expect("renamed");
    within("the renamed file is served", || daemon.model()["generation"] == 2);
    assert_eq!(daemon.history()[0]["cause"], "watch");
    let mut writer = fs::File::create(&file).expect("opened");
    for piece in 0..10 {
        writer.write_all(format!("piece {piece}\n").as_bytes()).expect("written");
        // Closed and opened again, as some copy: what lies there is half a file.
        drop(writer);
        std::thread::sleep(Duration::from_millis(80));
        writer = fs::File::options().append(true).open(&file).expect("opened");
    }
    drop(writer);
    within("the whole file is served", || daemon.model()["generation"] == 3);
    assert_eq!(daemon.model()["drift"], Value::Null, "it is the file as it is now");
    // Written again with the same bytes: nothing has changed.
    let text = fs::read(&file).expect("a file");
    fs::write(&file, text).expect("written");
    std::thread::sleep(Duration::from_millis(1500));
    daemon.serves(3);
    assert_eq!(daemon.history().len(), 3);
    daemon.drain();
}

fn watched_replaced() {
    let daemon = Daemon::start_with("none", "watch = true\n");
    let folder = folder(daemon.dir.path(), "none");
    let (aside, next) = (daemon.dir.path().join("aside"), daemon.dir.path().join("next"));
    fs::create_dir(&next).expect("a folder");
    for name in ["model.bin", "model.toml"] {
        fs::copy(folder.join(name), next.join(name)).expect("copied");
    }
    fs::rename(&folder, &aside).expect("renamed");
    fs::rename(&next, &folder).expect("renamed");
    // The same bytes in another folder: nothing to serve, and all to watch.
    std::thread::sleep(Duration::from_millis(1500));
    daemon.serves(1);
    fs::write(folder.join("model.bin"), "the second").expect("written");
    within("the new folder is watched", || daemon.model()["generation"] == 2);
    // Away for longer than anybody looks.
    fs::rename(&folder, &next).expect("renamed");
    std::thread::sleep(Duration::from_millis(1500));
    fs::write(next.join("model.bin"), "the third").expect("written");
    fs::rename(&next, &folder).expect("renamed");
    within("the folder that came back is watched", || daemon.model()["generation"] == 3);
    // Nothing that can be read, and then something.
    fs::write(folder.join("model.bin"), "").expect("written");
    std::thread::sleep(Duration::from_millis(1500));
    daemon.serves(3);
    fs::write(folder.join("model.bin"), "the fourth").expect("written");
    within("the file that can be read again is served", || daemon.model()["generation"] == 4);
    daemon.drain();
}

fn watched_from_a_failed_start() {
    let daemon = Daemon::start_with("refuses", "watch = true\noptional = true\n");
    daemon.await_state("failed");
    let folder = folder(daemon.dir.path(), "refuses");
    let manifest = fs::read_to_string(folder.join("model.toml")).expect("a file").replace("refuses", "none");
    fs::write(folder.join("model.toml"), manifest).expect("written");
    daemon.await_state("live");
    daemon.drain();
}

fn watched_refused() {
    const GATE: &str = "watch = true\ngate = { shadow = 4, max_diff = { out = 0.1 } }\n";
    let daemon = Daemon::start_with("none", GATE);
    let folder = folder(daemon.dir.path(), "none");
    fs::write(folder.join("model.bin"), "worse").expect("written");
    within("it was tried", || daemon.history().len() == 2);
    assert_eq!((&daemon.history()[0]["cause"], &daemon.history()[0]["generation"]), (&json!("watch"), &json!(0)));
    daemon.serves(1);
    fs::write(folder.join("unrelated"), "1").expect("written");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(daemon.history().len(), 2, "once is enough");
    assert!(daemon.model()["drift"].is_string());
    daemon.drain();
}
