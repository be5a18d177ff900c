//! Tests of this module: good and bad input, and what each message must name.

use super::*;
use inferd_ipc::control::{Command, Done};
use proptest::prelude::*;
use serde_json::json;

fn parse(line: &str) -> Result<Option<Request>, (Value, RpcError)> {
    parse_line(line.as_bytes())
}

fn refusal(line: &str) -> (Value, i64, String) {
    let (id, error) = parse(line).expect_err(line);
    (id, error.code, error.message)
}

/// Everything that was written, parsed.
fn written(connection: &mut Connection) -> Vec<RpcMessage> {
    let bytes = connection.output().to_vec();
    connection.wrote(bytes.len());
    let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    lines.map(|l| serde_json::from_slice(l).expect("a message")).collect()
}

#[test]
fn every_command_is_known_by_its_name() {
    for method in METHODS {
        let line = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"rubbish": 1}}).to_string();
        let (_, code, message) = refusal(&line);
        assert_eq!(code, code::INVALID_PARAMS, "{message}");
        assert!(message.contains("unknown parameter `rubbish`"), "{message}");
    }
    let all = serde_json::from_value::<Command>(json!({"method": "?", "params": {}})).expect_err("unknown").to_string();
    assert_eq!(all.matches('`').count() / 2 - 1, METHODS.len(), "METHODS misses a command: {all}");
}

#[test]
fn commands_are_read_with_and_without_parameters() {
    for line in [
        r#"{"jsonrpc":"2.0","id":1,"method":"status"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"status","params":null}"#,
        r#" {"jsonrpc":"2.0","id":1,"method":"status","params":{}} "#,
    ] {
        let request = Request { id: json!(1), command: Command::Status {} };
        assert_eq!(parse(line), Ok(Some(request)), "{line}");
    }
    let line = r#"{"jsonrpc":"2.0","id":"x","method":"load","params":{"model":"a","path":"/m"}}"#;
    let command = Command::Load { model: "a".into(), path: "/m".into(), backend: None };
    assert_eq!(parse(line), Ok(Some(Request { id: json!("x"), command })));
    assert_eq!(parse("  \r"), Ok(None));
}

