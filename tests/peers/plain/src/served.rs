//! inferd's own client, asked as every peer's is: a call of `Session::infer` with default settings but for the spinning.
//!
//! The server is the daemon that the harness has started: an address is `MODEL@RUNTIME_DIR`.

use inferd_client::{AttachOptions, CallOptions, Queue, Session};
use inferd_peers_common::{Client, Failure, Gate, Model};
use std::time::Duration;

/// How long both sides look for each other before they sleep.
const SPIN_US: u32 = 2000;
const TIMEOUT: Duration = Duration::from_secs(5);

struct Attached(Session);

impl Client for Attached {
    fn call(&mut self, observation: &[u8], action: &mut [u8]) -> Result<(), Failure> {
        let options = CallOptions { timeout: Some(TIMEOUT), ..CallOptions::default() };
        let info = self.0.infer(&[(0, observation)], &mut [(0, action)], options)?;
        if info.is_ok() { Ok(()) } else { Err(format!("the outcome is {:?}", info.status).into()) }
    }
}

fn attach(address: &str, spin_us: u32) -> Result<Box<dyn Client>, Failure> {
    let (model, dir) = address.split_once('@').ok_or("an address is MODEL@RUNTIME_DIR")?;
    let options = AttachOptions::new(model).runtime_dir(dir).queue(Queue::InOrder).spin_us(spin_us);
    Ok(Box::new(Attached(Session::attach(options)?)))
}

pub fn spinning(address: &str, _request: usize, _reply: usize) -> Result<Box<dyn Client>, Failure> {
    attach(address, SPIN_US)
}

pub fn asleep(address: &str, _request: usize, _reply: usize) -> Result<Box<dyn Client>, Failure> {
    attach(address, 0)
}

pub fn refuse(_: Model, _: &Gate, _: &dyn Fn(&str)) -> Result<(), Failure> {
    Err("the daemon serves this one".into())
}
