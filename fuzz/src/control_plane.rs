//! What operators write: lines of the control socket, the configuration, a manifest.

use inferd::config::reader::Document;
use inferd::config::{Config, ConfigErrors};
use inferd::manifest::Manifest;
use inferd::rpc::{Connection, Fate};
use inferd_ipc::control::{RpcError, RpcMessage};
use inferd_ipc::limits::{CONTROL_LINE_BYTES_MAX, CONTROL_OUTPUT_BYTES_MAX, CONTROL_REQUESTS_OPEN_MAX};
use std::path::Path;

/// A connection that is fed in pieces (the first byte says how long), answered and hung up.
pub fn control(bytes: &[u8]) {
    let Some((piece, lines)) = bytes.split_first() else { return };
    let mut connection = Connection::new();
    let mut output = Vec::new();
    for piece in lines.chunks(1 + usize::from(*piece)) {
        if connection.wants_read() {
            connection.feed(piece);
        }
        turn(&mut connection, &mut output);
    }
    connection.end();
    turn(&mut connection, &mut output);
    assert_eq!(connection.fate(), Fate::Close, "everything was answered and read");
    assert!(output.len() <= lines.len() * 4 * CONTROL_LINE_BYTES_MAX.min(4096) + CONTROL_OUTPUT_BYTES_MAX);
    for line in output.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let message: RpcMessage = serde_json::from_slice(line).expect("each line that goes out is a message");
        assert!(message.result.is_some() != message.error.is_some(), "an answer or an error: {message:?}");
    }
}

fn turn(connection: &mut Connection, output: &mut Vec<u8>) {
    while let Some(request) = connection.next_request() {
        assert!(connection.open() <= CONTROL_REQUESTS_OPEN_MAX);
        if output.len() % 2 == 0 {
            connection.answer(&request.id, &true);
        } else {
            connection.fail(&request.id, RpcError::new(-1, "no"));
        }
    }
    let bytes = connection.output().len();
    output.extend_from_slice(connection.output());
    connection.wrote(bytes);
}

/// `inferd.toml`, and a drop-in after a line of three dashes.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let names = ["/etc/inferd/inferd.toml", "/etc/inferd/inferd.d/1.toml"];
    let documents = text.splitn(2, "\n---\n").zip(names).map(|(text, name)| Document::from_text(Path::new(name), text));
    match Config::parse(documents) {
        Ok(config) => assert!(Config::diff(&config, &config).is_empty(), "nothing differs from itself"),
        Err(errors) => told(&errors),
    }
}

/// `model.toml`.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Manifest::parse(&Document::from_text(Path::new("/m/model.toml"), text)) {
        Ok(manifest) => {
            if let Some(file) = manifest.file {
                let path = Path::new(&file);
                let plain = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
                assert!(plain, "a model's file lies below its folder: {file:?}");
            }
        }
        Err(errors) => told(&errors),
    }
}

fn told(errors: &ConfigErrors) {
    assert!(!errors.0.is_empty() && !errors.to_string().is_empty(), "an error says something");
}
