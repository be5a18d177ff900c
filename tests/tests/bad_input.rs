//! Wrong files, wrong words, wrong circumstances: each ends in one message that says what, where and the remedy.
//!
//! The program exits with a code or the call returns a typed error; what ran before is not disturbed. One
//! daemon with a live session stands beside each test that could disturb one.

use inferd_ipc::attach::{self, AttachStatus, Attached, RecordKind};
use inferd_ipc::control::{Command as Rpc, Reload, RpcError, ValidateAnswer, code};
use inferd_ipc::fdpass;
use inferd_ipc::layout::{Backing, Geometry};
use inferd_ipc::limits::{CONTROL_REQUESTS_OPEN_MAX, VALIDATIONS_MAX};
use inferd_tests::control::Control;
use inferd_tests::ran::Ran;
use inferd_tests::skip::is_root;
use inferd_tests::{Client, Daemon, DaemonConfig, Driver, Model, ms, onnx, scenarios, skip, turn, within};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, listen, socket};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use zerocopy::IntoBytes;

fn memfd() -> DaemonConfig {
    DaemonConfig::new(Backing::Memfd)
}

/// A daemon with a session that must go on working.
fn with_a_session() -> (Daemon, Driver) {
    let daemon = memfd().model(Model::counter("m").queue(4, "in_order")).start();
    let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
    robot.ok("attach model=m");
    robot.exchange("fill=1").expect("ok");
    (daemon, robot)
}

fn undisturbed(daemon: &Daemon, robot: &mut Driver, steps: u64) {
    let reply = robot.exchange("fill=2").expect("ok");
    assert_eq!((reply.number("step"), reply.number("generation")), (steps, 1));
    assert_eq!((daemon.model("m").state, daemon.model("m").worker_deaths), ("live".to_owned(), 0));
}

/// Writes a model folder with a real ONNX file and this manifest; returns the folder.
fn onnx_folder(daemon: &Daemon, name: &str, file: &[u8], manifest: &str) -> std::path::PathBuf {
    let folder = daemon.dir().join("files").join(name);
    fs::create_dir_all(&folder).expect("our own folder");
    fs::write(folder.join("model.onnx"), file).expect("our own file");
    fs::write(folder.join("model.toml"), format!("file = \"model.onnx\"\n{manifest}")).expect("our own file");
    folder
}

fn validate(daemon: &Daemon, path: &std::path::Path) -> Result<ValidateAnswer, RpcError> {
    daemon.rpc(&Rpc::Validate { path: path.display().to_string(), backend: None })
}

#[test]
fn a_model_that_does_not_parse_is_refused_by_name_wherever_it_appears() {
    let _turn = turn();
    let (daemon, mut robot) = with_a_session();
    let good = onnx_folder(&daemon, "good", &onnx::plus_one(&[1, 8]), "");
    let answer = validate(&daemon, &good).expect("the right file is right");
    assert_eq!((answer.signature.inputs[0].name.as_str(), answer.signature.inputs[0].bytes()), ("x", 32));
    let cut = onnx::plus_one(&[1, 8])[..40].to_vec();
    for (name, bytes) in [("garbage", b"\x7fELF no policy".to_vec()), ("cut", cut), ("empty", Vec::new())] {
        let bad = onnx_folder(&daemon, name, &bytes, "");
        let error = validate(&daemon, &bad).expect_err(name);
        assert_eq!(error.code, code::REFUSED, "{}", error.message);
        assert!(error.message.contains("model.onnx"), "{}", error.message);
        let ran = daemon.tool("inferctl", &["load", name, &bad.display().to_string()]).refused(&["model.onnx"]);
        assert_eq!(ran.code, Some(4), "a refusal, and not a failure of the tool");
        let error = daemon.reload_from("m", &bad).expect_err(name);
        assert!(error.message.contains("model.onnx"), "{}", error.message);
    }
    undisturbed(&daemon, &mut robot, 2);
    // At start: fatal, unless the model is optional.
    let folder = onnx_folder(&daemon, "fatal", b"not a model", "");
    let mut second = memfd().model(Model::at("bad", &folder)).prepare();
    let status = second.try_start().expect_err("it cannot become ready");
    assert!(status.code().is_some_and(|c| c != 0));
    assert!(second.log().contains("model.onnx"), "{}", second.log());
    drop(second);
    let config = memfd().model(Model::at("bad", &folder).config("optional", "true")).model(Model::echo("good"));
    let third = config.start();
    assert_eq!((third.model("bad").state.as_str(), third.model("good").state.as_str()), ("failed", "live"));
    assert!(third.model("bad").message.is_some_and(|m| m.contains("model.onnx")));
    undisturbed(&daemon, &mut robot, 3);
}

