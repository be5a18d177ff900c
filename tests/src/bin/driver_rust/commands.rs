//! The verbs, but for `loop`.

use crate::keys::Keys;
use crate::{Failure, allocations, looping};
use inferd_client::{
    AttachOptions, AttachStatus, CallOptions, Error, Outcome, Queue, ReplyInfo, ServingState, Session, Ticket, now_ns,
};
use inferd_tests::answer::{fill, hex, unhex};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Sessions that a driver holds at most.
const SESSIONS: usize = 64;
/// Error names that a forked child can report through its exit code.
const CHILD_SAYS: [&str; 5] = ["ok", "wrong_process", "daemon_lost", "unavailable", "other"];

type Answered = Result<Value, Failure>;

/// A session and the inputs written for its next request.
struct Attached {
    session: Session,
    inputs: Vec<Vec<u8>>,
}

/// All that a driver remembers.
#[derive(Default)]
pub struct Driver {
    sessions: Vec<Option<Attached>>,
    tickets: Vec<Ticket>,
}

/// How outputs are shown.
#[derive(Clone, Copy, PartialEq)]
enum Show {
    Hex,
    Hash,
    None,
}

/// The keys of `submit`.
#[derive(Default, Clone, Copy)]
pub struct Submit {
    pub id: u64,
    pub deadline_us: Option<i64>,
    pub executed: u32,
    pub reset: bool,
}

impl Submit {
    fn take(keys: &mut Keys<'_>) -> Result<Submit, Failure> {
        Ok(Submit {
            id: keys.number("id")?.unwrap_or(0),
            deadline_us: keys.number("deadline_us")?,
            executed: keys.number("executed")?.unwrap_or(0),
            reset: keys.number::<u8>("reset")? == Some(1),
        })
    }

    /// The moment of the deadline, counted from now; 0 for none.
    pub fn deadline_ns(&self, now: u64) -> u64 {
        self.deadline_us.map_or(0, |us| now.saturating_add_signed(us.saturating_mul(1000)).max(1))
    }
}

/// The error's name in DRIVER.md.
pub fn error_name(error: &Error) -> &'static str {
    match error {
        Error::Again { .. } => "again",
        Error::Unavailable { state: ServingState::Draining, .. } => "shutting_down",
        Error::Unavailable { .. } => "unavailable",
        Error::DaemonLost { .. } => "daemon_lost",
        Error::Timeout { .. } => "timeout",
        Error::WrongProcess { .. } => "wrong_process",
        Error::NoDaemon { .. } => "no_daemon",
        Error::Tensor { .. } | Error::TicketSpent { .. } | Error::NoOutput { .. } | Error::Option { .. } => "invalid",
        Error::Attach { status, .. } => match status {
            AttachStatus::AbiMismatch => "abi_mismatch",
            AttachStatus::UnknownModel => "unknown_model",
            AttachStatus::Unavailable => "unavailable",
            AttachStatus::Quota => "quota",
            AttachStatus::ShuttingDown => "shutting_down",
            AttachStatus::ClockSkew => "clock_skew",
            AttachStatus::Forbidden => "forbidden",
            AttachStatus::BadRequest => "bad_request",
            AttachStatus::NoResources => "no_resources",
            AttachStatus::BadRegion => "bad_region",
            AttachStatus::Ok => "other",
        },
        _ => "other",
    }
}

fn attached(session: &Session) -> Value {
    json!({
        "session": session.session_id(), "generation": session.generation(), "slots": session.slots(),
        "queue": session.queue().name(), "spin_us": session.spin_us(), "daemon": session.daemon_version(),
        "epoch": session.epoch(),
    })
}

fn outputs(show: Show, all: &[Vec<u8>]) -> (&'static str, Value) {
    if show == Show::Hex {
        return ("outputs", all.iter().map(|o| hex(o)).collect());
    }
    let fnv = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    let hash = all.iter().flatten().fold(0xcbf2_9ce4_8422_2325, fnv);
    ("hash", format!("{hash:016x}").into())
}

fn reply(info: &ReplyInfo, show: Show, all: &[Vec<u8>]) -> Value {
    let mut answer = json!({
        "outcome": info.status.name(), "late": info.late, "state_reset": info.state_reset,
        "request": info.ticket.number(), "observation_id": info.observation_id, "generation": info.generation,
        "skipped": info.skipped, "step": info.step, "t_start_ns": info.t_start_ns, "t_done_ns": info.t_done_ns,
    });
    if info.is_ok() && show != Show::None {
        let (key, value) = outputs(show, all);
        answer[key] = value;
    }
    answer
}

