//! The operator's client against a control socket in a thread.

#![cfg(feature = "admin")]
#![allow(clippy::unwrap_used)]

use inferd_client::control::{Command, Reload, code};
use inferd_client::{AdminClient, DType, Error, RecordLayout, Status, TensorSpec};
use inferd_ipc::fdpass;
use inferd_ipc::record::{self, Begun};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

/// Answers each line with what `answer` makes of it; checks that it parses as a command.
fn serve(dir: &std::path::Path, answer: impl Fn(Command, u64) -> String + Send + 'static) -> JoinHandle<()> {
    let listener = UnixListener::bind(dir.join("control.sock")).unwrap();
    std::thread::spawn(move || {
        let mut stream: UnixStream = listener.accept().unwrap().0;
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            let mut value: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert_eq!(value["jsonrpc"], "2.0");
            let id = value["id"].as_u64().unwrap();
            let fields = value.as_object_mut().unwrap();
            fields.remove("jsonrpc");
            fields.remove("id");
            let _ = stream.write_all(answer(serde_json::from_value(value).unwrap(), id).as_bytes());
        }
    })
}

#[test]
fn commands_are_answered_in_their_own_types_with_progress_on_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), |command, id| match command {
        Command::Version {} => {
            format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"version":"1","abi":"1.0","kernel":"6"}}}}"#) + "\n"
        }
        Command::Reload(Reload { model, path: Some(path), .. }) => {
            assert_eq!((model.as_str(), path.as_str()), ("go2", "/m.onnx"));
            let progress = |id, stage| {
                format!(
                    r#"{{"jsonrpc":"2.0","method":"progress","params":{{"id":{id},"model":"go2","stage":"{stage}"}}}}"#
                ) + "\n"
            };
            let refused = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32001,"message":"not ONNX"}}}}"#);
            progress(id, "staging") + &progress(id + 7, "elsewhere") + &progress(id, "loading") + &refused + "\n"
        }
        Command::Limits {} => {
            format!(r#"{{"jsonrpc":"2.0","id":{},"result":"an older answer"}}"#, id - 1)
                + &format!("\n{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"slots_max\":64}}}}\n")
        }
        _ => String::new(),
    });
    let mut admin = AdminClient::connect(Some(dir.path())).unwrap();
    assert_eq!(admin.version().unwrap().abi, "1.0");
    let mut stages = Vec::new();
    let reload = Reload { model: "go2".into(), path: Some("/m.onnx".into()), ..Reload::default() };
    let refused = admin.reload(reload, &mut |step| stages.push(step.stage.clone())).unwrap_err();
    assert!(matches!(&refused, Error::Command(e) if e.code == code::REFUSED));
    assert_eq!((refused.to_string().as_str(), stages), ("not ONNX", vec!["staging".to_owned(), "loading".to_owned()]));
    assert_eq!(admin.limits().unwrap()["slots_max"], 64);
    admin.set_timeout(Some(Duration::from_millis(20)));
    assert!(matches!(admin.drain(), Err(Error::Timeout { .. })));
    drop(admin);
    server.join().unwrap();
}

#[test]
fn a_daemon_that_ends_or_is_missing_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(AdminClient::connect(Some(dir.path())), Err(Error::NoDaemon { .. })));
    let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
    let mut admin = AdminClient::connect(Some(dir.path())).unwrap();
    drop(listener.accept().unwrap());
    assert!(matches!(admin.status(), Err(Error::DaemonLost { .. })));
}

#[test]
fn a_dump_is_read_from_the_region_that_came_beside_the_answer() {
    let tensors = |name: &str| vec![TensorSpec::new(name, DType::F32, &[1])];
    let layout = RecordLayout { inputs: tensors("x"), states: vec![], outputs: tensors("y") };
    let region = record::create(&layout, 4).unwrap();
    let mut recorder = record::open_writer(region.as_fd(), &layout, 4).unwrap();
    for id in 7..9 {
        recorder.begin(&Begun { session: 3, observation_id: id, ..Begun::default() });
        recorder.input(0, &[1, 2, 3, id as u8]);
        recorder.begun();
        if id == 7 {
            recorder.output(0, &[5; 4]);
            recorder.end(Status::Ok, 0, 100);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
    let described = serde_json::to_value(&layout).unwrap();
    let server = std::thread::spawn(move || {
        let stream = listener.accept().unwrap().0;
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        for (id, slots) in [(1, 4), (2, 4000)] {
            let asked = lines.next().unwrap().unwrap();
            assert!(asked.contains(r#""method":"dump","params":{"model":"go2","session":3}"#), "{asked}");
            let answer = format!(
                r#"{{"jsonrpc":"2.0","id":{},"result":{{"model":"go2","session":3,"generation":1,"steps":{slots},"layout":{described},"region_bytes":4096}}}}"#,
                id
            );
            fdpass::send(&stream, (answer + "\n").as_bytes(), &[region.as_fd()]).unwrap();
        }
    });
    let mut admin = AdminClient::connect(Some(dir.path())).unwrap();
    let dump = admin.dump("go2", Some(3)).unwrap();
    let steps: Vec<_> = dump.steps().map(|s| (s.begun.observation_id, s.status, s.input(0).to_vec())).collect();
    assert_eq!(steps, [(7, Some(Status::Ok), vec![1, 2, 3, 7]), (8, None, vec![1, 2, 3, 8])]);
    // A region that is not what the answer says is not read.
    assert!(matches!(admin.dump("go2", Some(3)), Err(Error::Protocol { .. })));
    server.join().unwrap();
}