#[test]
fn a_manifest_that_contradicts_the_file_is_refused_with_both_sides() {
    let _turn = turn();
    let (daemon, mut robot) = with_a_session();
    let file = onnx::plus_one(&[1, 8]);
    let cases = [
        ("shape", "[inputs.x]\nshape = [1, 9]\n", &["x", "9", "8"][..]),
        ("dtype", "[inputs.x]\ndtype = \"f64\"\n", &["x", "f64", "f32"]),
        ("name", "[inputs.speed]\nmean = 0.0\nstd = 1.0\n", &["speed"]),
        ("state", "[[state]]\ninput = \"x\"\noutput = \"z\"\n", &["z"]),
        ("sha", "sha256 = \"0000000000000000000000000000000000000000000000000000000000000000\"\n", &["sha256"]),
        ("elements", "[outputs.y]\nelements = [\"a [m]\", \"b [m]\"]\n", &["y", "elements"]),
        ("key", "colour = \"red\"\n", &["colour", "model.toml"]),
        ("range", "[outputs.y]\nlimits = [2.0, 1.0]\n", &["limits"]),
    ];
    for (name, manifest, words) in cases {
        let folder = onnx_folder(&daemon, name, &file, manifest);
        let error = validate(&daemon, &folder).expect_err(name);
        for word in words {
            assert!(error.message.contains(word), "{name}: {word:?} is not in: {}", error.message);
        }
    }
    undisturbed(&daemon, &mut robot, 2);
}

#[test]
fn a_second_daemon_on_the_same_sockets_leaves_the_first_alone() {
    let _turn = turn();
    let (daemon, mut robot) = with_a_session();
    let ran = Ran::of(daemon.command()).refused(&[]);
    let said = format!("{}{}", ran.out, ran.err);
    assert!(said.contains(&daemon.runtime_dir().display().to_string()), "{said}");
    undisturbed(&daemon, &mut robot, 2);
    assert_eq!(daemon.status().pid, daemon.pid());
}

#[test]
fn a_stale_socket_file_is_replaced_and_any_other_file_is_not() {
    let _turn = turn();
    let mut daemon = memfd().model(Model::echo("m")).start();
    daemon.kill();
    assert!(daemon.runtime_dir().join("attach.sock").exists(), "a killed daemon leaves its sockets behind");
    daemon.start();
    daemon.stop();
    let file = daemon.runtime_dir().join("attach.sock");
    fs::write(&file, "precious").expect("our own folder");
    let status = daemon.try_start().expect_err("a file stands in the way");
    assert!(status.code().is_some_and(|c| c != 0));
    assert!(daemon.log().contains("attach.sock"), "{}", daemon.log());
    assert_eq!(fs::read_to_string(&file).expect("still there"), "precious");
}

#[test]
fn paths_that_are_relative_missing_or_unreadable_are_refused_with_the_remedy() {
    let _turn = turn();
    let (daemon, mut robot) = with_a_session();
    let check = |path: &str| {
        let file = daemon.dir().join("other.toml");
        fs::write(&file, format!("[models.x]\npath = {path:?}\n")).expect("our own file");
        let mut command = std::process::Command::new(inferd_tests::places::program("inferd"));
        command.arg("--config").arg(&file).arg("--check-config");
        Ran::of(command)
    };
    check("models/policy.onnx").refused(&["models/policy.onnx", "absolute", "other.toml:2"]);
    check("/nonexistent/policy.onnx").refused(&["/nonexistent/policy.onnx", "other.toml:"]);
    for (path, word) in [("models/m", "absolute"), ("/nonexistent/m", "/nonexistent/m")] {
        let reload = daemon.rpc::<serde_json::Value>(&Rpc::Reload(Reload {
            model: "m".into(),
            path: Some(path.into()),
            ..Reload::default()
        }));
        let error = reload.expect_err(path);
        assert!(error.message.contains(word), "{}", error.message);
    }
    undisturbed(&daemon, &mut robot, 2);
    unreadable(&daemon);
}

