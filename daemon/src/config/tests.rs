//! Tests of this module: good and bad input, and what each message must name.

use super::*;
use std::fs;
use tempfile::TempDir;

/// A folder with `inferd.toml` and drop-ins.
fn folder(main: &str, dropins: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("inferd.toml"), main).expect("written");
    fs::create_dir(dir.path().join("inferd.d")).expect("created");
    for (name, text) in dropins {
        fs::write(dir.path().join("inferd.d").join(name), text).expect("written");
    }
    dir
}

fn load(dir: &TempDir) -> Result<Config, ConfigErrors> {
    Config::load(Some(&dir.path().join("inferd.toml")), &Overrides::default())
}

fn load_text(text: &str) -> Result<Config, ConfigErrors> {
    load(&folder(text, &[]))
}

/// The one error of a text, without the folder's name.
fn error_of(text: &str) -> String {
    let dir = folder(text, &[]);
    let errors = load(&dir).expect_err(text);
    assert_eq!(errors.0.len(), 1, "{errors}");
    errors.to_string().replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn the_documented_example_is_read_as_it_says() {
    let cpu = sections::tests::some_cpu();
    let config = load_text(&format!(
        "[daemon]\ndrain_ms = 100\nattach_mode = \"0600\"\nattach_group = \"\"\n[ipc]\nbacking = \"posix\"\nwaiting = \"epoll\"\nmlock = true\n[worker]\nconfine = \"require\"\n\
         [quota]\nsessions = 3\nregion_bytes = 1_000_000\n\
         [models.go2]\npath = \"/m/policy.onnx\"\nbackend = \"tract\"\nslots = 8\nqueue = \"latest\"\ncpu = {cpu}\n\
         scheduling = \"fifo:80\"\nspin_us = 20\nmax_run_ms = 100\nload_ms = 5\nconfine = \"off\"\noptional = true\nkeep_previous = false\n\
         options = {{ threads = 2, fast = true, name = \"x\", factor = 0.5 }}\n"
    ))
    .expect("sound");
    assert_eq!((config.daemon.drain_ms, config.daemon.attach_socket.mode), (100, 0o600));
    assert_eq!(config.daemon.attach_socket.group, None);
    assert_eq!(config.ipc, IpcConfig { backing: Backing::Posix, waiting: Waiting::Epoll, mlock: true });
    assert_eq!(config.worker.confine, Confine::Require);
    assert_eq!((config.quota.sessions, config.quota.region_bytes), (3, 1_000_000));
    let m = &config.models["go2"];
    assert_eq!((m.slots, m.queue, m.cpu, m.spin_us), (8, Queue::Latest, Some(cpu), 20));
    assert_eq!((m.scheduling, m.max_run_ms, m.load_ms), (Scheduling::Fifo(80), 100, 5));
    assert_eq!(m.confine, Some(Confine::Off));
    assert!(m.optional && m.keep_previous == KeepPrevious::No);
    let options: Vec<_> = m.options.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(options, ["factor=0.5", "fast=true", "name=x", "threads=2"]);
}

#[test]
fn a_model_needs_only_its_path() {
    let config = load_text("[models.a]\npath = \"/m\"\n").expect("sound");
    assert_eq!(config.models["a"], ModelConfig::new("a", Path::new("/m")));
    assert_eq!(load_text("").expect("an empty file").models.len(), 0);
}

#[test]
fn every_mistake_says_where_what_and_the_remedy() {
    let cases = [
        (
            "[models.a]\npath = \"/m\"\nslot = 4",
            "inferd.toml:3:1: unknown key `slot` of [models.a]; did you mean `slots`?",
        ),
        ("[daemons]\n", "inferd.toml:1:2: unknown key `daemons`; did you mean `daemon`?"),
        (
            "[models.a]\npath = \"m.onnx\"",
            "inferd.toml:2:8: `path` of [models.a]: \"m.onnx\" is not an absolute path; write the whole path from /",
        ),
        (
            "[models.a]\nslots = 4",
            "inferd.toml:1:1: `path` of [models.a] is missing; name the model file, or a folder with model.toml",
        ),
        (
            "[models.a]\npath = \"/m\"\nslots = 65",
            "inferd.toml:3:9: `slots` of [models.a] is 65; give a whole number from 1 to 64",
        ),
        (
            "[models.a]\npath = \"/m\"\nslots = \"4\"",
            "inferd.toml:3:9: `slots` of [models.a]: invalid type: string \"4\", expected i64; give a whole number from 1 to 64",
        ),
        (
            "[models.\"../a\"]\npath = \"/m\"",
            "inferd.toml:1:9: \"../a\" is not a model name; use 1 to 63 letters, digits, '.', '_' or '-', the first no '.' or '-'",
        ),
        (
            "[models.a]\npath = \"/m\"\nscheduling = \"fifo:100\"",
            "inferd.toml:3:14: `scheduling` of [models.a]: \"fifo:100\" is no scheduling; give \"other\", or \"fifo:\" and a priority from 1 to 99",
        ),
        ("[models.a]\npath = \"/m\"\nqueue = \"newest\"", "give \"latest\" or \"in_order\""),
        (
            "[models.a]\npath = \"/m\"\nbackend = \"../x\"",
            "give one of tract, torch, ort, echo, or the name of a worker of your own",
        ),
        (
            "[models.a]\npath = \"/m\"\nscheduling = \"fifo:9\"\nnice = 3",
            "inferd.toml:4:8: `nice` of [models.a] has no effect",
        ),
        (
            "[models.a]\npath = \"/m\"\nscheduling = \"fifo:9\"\nspin_us = 100001",
            "inferd.toml:4:11: `spin_us` of [models.a] is 100001 under scheduling \"fifo\"; give at most 100000",
        ),
        ("[models.a]\npath = \"/m\"\nspin_us = 10000001", "give a whole number from 0 to 10000000"),
        (
            "[models.a]\npath = \"/m\"\ncpu = 1000000",
            "inferd.toml:3:7: `cpu` of [models.a]: inferd may not run on CPU 1000000; choose one of ",
        ),
        (
            "[models.a]\npath = \"/m\"\noptions = { x = [1] }",
            "option `x` is neither a string, a number nor a truth value",
        ),
        ("[daemon]\ncontrol_mode = \"0666\"", "would let everybody swap models"),
        (
            "[daemon]\nattach_mode = \"0777\"",
            "inferd.toml:2:15: `attach_mode` of [daemon]: \"0777\" is no mode of a socket",
        ),
        ("[daemon]\nattach_mode = 660", "give an octal mode in quotes"),
        ("[daemon]\nattach_group = \"no-such-group-here\"", "group \"no-such-group-here\" does not exist; create it"),
        ("[ipc]\nbacking = \"shm\"", "give \"memfd\" or \"posix\""),
        ("[quota]\nsessions = 0", "give a whole number from 1 to 128"),
        ("models = 3", "inferd.toml:1:10: `models` is not a table; write [models]"),
        ("[models.a]\npath = \"/m\"\npath = \"/n\"", "inferd.toml:3:1: not TOML: duplicate key"),
    ];
    for (text, expected) in cases {
        let error = error_of(text);
        assert!(error.contains(expected), "{text}\n  says {error}\n  not  {expected}");
    }
}

#[test]
fn all_mistakes_of_all_files_are_reported_at_once_in_order() {
    let dir = folder(
        "[models.a]\nslots = 0\npath = \"x\"\n[ipc]\nfoo = 1\n",
        &[("10.toml", "[models.a]\npath = \"/m\"\n"), ("20.toml", "broken =\n"), ("ignored.txt", "= broken")],
    );
    let errors = load(&dir).expect_err("five mistakes");
    let lines: Vec<_> = errors
        .0
        .iter()
        .map(|e| {
            let place = e.place.as_ref().expect("a place");
            format!("{}:{}", place.file.file_name().expect("a name").to_string_lossy(), place.line)
        })
        .collect();
    assert_eq!(lines[..4], ["10.toml:1", "20.toml:1", "inferd.toml:2", "inferd.toml:3"], "{errors}");
    assert_eq!(lines.last().map(String::as_str), Some("inferd.toml:5"));
    let twice = &errors.0[0].to_string();
    assert!(twice.contains("10.toml") && twice.contains("inferd.toml:1"), "names both files: {twice}");
}

#[test]
fn drop_ins_override_single_keys_in_the_order_of_their_names() {
    let dir = folder(
        "[daemon]\ndrain_ms = 1\nallow_unmapped_uids = true\n",
        &[("b.toml", "[daemon]\ndrain_ms = 3\n"), ("a.toml", "[daemon]\ndrain_ms = 2\n[models.x]\npath = \"/x\"\n")],
    );
    let config = load(&dir).expect("sound");
    assert_eq!((config.daemon.drain_ms, config.daemon.allow_unmapped_uids), (3, true));
    assert_eq!(config.files.len(), 3);
    assert!(config.models.contains_key("x"));
}

#[test]
fn a_file_asked_for_by_name_must_be_there_and_be_text() {
    let error = Config::load(Some(Path::new("/nowhere/inferd.toml")), &Overrides::default()).expect_err("absent");
    assert!(error.to_string().starts_with("/nowhere/inferd.toml: cannot be read: "), "{error}");
    let dir = folder("", &[]);
    fs::write(dir.path().join("inferd.toml"), [b'#', 0xff]).expect("written");
    assert!(load(&dir).expect_err("binary").to_string().contains("not UTF-8 at byte 1"));
    fs::remove_file(dir.path().join("inferd.toml")).expect("removed");
    fs::create_dir(dir.path().join("inferd.toml")).expect("created");
    assert!(load(&dir).expect_err("a folder").to_string().contains("not a regular file"));
}

#[test]
fn the_command_line_wins_over_the_files() {
    let dir = folder("[daemon]\nruntime_dir = \"/a\"\nworker_dir = \"/w\"\n", &[]);
    let overrides = Overrides { runtime_dir: Some("/b".into()), worker_dir: None, state_dir: None };
    let config = Config::load(Some(&dir.path().join("inferd.toml")), &overrides).expect("sound");
    assert_eq!(config.daemon.runtime_dir.as_deref(), Some(Path::new("/b")));
    assert!(config.daemon.worker_dir.is_some());
}

#[test]
fn a_column_counts_characters_and_not_bytes() {
    assert!(error_of("[models.a]\npath = \"/m\"\noptions = { \"ü\" = [], x = 1 }").contains("option `ü`"));
    let document = reader::Document::from_text(Path::new("f"), "a\nü = x");
    assert_eq!(document.place(&(7..8)).to_string(), "f:2:5");
    assert_eq!(document.place(&(900..901)).to_string(), "f:2:6");
}

#[test]
fn a_reload_touches_only_what_changed() {
    let model = |rest: &str| format!("path = \"/m\"\n{rest}\n");
    let old = format!(
        "[models.same]\n{}[models.gone]\n{}[models.slots]\n{}[models.spin]\n{}",
        model(""),
        model(""),
        model("slots = 2"),
        model("spin_us = 1")
    );
    let new = format!(
        "[models.same]\n{}[models.new]\n{}[models.slots]\n{}[models.spin]\n{}[ipc]\nbacking = \"posix\"\n",
        model(""),
        model(""),
        model("slots = 3"),
        model("spin_us = 2")
    );
    let (old, new) = (load_text(&old).expect("sound"), load_text(&new).expect("sound"));
    let diff = Config::diff(&old, &new);
    assert_eq!((diff.added, diff.removed, diff.same), (vec!["new".into()], vec!["gone".into()], vec!["same".into()]));
    let change = |name: &str, reload| ModelChange { name: name.into(), reload };
    assert_eq!(diff.changed, [change("slots", false), change("spin", true)]);
    assert_eq!(diff.restart, ["ipc.backing"]);
    assert!(Config::diff(&old, &old).is_empty());
    let mut locked = old.clone();
    locked.ipc.mlock = true;
    assert!(Config::diff(&old, &locked).changed.iter().all(|c| c.reload));
}

#[test]
fn checking_finds_missing_models_manifests_and_workers() {
    let dir = folder("", &[]);
    let at = dir.path().display();
    fs::write(dir.path().join("there.onnx"), "x").expect("written");
    fs::write(dir.path().join("inferd-worker"), "").expect("written");
    fs::create_dir(dir.path().join("empty")).expect("created");
    let text = format!(
        "[daemon]\nworker_dir = \"{at}\"\n[models.a]\npath = \"{at}/absent.onnx\"\n[models.b]\npath = \"{at}/empty\"\n\
         [models.c]\npath = \"{at}/there.onnx\"\n"
    );
    fs::write(dir.path().join("inferd.toml"), text).expect("written");
    let config = load(&dir).expect("sound in itself");
    let errors = config.check().expect_err("three mistakes").to_string();
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines.len(), 3, "{errors}");
    assert!(lines[0].contains("inferd.toml:3:") && lines[0].contains("absent.onnx cannot be found"), "{errors}");
    assert!(lines[1].contains("inferd.toml:5:") && lines[1].contains("holds no model.toml"), "{errors}");
    assert!(lines[2].contains("inferd.toml:7:") && lines[2].contains("no worker for backend \"tract\""), "{errors}");
}

