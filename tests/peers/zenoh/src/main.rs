//! A zenoh query: the observation is the query's payload, the action the reply's. Two peers, one TCP link on 127.0.0.1.
//!
//! `zenoh-tcp` has shared memory switched off: payloads travel in the link. `zenoh-shm` allocates both payloads in zenoh's
//! shared memory, and the link carries their descriptors. Settings that cost time and serve nobody here are off: scouting,
//! consolidation of several replies, batching (`express`). zenoh's own threads serve and wait; they sleep.

use inferd_peers_common::{Client, Failure, Gate, Model, Peer};
use std::net::TcpListener;
use std::sync::Mutex;
use std::time::Duration;
use zenoh::bytes::ZBytes;
use zenoh::query::{ConsolidationMode, Querier, QueryTarget};
use zenoh::shm::{
    BlockOn, GarbageCollect, PosixShmProviderBackend, ShmProvider, ShmProviderBuilder, cleanup_orphaned_shm_segments,
};
use zenoh::{Config, Session, Wait};

const KEY: &str = "inferd/peers/policy";
/// Shared memory of either side: room for a few of the largest payloads, as replies free a request only later.
const SHM_BYTES: usize = 8 << 20;
const LIMIT: Duration = Duration::from_secs(5);

type Shm = ShmProvider<PosixShmProviderBackend>;

fn open(endpoints: &str, address: &str, with_shm: bool) -> Result<Session, Failure> {
    let mut config = Config::default();
    let mut set = |key: &str, value: &str| config.insert_json5(key, value).map_err(|e| format!("{key}: {e}"));
    set("mode", "\"peer\"")?;
    for other in ["listen/endpoints", "connect/endpoints"] {
        let value = if other == endpoints { format!("[\"tcp/{address}\"]") } else { "[]".into() };
        set(other, &value)?;
    }
    set("scouting/multicast/enabled", "false")?;
    set("scouting/gossip/enabled", "false")?;
    set("transport/shared_memory/enabled", if with_shm { "true" } else { "false" })?;
    Ok(zenoh::open(config).wait().map_err(|e| e.to_string())?)
}

fn shm(with_shm: bool) -> Result<Option<Shm>, Failure> {
    if !with_shm {
        return Ok(None);
    }
    Ok(Some(ShmProviderBuilder::default_backend(SHM_BYTES).wait().map_err(|e| e.to_string())?))
}

/// The bytes as a payload: in shared memory where there is some.
fn payload(shm: Option<&Shm>, bytes: &[u8]) -> Result<ZBytes, Failure> {
    let Some(shm) = shm else { return Ok(ZBytes::from(bytes)) };
    let buffer = shm.alloc(bytes.len()).with_policy::<BlockOn<GarbageCollect>>().wait();
    let mut buffer = buffer.map_err(|e| format!("{e:?}"))?;
    buffer.as_mut().copy_from_slice(bytes);
    Ok(ZBytes::from(buffer))
}

/// What arrived must have travelled as the row says.
fn check(payload: &ZBytes, with_shm: bool) -> Result<(), Failure> {
    if payload.as_shm().is_some() == with_shm {
        Ok(())
    } else {
        Err("a payload did not travel as this row says".into())
    }
}

fn serve(model: Model, gate: &Gate, ready: &dyn Fn(&str), with_shm: bool) -> Result<(), Failure> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let session = open("listen/endpoints", &address, with_shm)?;
    let (model, shm) = (Mutex::new(model), shm(with_shm)?);
    let answer = move |query: &zenoh::query::Query| -> Result<(), Failure> {
        let observation = query.payload().ok_or("a query without a payload")?;
        check(observation, with_shm)?;
        let mut model = model.lock().map_err(|_| "the model has failed before")?;
        let observation = observation.to_bytes();
        if observation.len() != model.input().len() {
            return Err("another size than the model's input".into());
        }
        model.input().copy_from_slice(&observation);
        let action = payload(shm.as_ref(), model.run()?)?;
        Ok(query.reply(KEY, action).express(true).wait().map_err(|e| e.to_string())?)
    };
    let queryable = session.declare_queryable(KEY).complete(true).callback(move |query| {
        if let Err(e) = answer(&query) {
            // The client reports it as its own failure.
            let _ = query.reply_err(e.to_string()).wait();
        }
    });
    let queryable = queryable.wait().map_err(|e| e.to_string())?;
    ready(&address);
    gate.wait_for_end();
    drop(queryable);
    let closed = session.close().wait();
    // What the client has left, which ended before; zenoh removes only what no process holds.
    cleanup_orphaned_shm_segments();
    Ok(closed.map_err(|e| e.to_string())?)
}

struct Asker {
    querier: Querier<'static>,
    shm: Option<Shm>,
    _session: Session,
}

impl Client for Asker {
    fn call(&mut self, observation: &[u8], action: &mut [u8]) -> Result<(), Failure> {
        let payload = payload(self.shm.as_ref(), observation)?;
        let replies = self.querier.get().payload(payload).wait().map_err(|e| e.to_string())?;
        let reply = replies.recv().map_err(|e| e.to_string())?;
        let sample = reply.result().map_err(|e| String::from_utf8_lossy(&e.payload().to_bytes()).into_owned())?;
        check(sample.payload(), self.shm.is_some())?;
        let bytes = sample.payload().to_bytes();
        if bytes.len() != action.len() {
            return Err(format!("a reply of {} bytes, not {}", bytes.len(), action.len()).into());
        }
        action.copy_from_slice(&bytes);
        Ok(())
    }
}

fn connect(address: &str, with_shm: bool) -> Result<Box<dyn Client>, Failure> {
    let session = open("connect/endpoints", address, with_shm)?;
    let querier = session.declare_querier(KEY).target(QueryTarget::BestMatching).timeout(LIMIT);
    let querier = querier.consolidation(ConsolidationMode::None).express(true).wait().map_err(|e| e.to_string())?;
    let asker = Asker { querier, shm: shm(with_shm)?, _session: session };
    // The declaration of the queryable arrives a little after the connection.
    let end = std::time::Instant::now() + LIMIT;
    while !asker.querier.matching_status().wait().map_err(|e| e.to_string())?.matching() {
        if std::time::Instant::now() > end {
            return Err("the queryable is not seen".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(Box::new(asker))
}

fn main() -> std::process::ExitCode {
    inferd_peers_common::run(&[
        Peer {
            name: "zenoh-shm",
            serve: |model, gate, ready| serve(model, gate, ready, true),
            connect: |address, _, _| connect(address, true),
        },
        Peer {
            name: "zenoh-tcp",
            serve: |model, gate, ready| serve(model, gate, ready, false),
            connect: |address, _, _| connect(address, false),
        },
    ])
}