#[test]
fn every_mistake_has_its_code_and_names_what_to_change() {
    let request = |rest: &str| format!(r#"{{"jsonrpc":"2.0","id":7,{rest}}}"#);
    let cases = [
        ("{".to_owned(), Value::Null, code::PARSE, "not JSON: EOF"),
        ("[]".to_owned(), Value::Null, code::INVALID_REQUEST, "batches are not supported"),
        ("3".to_owned(), Value::Null, code::INVALID_REQUEST, "a request is an object"),
        (r#"{"jsonrpc":"2.0","method":"status"}"#.to_owned(), Value::Null, code::INVALID_REQUEST, "`id` is missing"),
        (
            r#"{"jsonrpc":"2.0","id":{},"method":"status"}"#.to_owned(),
            Value::Null,
            code::INVALID_REQUEST,
            "`id` must be",
        ),
        (r#"{"id":7,"method":"status"}"#.to_owned(), json!(7), code::INVALID_REQUEST, r#"`jsonrpc` must be "2.0""#),
        (request(r#""method":3"#), json!(7), code::INVALID_REQUEST, "`method` must be"),
        (
            request(r#""method":"stauts""#),
            json!(7),
            code::METHOD_NOT_FOUND,
            "no command \"stauts\"; known: status, models",
        ),
        (request(r#""method":"status","param":{}"#), json!(7), code::INVALID_REQUEST, "unknown key \"param\""),
        (request(r#""method":"load","params":["a"]"#), json!(7), code::INVALID_PARAMS, "must be an object"),
        (
            request(r#""method":"load","params":{"model":"a"}"#),
            json!(7),
            code::INVALID_PARAMS,
            "load: missing parameter `path`",
        ),
        (
            request(r#""method":"load","params":{"model":"a","path":3}"#),
            json!(7),
            code::INVALID_PARAMS,
            "load: parameter `path`: invalid type: integer `3`, expected a string",
        ),
        (
            request(r#""method":"disconnect","params":{"session":-1}"#),
            json!(7),
            code::INVALID_PARAMS,
            "parameter `session`: invalid value",
        ),
        (
            request(r#""method":"reload","params":{"model":"a","to":1}"#),
            json!(7),
            code::INVALID_PARAMS,
            "reload: unknown parameter `to`, expected one of `model`, `path`",
        ),
    ];
    for (line, id, code, message) in cases {
        let found = refusal(&line);
        assert_eq!((&found.0, found.1), (&id, code), "{line}: {}", found.2);
        assert!(found.2.contains(message), "{line}\n  says {}\n  not  {message}", found.2);
    }
}

#[test]
fn an_id_that_every_answer_would_repeat_has_a_bound() {
    use inferd_ipc::limits::CONTROL_ID_BYTES_MAX;
    let line = |n: usize| format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"status"}}"#, "x".repeat(n));
    assert!(parse(&line(CONTROL_ID_BYTES_MAX)).is_ok());
    let (id, code, message) = refusal(&line(CONTROL_ID_BYTES_MAX + 1));
    assert_eq!((id, code), (Value::Null, code::INVALID_REQUEST));
    assert!(message.contains(&CONTROL_ID_BYTES_MAX.to_string()), "{message}");
}

#[test]
fn a_conversation_in_pieces_is_answered_line_by_line() {
    let mut c = Connection::new();
    let text = b"rubbish\n\n{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"drain\"}\r\n{\"jsonrpc\":\"2.0\"";
    let mut requests = Vec::new();
    for byte in text {
        c.feed(&[*byte]);
        requests.extend(std::iter::from_fn(|| c.next_request()));
    }
    assert_eq!(requests, [Request { id: json!(1), command: Command::Drain {} }]);
    c.progress(&Progress { id: json!(1), model: "a".into(), stage: "loading".into(), done: None, of: None });
    c.answer(&json!(1), &Done { message: "done".into() });
    let messages = written(&mut c);
    assert_eq!(messages[0].error.as_ref().map(|e| e.code), Some(code::PARSE));
    assert_eq!(messages[1].method.as_deref(), Some("progress"));
    assert_eq!((&messages[1].id, messages[1].params.as_ref().map(|p| &p["id"])), (&None, Some(&json!(1))));
    assert_eq!((&messages[2].id, &messages[2].result), (&Some(json!(1)), &Some(json!({"message": "done"}))));
    assert_eq!((c.fate(), c.open()), (Fate::Keep, 0));
}

#[test]
fn a_peer_that_closes_its_side_gets_its_answers_first() {
    let mut c = Connection::new();
    c.feed(br#"{"jsonrpc":"2.0","id":1,"method":"version"}"#);
    assert_eq!(c.next_request(), None);
    c.end();
    let request = c.next_request().expect("a last line without its end");
    assert_eq!((c.fate(), c.wants_read()), (Fate::Keep, false));
    c.fail(&request.id, RpcError::new(code::BUSY, "busy"));
    assert_eq!(c.fate(), Fate::Keep, "not written yet");
    assert_eq!(written(&mut c).len(), 1);
    assert_eq!(c.fate(), Fate::Close);
}

#[test]
fn a_line_without_end_is_answered_and_ends_the_connection() {
    let mut c = Connection::new();
    for _ in 0..=CONTROL_LINE_BYTES_MAX / 65536 {
        c.feed(&[b' '; 65536]);
        assert_eq!(c.next_request(), None);
    }
    assert!(!c.wants_read());
    c.feed(b"\n{}\n");
    assert_eq!(c.next_request(), None);
    let messages = written(&mut c);
    assert!(messages[0].error.as_ref().is_some_and(|e| e.message.contains("longer than 1048576")));
    assert_eq!(c.fate(), Fate::Close);
}

#[test]
fn further_requests_wait_while_many_are_open() {
    let mut c = Connection::new();
    let line = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"limits\"}\n";
    c.feed(&line.repeat(CONTROL_REQUESTS_OPEN_MAX + 1));
    let given = std::iter::from_fn(|| c.next_request()).count();
    assert_eq!((given, c.wants_read()), (CONTROL_REQUESTS_OPEN_MAX, false));
    c.answer(&json!(1), &());
    assert!(c.next_request().is_some());
}

#[test]
fn a_reader_that_never_reads_is_disconnected_at_a_bound() {
    let mut c = Connection::new();
    let answer = "x".repeat(1 << 20);
    let mut largest = 0;
    for _ in 0..64 {
        c.answer(&json!(1), &answer);
        largest = largest.max(c.output().len());
    }
    assert!(largest <= CONTROL_OUTPUT_BYTES_MAX + 1);
    assert_eq!((c.fate(), c.output().len()), (Fate::Close, 0));
    let mut c = Connection::new();
    for _ in 0..64 {
        c.answer(&json!(1), &answer);
        let unread = c.output().len() / 2;
        c.wrote(unread);
    }
    assert_eq!(c.fate(), Fate::Keep, "a slow one is served");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_never_hang(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let mut c = Connection::new();
        for piece in pieces {
            c.feed(&piece);
            while let Some(request) = c.next_request() {
                c.fail(&request.id, RpcError::new(0, ""));
            }
        }
        c.end();
        while c.next_request().is_some() {}
        let _ = written(&mut c);
    }

    #[test]
    fn almost_requests_never_panic(line in r#"\{("(jsonrpc|id|method|params|model|path)":("2\.0"|[0-9]{1,3}|"(load|log|stats)"|\{"model":("a"|1|null|\[\])\}|null),?){0,5}\}?"#) {
        let _ = parse_line(line.as_bytes());
    }

    #[test]
    fn cutting_the_input_anywhere_changes_nothing(cut in 0usize..120) {
        let text = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"models\"}\n{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"limits\"}\n";
        let (a, b) = text.split_at(cut.min(text.len()));
        let mut c = Connection::new();
        let mut ids = Vec::new();
        for piece in [a, b] {
            c.feed(piece);
            ids.extend(std::iter::from_fn(|| c.next_request()).map(|r| r.id));
        }
        prop_assert_eq!(ids, [json!(1), json!(2)]);
    }
}