#[test]
fn a_file_full_of_rubbish_is_refused_at_once_with_a_bounded_list() {
    let start = std::time::Instant::now();
    for text in ["x\n".repeat(200_000), (0..60_000).map(|i| format!("key{i} = 1\n")).collect()] {
        let errors = load_text(&text).expect_err("rubbish");
        assert!(errors.0.len() <= 101, "{}", errors.0.len());
    }
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

#[test]
fn backend_names_cannot_leave_the_worker_folder() {
    assert!(is_backend_name("torch") && is_backend_name("my-own_2"));
    for bad in ["", "../x", "-x", "A", "a/b", "a.b", &"x".repeat(33)] {
        assert!(!is_backend_name(bad), "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\[[a-z.\"]{0,12}\\]\n|[a-z_]{1,12} = [-0-9a-z\"\\[\\]{},.:ü]{0,12}\n|\\PC{0,8}){0,12}") {
        let document = reader::Document::from_text(Path::new("f"), &text);
        let _ = crate::manifest::Manifest::parse(&document);
        let _ = Config::parse([document]);
    }
}

#[test]
fn what_a_change_must_show_and_what_is_kept_is_read_as_it_says() {
    let model = |lines: &str| format!("[models.a]\npath = \"/m\"\n{lines}\n");
    let config = load_text(&model(
        "keep_previous = \"disk\"\nwatch = true\nrecord_steps = 16\nrecord_bytes = 65536\n\
         gate = { shadow = \"2.5s\", max_diff = { action = 0.1, other = 2 }, max_latency_us = 500 }",
    ))
    .expect("sound");
    let m = &config.models["a"];
    assert_eq!((m.keep_previous, m.watch), (KeepPrevious::Disk, true));
    assert_eq!(m.record, RecordConfig { steps: Some(16), bytes: 65_536 });
    assert_eq!(m.gate.shadow, Some(inferd_ipc::control::Shadow::Seconds(2.5)));
    assert_eq!((m.gate.max_diff["action"], m.gate.max_diff["other"]), (0.1, 2.0));
    assert_eq!(m.gate.max_latency_us, Some(500.0));
    for (lines, said) in [
        ("gate = { shadow = \"soon\" }", "give a number of steps"),
        ("gate = { shadow = -1 }", "give a number of steps"),
        ("gate = { shadow = \"0s\" }", "give a number of steps"),
        ("gate = { max_diff = { action = -0.1 } }", "largest absolute difference allowed"),
        ("gate = { max_latency_us = 0 }", "above 0"),
        ("keep_previous = \"tape\"", "\"disk\""),
        ("record_steps = 100000000", "whole number"),
    ] {
        let error = error_of(&model(lines));
        assert!(error.contains(said), "{lines}: {error}");
    }
}

/// A model with this line.
fn of_model(line: &str) -> String {
    format!("[models.a]\npath = \"/m\"\n{line}")
}

#[test]
fn every_bound_of_the_configuration_holds_at_its_limit_and_not_above() {
    use inferd_ipc::limits::*;
    let (daemon, quota) = (|key: &str| format!("[daemon]\n{key} = N"), |key: &str| format!("[quota]\n{key} = N"));
    let bounds = [
        (daemon("drain_ms"), DRAIN_MS_MAX),
        (daemon("store_bytes"), STORE_BYTES_MAX),
        (daemon("store_generations"), STORE_GENERATIONS_MAX as u64),
        (quota("sessions"), SESSIONS_PER_UID_MAX as u64),
        (quota("connections"), CONNECTIONS_PER_UID_MAX as u64),
        (quota("half_attaches"), HALF_ATTACHES_PER_UID_MAX as u64),
        (of_model("slots = N"), u64::from(SLOTS_MAX)),
        (of_model("max_run_ms = N"), RUN_MS_MAX),
        (of_model("load_ms = N"), LOAD_MS_MAX),
        (of_model("spin_us = N"), SPIN_US_MAX),
        (of_model("scheduling = \"fifo:9\"\nspin_us = N"), SPIN_US_FIFO_MAX),
        (of_model("record_steps = N"), u64::from(RECORD_STEPS_MAX)),
        (of_model("record_bytes = N"), RECORD_BYTES_MAX),
        (of_model("gate = { shadow = N }"), u64::from(SHADOW_STEPS_MAX)),
        (of_model("gate = { shadow = \"Ns\" }"), SHADOW_MS_MAX / 1000),
    ];
    for (text, most) in bounds {
        let with = |n: u64| text.replace('N', &n.to_string());
        load_text(&with(most)).unwrap_or_else(|e| panic!("{}: {e}", with(most)));
        let error = error_of(&with(most + 1));
        assert!(error.contains(&most.to_string()), "{}: {error}", with(most + 1));
    }
    let options = |n: usize| {
        let all: Vec<String> = (0..n).map(|i| format!("o{i} = 1")).collect();
        of_model(&format!("options = {{ {} }}", all.join(", ")))
    };
    let models = |n: usize| (0..n).map(|i| format!("[models.m{i}]\npath = \"/m\"\n")).collect::<String>();
    let name = |n: usize| format!("[models.{}]\npath = \"/m\"", "x".repeat(n));
    let long = |n: usize| "#".repeat(n);
    for (text, most) in [
        (&options as &dyn Fn(usize) -> String, OPTIONS_MAX),
        (&models, MODELS_MAX),
        (&name, MODEL_NAME_BYTES_MAX),
        (&long, CONFIG_BYTES_MAX as usize),
    ] {
        load_text(&text(most)).unwrap_or_else(|e| panic!("{most}: {e}"));
        let errors = load_text(&text(most + 1)).expect_err("one more than the limit");
        assert!(errors.to_string().contains(&most.to_string()), "{errors}");
    }
    let dir = folder("", &[]);
    for i in 0..=CONFIG_DROPINS_MAX {
        fs::write(dir.path().join(format!("inferd.d/{i:03}.toml")), "").expect("written");
        assert_eq!(load(&dir).is_ok(), i < CONFIG_DROPINS_MAX, "{} drop-ins", i + 1);
    }
}

#[test]
fn what_nobody_configured_is_the_default_of_the_limits() {
    use inferd_ipc::limits::*;
    let config = load_text(&of_model("")).expect("sound");
    let (m, q, d) = (&config.models["a"], &config.quota, &config.daemon);
    assert_eq!(
        (m.slots, m.spin_us, m.max_run_ms, m.load_ms),
        (SLOTS_DEFAULT, SPIN_US_DEFAULT, RUN_MS_DEFAULT, LOAD_MS_DEFAULT)
    );
    assert_eq!(
        (q.sessions, q.connections, q.half_attaches),
        (SESSIONS_PER_UID_MAX, CONNECTIONS_PER_UID_MAX, HALF_ATTACHES_PER_UID_MAX)
    );
    assert_eq!((q.region_bytes, d.drain_ms), (REGION_BYTES_PER_UID_MAX, DRAIN_MS_DEFAULT));
    assert_eq!((d.store_bytes, d.store_generations), (STORE_BYTES_DEFAULT, STORE_GENERATIONS_DEFAULT));
    assert_eq!(m.record.bytes, RECORD_BYTES_DEFAULT);
}