/// Root reads everything: then an ordinary user asks.
fn unreadable(daemon: &Daemon) {
    let folder = onnx_folder(daemon, "closed", &onnx::plus_one(&[1, 8]), "");
    fs::set_permissions(folder.join("model.onnx"), fs::Permissions::from_mode(0o000)).expect("our own file");
    if !is_root() {
        let error = validate(daemon, &folder).expect_err("it cannot be read");
        assert!(error.message.contains("model.onnx"), "{}", error.message);
        return;
    }
    let program = daemon.dir().join("inferd");
    fs::copy(inferd_tests::places::program("inferd"), &program).expect("our own folder");
    fs::copy(inferd_tests::places::program("inferd-worker"), daemon.dir().join("inferd-worker"))
        .expect("our own folder");
    let file = daemon.dir().join("other.toml");
    fs::write(&file, format!("[models.x]\npath = {:?}\n", folder.display().to_string())).expect("our own file");
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups", "--"]).arg(&program);
    command.arg("--config").arg(&file).arg("--check-config");
    Ran::of(command).refused(&["model.onnx"]);
}

#[test]
fn a_configuration_with_an_unknown_key_says_file_line_and_key() {
    let _turn = turn();
    let cases = [
        ("[daemon]\nruntime_dri = \"/x\"\n", &["runtime_dri", ":2:"][..]),
        ("[models.m]\npath = \"/\"\nspeed = 3\n", &["speed", ":3:"]),
        ("[modles.m]\npath = \"/\"\n", &["modles", ":1:"]),
        ("[models.m]\npath = \"/\"\nslots = 65\n", &["slots", "65", ":3:"]),
        ("[models.m]\npath = \"/\"\nqueue = \"lifo\"\n", &["queue", "lifo", ":3:"]),
        ("[models.m]\npath = \"/\"\ncpu = 4096\n", &["cpu", ":3:"]),
        ("[models.m]\npath = \"/\"\nscheduling = \"fifo:100\"\n", &["scheduling", ":3:"]),
        ("[models.\"../m\"]\npath = \"/\"\n", &["../m", ":1:"]),
        ("[ipc]\nbacking = \"floppy\"\n", &["backing", "floppy", ":2:"]),
        ("[models.m\n", &["TOML", ":1:"]),
    ];
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (text, words) in cases {
        let file = dir.path().join("inferd.toml");
        fs::write(&file, text).expect("our own file");
        for check in [true, false] {
            let mut command = std::process::Command::new(inferd_tests::places::program("inferd"));
            command.arg("--config").arg(&file).arg("--runtime-dir").arg(dir.path().join("run"));
            command.args(check.then_some("--check-config"));
            let ran = Ran::of(command);
            let said = format!("{}{}", ran.out, ran.err);
            assert!(ran.code.is_some_and(|c| c != 0), "{said}");
            assert!(said.contains("inferd.toml") && words.iter().all(|w| said.contains(w)), "{words:?}: {said}");
        }
    }
    fs::write(dir.path().join("inferd.toml"), "[daemon]\ndrain_ms = 100\n").expect("our own file");
    let mut command = std::process::Command::new(inferd_tests::places::program("inferd"));
    command.arg("--config").arg(dir.path().join("inferd.toml")).arg("--check-config");
    Ran::of(command).succeeded();
}

#[test]
fn words_on_the_control_socket_that_are_no_command_get_typed_errors() {
    let _turn = turn();
    let (daemon, mut robot) = with_a_session();
    let cases = [
        ("nonsense", code::PARSE),
        ("[]", code::INVALID_REQUEST),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"fly\"}", code::METHOD_NOT_FOUND),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"reload\",\"params\":{}}", code::INVALID_PARAMS),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"unload\",\"params\":{\"model\":\"nobody\"}}", code::NOT_FOUND),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"disconnect\",\"params\":{\"session\":99}}", code::NOT_FOUND),
    ];
    for (line, expected) in cases {
        let mut control = daemon.control();
        control.raw(format!("{line}\n").as_bytes()).expect("the daemon listens");
        let error = control.message().and_then(|m| m.error).unwrap_or_else(|| panic!("no error for {line}"));
        assert_eq!(error.code, expected, "{line}: {}", error.message);
        assert!(!error.message.is_empty());
    }
    // A line without end must not grow for ever, and must not stop anybody else.
    let mut endless = daemon.control();
    let flood = vec![b'x'; 4 << 20];
    let _ = endless.raw(&flood);
    assert_eq!(daemon.status().state, "ready");
    undisturbed(&daemon, &mut robot, 2);
}