fn outcome(outcome: Outcome<'_>, show: Show, sizes: &[usize]) -> Answered {
    let reply_ = match outcome {
        Outcome::Superseded { by } => return Ok(json!({ "outcome": "superseded", "by": by.number() })),
        Outcome::Reply(reply_) => reply_,
    };
    let mut all: Vec<Vec<u8>> = sizes.iter().map(|bytes| vec![0; *bytes]).collect();
    for (i, to) in all.iter_mut().enumerate() {
        // Tensors are exposed only when the output is valid: the library must refuse otherwise.
        match reply_.copy_output(i, to) {
            Err(Error::NoOutput { .. }) if !reply_.is_ok() => {}
            other => other?,
        }
    }
    Ok(reply(reply_.header(), show, &all))
}

/// `DaemonLost` is what a published request ended in; anything else is the call's own error.
fn settled(answer: Answered, waited: Instant) -> Answered {
    let mut answer = match answer {
        Err(failure) if failure.error == "daemon_lost" => json!({ "outcome": "daemon_lost" }),
        other => other?,
    };
    answer["waited_us"] = (waited.elapsed().as_micros() as u64).into();
    Ok(answer)
}

impl Driver {
    /// Carries out one line.
    pub fn command(&mut self, line: &str) -> Answered {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next().unwrap_or("");
        let mut keys = Keys::parse(words)?;
        let s: usize = keys.number("s")?.unwrap_or(0);
        if s >= SESSIONS {
            return Err(Failure::usage("s is at most 63"));
        }
        match verb {
            "attach" => return self.attach(s, keys),
            "versions" => return self.versions(s),
            "counters" => return Ok(json!({ "allocations": allocations() })),
            "detach" => {
                self.sessions.get_mut(s).and_then(Option::take);
                return Ok(json!({}));
            }
            _ => {}
        }
        let tickets = &mut self.tickets;
        let here = self.sessions.get_mut(s).and_then(Option::as_mut);
        let here = here.ok_or(Failure { error: "not_attached", message: "attach first".into(), more: json!({}) })?;
        match verb {
            "reattach" => {
                here.session.reattach(keys.micros("timeout_us")?.unwrap_or(Duration::from_secs(2)))?;
                Ok(attached(&here.session))
            }
            "info" => Ok(attached(&here.session)),
            "signature" => Ok(signature(&here.session)),
            "request" => Ok(here.session.request().map(|_| json!({}))?),
            "write" => here.write(keys),
            "submit" => {
                let submit = Submit::take(&mut keys)?;
                keys.end()?;
                here.submit(submit, tickets)
            }
            "send" => here.send(keys, tickets),
            "wait" | "try" | "pollwait" => here.wait(verb, keys, tickets),
            "abandon" => {
                here.session.abandon(ticket(&mut keys, tickets)?);
                Ok(json!({}))
            }
            "infer" => here.infer(keys),
            "loop" => looping::Loop::take(keys)?.run(&mut here.session),
            "fork" => forked(&mut here.session),
            _ => Err(Failure::usage(format!("unknown verb {verb:?}"))),
        }
    }

    fn attach(&mut self, s: usize, mut keys: Keys<'_>) -> Answered {
        let model = keys.text("model").ok_or_else(|| Failure::usage("model is missing"))?;
        let mut options = AttachOptions::new(model);
        if let Some(slots) = keys.number("slots")? {
            options = options.slots(slots);
        }
        match keys.text("queue") {
            Some("latest") => options = options.queue(Queue::Latest),
            Some("in_order") => options = options.queue(Queue::InOrder),
            Some(other) => return Err(Failure::usage(format!("queue={other}"))),
            None => {}
        }
        if let Some(timeout) = keys.micros("timeout_us")? {
            options = options.timeout(timeout);
        }
        if let Some(spin_us) = keys.number("spin_us")? {
            options = options.spin_us(spin_us);
        }
        options = options.auto_reattach(keys.number::<u8>("auto_reattach")? != Some(0));
        keys.end()?;
        let session = Session::attach(options)?;
        let answer = attached(&session);
        let inputs = session.signature().inputs.iter().map(|t| vec![0; t.bytes() as usize]).collect();
        if self.sessions.len() <= s {
            self.sessions.resize_with(s + 1, || None);
        }
        self.sessions[s] = Some(Attached { session, inputs });
        Ok(answer)
    }

