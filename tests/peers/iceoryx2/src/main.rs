//! iceoryx2 request-response: a request is loaned from shared memory, written in place and sent; the reply likewise.
//!
//! `iceoryx2` polls on both sides. `iceoryx2-events` sleeps: whoever has sent notifies the other's listener, as
//! iceoryx2's own examples of event-based communication do. Its files lie in the folder that the process was started in, and
//! its segments have a prefix of their own, so that nothing meets another iceoryx2 on the machine.

use iceoryx2::port::client::Client as Requester;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::server::Server;
use iceoryx2::prelude::*;
use inferd_peers_common::{Client, Failure, Gate, Model, Peer, now_ns};
use std::time::Duration;

/// How long a sleeping side waits for a notification at a time; how long a client waits for an answer.
const LOOK: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(5);
/// A polling side looks at its clock once in so many fruitless looks.
const LOOKS: u32 = 4096;

/// Both ends of the service, and with events the bells of either side.
struct Place {
    node: Node<ipc::Service>,
    name: String,
}

impl Place {
    /// An address is a name, and the folder of whoever serves under it.
    fn at(address: &str) -> Result<Place, Failure> {
        set_log_level(LogLevel::Error);
        let (name, folder) = address.split_once('@').ok_or("an address is NAME@FOLDER")?;
        let mut config = Config::default();
        config.global.prefix = FileName::new(format!("{name}_").as_bytes()).map_err(|e| format!("{e:?}"))?;
        config.global.set_root_path(&Path::new(folder.as_bytes()).map_err(|e| format!("{e:?}"))?);
        let node = NodeBuilder::new().config(&config).create::<ipc::Service>()?;
        Ok(Place { node, name: name.to_owned() })
    }

    /// A listener of one side and a notifier of the other.
    fn bells(&self, ours: &str, theirs: &str) -> Result<Bells, Failure> {
        let event = |side: &str| {
            let name = format!("{}/{side}", self.name);
            let service = self.node.service_builder(&name.as_str().try_into()?).event().open_or_create()?;
            Ok::<_, Failure>(service)
        };
        Ok(Bells {
            listener: event(ours)?.listener_builder().create()?,
            notifier: event(theirs)?.notifier_builder().create()?,
        })
    }
}

struct Bells {
    listener: Listener<ipc::Service>,
    notifier: Notifier<ipc::Service>,
}

type Ports = (Server<ipc::Service, [u8], (), [u8], ()>, Option<Bells>);

fn serve(model: Model, gate: &Gate, ready: &dyn Fn(&str), with_events: bool) -> Result<(), Failure> {
    let (name, folder) = (format!("peers_iox2_{}", std::process::id()), std::env::current_dir()?);
    let served = serve_at(&format!("{name}@{}", folder.display()), model, gate, ready, with_events);
    sweep(&name)?;
    served
}

/// Removes what bears our name: an orderly end leaves the node's own segment behind. The client has ended before.
fn sweep(name: &str) -> Result<(), Failure> {
    for entry in std::fs::read_dir("/dev/shm")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&format!("{name}_")) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn serve_at(
    address: &str,
    mut model: Model,
    gate: &Gate,
    ready: &dyn Fn(&str),
    with_events: bool,
) -> Result<(), Failure> {
    let (_, reply_bytes) = model.bytes();
    let place = Place::at(address)?;
    let service = place.node.service_builder(&place.name.as_str().try_into()?);
    let service = service.request_response::<[u8], [u8]>().open_or_create()?;
    let server = service.server_builder().initial_max_slice_len(reply_bytes).create()?;
    let bells = if with_events { Some(place.bells("server", "client")?) } else { None };
    let ports: Ports = (server, bells);
    ready(address);
    loop {
        let mut served = false;
        while let Some(request) = ports.0.receive()? {
            model.input().copy_from_slice(request.payload());
            let reply = request.loan_slice_uninit(reply_bytes)?;
            reply.write_from_slice(model.run()?).send()?;
            if let Some(bells) = &ports.1 {
                bells.notifier.notify()?;
            }
            served = true;
        }
        let goes_on = match &ports.1 {
            Some(bells) if !served => {
                bells.listener.timed_wait(|_| (), LOOK)?;
                !gate.is_over()
            }
            Some(_) => true,
            None => gate.poll(),
        };
        if !goes_on {
            return Ok(());
        }
    }
}

struct Asker {
    requester: Requester<ipc::Service, [u8], (), [u8], ()>,
    bells: Option<Bells>,
    _place: Place,
}

impl Client for Asker {
    fn call(&mut self, observation: &[u8], action: &mut [u8]) -> Result<(), Failure> {
        let request = self.requester.loan_slice_uninit(observation.len())?;
        let pending = request.write_from_slice(observation).send()?;
        if let Some(bells) = &self.bells {
            bells.notifier.notify()?;
        }
        let (mut looks, mut limit) = (0u32, None);
        loop {
            if let Some(reply) = pending.receive()? {
                action.copy_from_slice(reply.payload());
                return Ok(());
            }
            if let Some(bells) = &self.bells {
                // It may also return without a notification: one that came with an earlier look.
                bells.listener.timed_wait(|_| (), LOOK)?;
            } else {
                std::hint::spin_loop();
            }
            looks += 1;
            if (self.bells.is_some() || looks.is_multiple_of(LOOKS))
                && now_ns() > *limit.get_or_insert_with(|| now_ns() + LIMIT.as_nanos() as u64)
            {
                return Err("no reply within the limit".into());
            }
        }
    }
}

fn connect(address: &str, request: usize, with_events: bool) -> Result<Box<dyn Client>, Failure> {
    let place = Place::at(address)?;
    let service = place.node.service_builder(&place.name.as_str().try_into()?);
    let service = service.request_response::<[u8], [u8]>().open()?;
    let requester = service.client_builder().initial_max_slice_len(request).create()?;
    let bells = if with_events { Some(place.bells("client", "server")?) } else { None };
    Ok(Box::new(Asker { requester, bells, _place: place }))
}

fn main() -> std::process::ExitCode {
    inferd_peers_common::run(&[
        Peer {
            name: "iceoryx2",
            serve: |model, gate, ready| serve(model, gate, ready, false),
            connect: |address, request, _| connect(address, request, false),
        },
        Peer {
            name: "iceoryx2-events",
            serve: |model, gate, ready| serve(model, gate, ready, true),
            connect: |address, request, _| connect(address, request, true),
        },
    ])
}