#[test]
fn requests_that_are_sent_at_once_are_all_answered_however_many() {
    let _turn = turn();
    let (daemon, mut robot) = with_a_session();
    let mut operator = Control::connect(&daemon.runtime_dir()).expect("it listens");
    let line = |id| format!("{{\"jsonrpc\": \"2.0\", \"id\": {id}, \"method\": \"stats\", \"params\": {{}}}}\n");
    let lines: String = (1..=3 * CONTROL_REQUESTS_OPEN_MAX).map(line).collect();
    operator.raw(lines.as_bytes()).expect("it reads");
    for id in 1..=3 * CONTROL_REQUESTS_OPEN_MAX {
        let answer = operator.message().expect("an answer to each");
        assert_eq!((answer.id, answer.error.is_none()), (Some(id.into()), true));
    }
    undisturbed(&daemon, &mut robot, 2);
}

#[test]
fn a_full_tmpfs_and_a_full_quota_refuse_the_attach_and_nothing_else() {
    let _turn = turn();
    let config = memfd().model(Model::echo("m").queue(4, "in_order")).set("quota", "sessions = 2");
    let daemon = config.start();
    let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
    robot.ok("attach s=0 model=m");
    robot.ok("attach s=1 model=m");
    let refused = robot.call("attach s=2 model=m");
    assert_eq!(refused.error(), "quota", "{}", refused.json);
    robot.ok("detach s=1");
    within(ms(2000), "a place is free again", || robot.call("attach s=1 model=m").is_ok());
    robot.exchange("fill=1").expect("ok");
    drop(robot);
    drop(daemon);
    if !is_root() {
        return skip("a_full_tmpfs", "only root can mount a small /dev/shm of its own");
    }
    full_tmpfs();
}

/// A daemon in a mount namespace of its own, whose /dev/shm has room for one session of this model.
fn full_tmpfs() {
    let model = Model::echo("big").input("image", "u8", &[300, 1000]).queue(1, "in_order");
    let mut daemon = DaemonConfig::new(Backing::Posix).model(model).prepare();
    daemon.inside(&["unshare", "--mount", "--propagation", "private", "sh", "-c"], |inferd| {
        vec![format!("mount -t tmpfs -o size=500k tmpfs /dev/shm && exec {inferd}")]
    });
    daemon.start();
    let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
    robot.ok("attach s=0 model=big");
    let refused = robot.call("attach s=1 model=big");
    assert_eq!(refused.error(), "no_resources", "{}", refused.json);
    assert!(refused.message().contains("/dev/shm"), "{}", refused.json);
    robot.exchange("fill=1").expect("ok");
    robot.ok("detach");
    within(ms(2000), "there is room again", || robot.call("attach s=1 model=big").is_ok());
    let ticket = robot.send("s=1 fill=1");
    robot.ok(&format!("wait s=1 ticket={ticket} out=hash")).expect("ok");
}

#[test]
fn the_state_of_a_session_counts_against_its_uid() {
    let _turn = turn();
    // 16 MiB in two halves.
    let model = Model::echo("m").input("h", "f32", &[1 << 21]).output("h_out", "f32", &[1 << 21]).state("h", "h_out");
    let daemon = memfd().model(model).set("quota", "region_bytes = 20_000_000").start();
    let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
    robot.ok("attach model=m");
    robot.exchange("fill=1").expect("ok");
    let refused = robot.call("attach s=1 model=m");
    assert_eq!(refused.error(), "quota", "{}", refused.json);
    robot.ok("detach");
    within(ms(3_000), "there is room again", || robot.call("attach s=1 model=m").is_ok());
}

