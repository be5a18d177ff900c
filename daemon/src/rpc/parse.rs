//! One line to one request, or to an error that says what to change.

use super::Request;
use inferd_ipc::control::{Command, RpcError, code};
use inferd_ipc::limits::CONTROL_ID_BYTES_MAX;
use serde_json::{Map, Value, json};

/// Every command's name, in the order of [`Command`].
pub const METHODS: [&str; 16] = [
    "status",
    "models",
    "sessions",
    "limits",
    "stats",
    "load",
    "unload",
    "reload",
    "rollback",
    "history",
    "dump",
    "validate",
    "disconnect",
    "drain",
    "log",
    "version",
];

type Refusal = (Value, RpcError);

fn refuse<T>(id: &Value, code: i64, message: impl Into<String>) -> Result<T, Refusal> {
    Err((id.clone(), RpcError::new(code, message)))
}

/// Reads one line, without its line end; a blank one is nothing.
///
/// # Errors
/// The id to answer to (null where none could be read) and the error.
pub fn parse_line(line: &[u8]) -> Result<Option<Request>, Refusal> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(e) => return refuse(&Value::Null, code::PARSE, format!("not JSON: {e}; send one request per line")),
    };
    let mut request = match value {
        Value::Object(map) => map,
        Value::Array(_) => {
            return refuse(&Value::Null, code::INVALID_REQUEST, "batches are not supported; send one request per line");
        }
        _ => {
            let example = r#"a request is an object, as {"jsonrpc":"2.0","id":1,"method":"status"}"#;
            return refuse(&Value::Null, code::INVALID_REQUEST, example);
        }
    };
    let id = take_id(&mut request)?;
    if request.remove("jsonrpc") != Some(json!("2.0")) {
        return refuse(&id, code::INVALID_REQUEST, r#"`jsonrpc` must be "2.0""#);
    }
    let Some(Value::String(method)) = request.remove("method") else {
        return refuse(&id, code::INVALID_REQUEST, "`method` must be the name of a command, as a string");
    };
    let params = match request.remove("params") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => {
            return refuse(&id, code::INVALID_PARAMS, "`params` must be an object: parameters have names here");
        }
    };
    if let Some(key) = request.keys().next() {
        return refuse(
            &id,
            code::INVALID_REQUEST,
            format!("unknown key {key:?} beside `method`; parameters go into `params`"),
        );
    }
    if !METHODS.contains(&method.as_str()) {
        let known = METHODS.join(", ");
        return refuse(&id, code::METHOD_NOT_FOUND, format!("no command {method:?}; known: {known}"));
    }
    match command(&method, &params) {
        Ok(command) => Ok(Some(Request { id, command })),
        Err(fault) => refuse(&id, code::INVALID_PARAMS, format!("{method}: {}", blame(&method, &params, &fault))),
    }
}

fn take_id(request: &mut Map<String, Value>) -> Result<Value, Refusal> {
    let null = Value::Null;
    match request.remove("id") {
        Some(Value::String(id)) if id.len() > CONTROL_ID_BYTES_MAX => {
            refuse(&null, code::INVALID_REQUEST, format!("`id` is longer than {CONTROL_ID_BYTES_MAX} bytes"))
        }
        Some(id @ (Value::String(_) | Value::Number(_))) => Ok(id),
        None => refuse(&null, code::INVALID_REQUEST, "`id` is missing: every command here has an answer"),
        Some(_) => refuse(&null, code::INVALID_REQUEST, "`id` must be a string or a number"),
    }
}

fn command(method: &str, params: &Map<String, Value>) -> Result<Command, String> {
    serde_json::from_value(json!({ "method": method, "params": params })).map_err(|e| e.to_string())
}

/// Names the parameter that does not fit: serde names missing and unknown ones, but not those of a wrong type.
fn blame(method: &str, params: &Map<String, Value>, fault: &str) -> String {
    if !fault.starts_with("invalid") {
        return fault.replace("field", "parameter");
    }
    for (key, value) in params {
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        if let Err(fault) = command(method, &alone)
            && fault.starts_with("invalid")
        {
            return format!("parameter `{key}`: {fault}");
        }
    }
    fault.to_owned()
}
