//! Peers without a framework: Unix sockets of two kinds, `shared_memory` with `raw_sync`; and inferd's own client.

mod raw;
mod served;
mod unix;

use inferd_peers_common::Peer;

fn main() -> std::process::ExitCode {
    inferd_peers_common::run(&[
        Peer { name: "inferd", serve: served::refuse, connect: served::spinning },
        Peer { name: "inferd-asleep", serve: served::refuse, connect: served::asleep },
        Peer { name: "unix-stream", serve: unix::serve_stream, connect: unix::connect_stream },
        Peer { name: "unix-seqpacket", serve: unix::serve_packets, connect: unix::connect_packets },
        Peer { name: "raw-sync-event", serve: raw::serve_event, connect: raw::connect_event },
        Peer { name: "raw-sync-busy", serve: raw::serve_busy, connect: raw::connect_busy },
    ])
}