#[test]
fn validations_beyond_the_bound_are_refused_while_the_first_are_still_read() {
    let _turn = turn();
    // Large enough that it takes longer to read than to ask.
    let large = Model::counter("m").weights(&vec![7; 64 << 20]);
    let daemon = memfd().model(large).start();
    let path = daemon.dir().join("models/m").display().to_string();
    let ask = || {
        let mut operator = Control::connect(&daemon.runtime_dir()).expect("the control socket");
        operator.send(&Rpc::Validate { path: path.clone(), backend: Some("echo".into()) });
        operator
    };
    let mut operators: Vec<Control> = (0..2 * VALIDATIONS_MAX).map(|_| ask()).collect();
    let answers: Vec<_> = operators.iter_mut().map(|operator| operator.answer().1).collect();
    let busy = answers.iter().filter(|answer| answer.as_ref().is_err_and(|error| error.code == code::BUSY)).count();
    let done = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(busy > 0 && done >= VALIDATIONS_MAX && busy + done == answers.len(), "{answers:?}");
}

scenarios! {
    fn an_unknown_model_name_is_a_typed_error_that_names_it(case) {
        let daemon = case.config().model(Model::echo("m")).start();
        let mut robot = case.attached(&daemon, "s=1 model=m");
        let refused = robot.call("attach model=nobody");
        assert_eq!(refused.error(), "unknown_model", "{}", refused.json);
        assert!(refused.message().contains("nobody"), "{}", refused.json);
        assert_eq!(robot.call("attach model=../m").error(), "invalid");
        assert_eq!(robot.call("attach model=m slots=1000").error(), "invalid");
        let refused = robot.call("attach model=m slots=64");
        assert_eq!(refused.error(), "bad_request", "{}", refused.json);
        let ticket = robot.send("s=1 fill=1");
        robot.ok(&format!("wait s=1 ticket={ticket}")).expect("ok");
    }

    fn without_a_daemon_the_error_lists_every_place_that_was_tried(case) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut robot = Driver::start(&case.client.program().expect("checked"), dir.path());
        let refused = robot.call("attach model=m");
        assert_eq!(refused.error(), "no_daemon", "{}", refused.json);
        assert!(refused.message().contains(&dir.path().display().to_string()), "{}", refused.json);
        let daemon = case.config().model(Model::echo("m")).start();
        let tool = daemon.tool("inferctl", &["--runtime-dir", &dir.path().display().to_string(), "status"]);
        assert_eq!(tool.refused(&[&dir.path().display().to_string()]).code, Some(3));
    }

    fn a_daemon_of_another_abi_is_refused_with_both_versions(case) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("attach.sock");
        let server = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(server.as_raw_fd(), &UnixAddr::new(&path).expect("a short path")).expect("our own folder");
        listen(&server, Backlog::new(4).expect("4")).expect("a listener");
        let answering = std::thread::spawn(move || {
            let fd = accept(server.as_raw_fd()).expect("a client");
            // SAFETY: accept has just given this descriptor to us alone.
            let client = unsafe { OwnedFd::from_raw_fd(fd) };
            let mut record = [0; 4096];
            std::thread::sleep(ms(20));
            fdpass::recv(&client, &mut record).expect("ATTACH");
            let mut head = attach::head(RecordKind::Attached, size_of::<Attached>());
            (head.abi_major, head.abi_minor) = (7, 3);
            let answer = Attached {
                head,
                status: AttachStatus::AbiMismatch as u32,
                generation: 0,
                session: 0,
                geometry: Geometry::default(),
                backing: 0,
                spin_us: 0,
                version: attach::field("7.3.0"),
                message: attach::field("this daemon speaks ABI 7.3, the client 1.0; install the same major version"),
            };
            fdpass::send(&client, answer.as_bytes(), &[]).expect("the client listens");
            std::thread::sleep(ms(200));
        });
        let mut robot = Driver::start(&case.client.program().expect("checked"), dir.path());
        let refused = robot.call("attach model=m");
        assert_eq!(refused.error(), "abi_mismatch", "{}", refused.json);
        assert!(refused.message().contains("7.3") && refused.message().contains("1.0"), "{}", refused.json);
        answering.join().expect("no panic");
    }
}