    fn versions(&self, s: usize) -> Answered {
        let (major, minor) = inferd_client::abi();
        let mut answer =
            json!({ "client": "rust", "library": inferd_client::version(), "abi": format!("{major}.{minor}") });
        if let Some(Some(here)) = self.sessions.get(s) {
            answer["daemon"] = here.session.daemon_version().into();
        }
        Ok(answer)
    }
}

fn ticket(keys: &mut Keys<'_>, tickets: &[Ticket]) -> Result<Ticket, Failure> {
    let index: usize = keys.need("ticket")?;
    tickets.get(index).copied().ok_or_else(|| Failure::usage(format!("ticket {index} was never given out")))
}

fn show(keys: &mut Keys<'_>) -> Result<Show, Failure> {
    match keys.text("out") {
        None | Some("hex") => Ok(Show::Hex),
        Some("hash") => Ok(Show::Hash),
        Some("none") => Ok(Show::None),
        Some(other) => Err(Failure::usage(format!("out={other}"))),
    }
}

fn signature(session: &Session) -> Value {
    let list = |tensors: &[inferd_client::TensorSpec]| -> Value {
        let one = |t: &inferd_client::TensorSpec| json!({ "name": t.name, "dtype": t.dtype.name(), "shape": t.shape, "bytes": t.bytes() });
        tensors.iter().map(one).collect()
    };
    let s = session.signature();
    json!({ "stateful": s.stateful, "inputs": list(&s.inputs), "outputs": list(&s.outputs) })
}

fn forked(session: &mut Session) -> Answered {
    // SAFETY: this process has one thread; the child calls the library once and leaves through _exit.
    match unsafe { fork() }.map_err(|e| Failure { error: "other", message: e.to_string(), more: json!({}) })? {
        ForkResult::Child => {
            let said = session.request().map_or_else(|e| error_name(&e), |_| "ok");
            let code = CHILD_SAYS.iter().position(|n| *n == said).unwrap_or(CHILD_SAYS.len() - 1);
            // SAFETY: ends the child at once, without its parent's destructors.
            unsafe { libc::_exit(code as i32) }
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => Ok(json!({ "child": CHILD_SAYS.get(code as usize) })),
            other => Err(Failure { error: "other", message: format!("the child: {other:?}"), more: json!({}) }),
        },
    }
}

impl Attached {
    fn output_sizes(&self) -> Vec<usize> {
        self.session.signature().outputs.iter().map(|t| t.bytes() as usize).collect()
    }

    fn write(&mut self, mut keys: Keys<'_>) -> Answered {
        let input: usize = keys.need("input")?;
        let to = self.inputs.get_mut(input).ok_or_else(|| Failure::usage("no such input"))?;
        let bytes = match keys.number("fill")? {
            Some(seed) => fill(seed, to.len()),
            None => keys.bytes("hex").ok_or_else(|| Failure::usage("hex or fill is missing"))?,
        };
        keys.end()?;
        if bytes.len() != to.len() {
            return Err(Failure::usage(format!("{} bytes for an input of {}", bytes.len(), to.len())));
        }
        *to = bytes;
        Ok(json!({}))
    }

    fn submit(&mut self, submit: Submit, tickets: &mut Vec<Ticket>) -> Answered {
        let mut request = self.session.request()?;
        for (i, bytes) in self.inputs.iter().enumerate() {
            request.write(i, bytes)?;
        }
        let mut request = request.observation_id(submit.id).executed(submit.executed);
        request = request.deadline_ns(submit.deadline_ns(now_ns()));
        if submit.reset {
            request = request.reset();
        }
        let ticket = request.submit()?;
        tickets.push(ticket);
        Ok(json!({ "ticket": tickets.len() - 1, "request": ticket.number() }))
    }

    fn send(&mut self, mut keys: Keys<'_>, tickets: &mut Vec<Ticket>) -> Answered {
        let seed: u64 = keys.need("fill")?;
        let n: u64 = keys.number("n")?.unwrap_or(1);
        let submit = Submit::take(&mut keys)?;
        keys.end()?;
        let mut first = json!({});
        for j in 0..n {
            for (k, bytes) in self.inputs.iter_mut().enumerate() {
                *bytes = fill(seed.wrapping_add(j).wrapping_add(k as u64), bytes.len());
            }
            let sent = self.submit(Submit { id: submit.id.wrapping_add(j), ..submit }, tickets);
            let stopped = |mut more: Value, failure: Failure| {
                more["n"] = j.into();
                Failure { more, ..failure }
            };
            match sent {
                Ok(answer) if j == 0 => first = answer,
                Ok(_) => {}
                Err(failure) => return Err(stopped(first, failure)),
            }
        }
        first["n"] = n.into();
        Ok(first)
    }

    fn wait(&mut self, verb: &str, mut keys: Keys<'_>, tickets: &[Ticket]) -> Answered {
        let ticket = ticket(&mut keys, tickets)?;
        let show = show(&mut keys)?;
        let timeout = keys.micros("timeout_us")?;
        keys.end()?;
        let sizes = self.output_sizes();
        let start = Instant::now();
        let mut polls = 0u64;
        let answer = match verb {
            "wait" => self.session.wait(ticket, timeout).map_err(Failure::from).and_then(|o| outcome(o, show, &sizes)),
            "try" => self.attempt(ticket, show, &sizes).and_then(|o| o.ok_or_else(pending)),
            _ => self.by_poll(ticket, timeout, show, &sizes, &mut polls),
        };
        let mut answer = settled(answer, start)?;
        if verb == "pollwait" {
            answer["polls"] = polls.into();
        }
        Ok(answer)
    }

    fn attempt(&mut self, ticket: Ticket, show: Show, sizes: &[usize]) -> Result<Option<Value>, Failure> {
        self.session.try_wait(ticket)?.map(|o| outcome(o, show, sizes)).transpose()
    }

    fn by_poll(
        &mut self,
        ticket: Ticket,
        timeout: Option<Duration>,
        show: Show,
        sizes: &[usize],
        polls: &mut u64,
    ) -> Answered {
        let end = timeout.map(|t| Instant::now() + t);
        loop {
            if let Some(answer) = self.attempt(ticket, show, sizes)? {
                return Ok(answer);
            }
            // Arming comes last: every wait, a non-blocking one too, disarms.
            if self.session.arm_poll()? {
                continue;
            }
            let left = end.map_or(Duration::from_secs(3600), |e| e.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(Failure { error: "timeout", message: "the poll timed out".into(), more: json!({}) });
            }
            *polls += 1;
            let mut fds = [PollFd::new(self.session.poll_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).ok();
        }
    }

    fn infer(&mut self, mut keys: Keys<'_>) -> Answered {
        let show = show(&mut keys)?;
        if let Some(seed) = keys.number::<u64>("fill")? {
            let filled = self.inputs.iter().enumerate().map(|(k, b)| fill(seed.wrapping_add(k as u64), b.len()));
            self.inputs = filled.collect();
        } else {
            let hex = keys.text("hex").ok_or_else(|| Failure::usage("fill or hex is missing"))?;
            self.inputs = hex.split(',').map(unhex).collect();
        }
        let timeout = keys.micros("timeout_us")?;
        let submit = Submit::take(&mut keys)?;
        keys.end()?;
        let options = CallOptions {
            timeout,
            deadline: submit.deadline_us.map(|us| Duration::from_micros(us.max(0) as u64)),
            reset: submit.reset,
            observation_id: submit.id,
            executed: submit.executed,
        };
        let mut all: Vec<Vec<u8>> = self.output_sizes().into_iter().map(|bytes| vec![0; bytes]).collect();
        let start = Instant::now();
        let inputs: Vec<(usize, &[u8])> = self.inputs.iter().enumerate().map(|(i, b)| (i, b.as_slice())).collect();
        let mut to: Vec<(usize, &mut [u8])> = all.iter_mut().enumerate().map(|(i, b)| (i, b.as_mut_slice())).collect();
        let info = self.session.infer(&inputs, &mut to, options).map_err(Failure::from);
        settled(info.map(|info| reply(&info, show, &all)), start)
    }
}

fn pending() -> Failure {
    Failure { error: "pending", message: "no outcome yet".into(), more: json!({}) }
}
