//! Unix sockets: a stream, and SOCK_SEQPACKET. Both ends block in the kernel until the other has written.
//!
//! Requests have a known size, so that neither wants a header. The kernel's default send buffer (212,992 bytes) holds no
//! packet of 921,600: larger messages go in packets of 64 KiB. Sockets lie in the folder that the process was started in,
//! and go with their server.

use inferd_peers_common::{Client, Failure, Gate, Model};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, recv, send, socket,
};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

const PACKET_BYTES_MAX: usize = 64 << 10;

/// A socket's file, removed with its server.
struct Place(PathBuf);

impl Place {
    fn here(name: &str) -> Result<Place, Failure> {
        Ok(Place(std::env::current_dir()?.join(name)))
    }

    fn address(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether a server's loop ends well: its client has left.
fn is_end(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset)
}

pub fn serve_stream(mut model: Model, _gate: &Gate, ready: &dyn Fn(&str)) -> Result<(), Failure> {
    let place = Place::here("stream.sock")?;
    let listener = UnixListener::bind(&place.0)?;
    ready(&place.address());
    let (mut peer, _) = listener.accept()?;
    loop {
        match peer.read_exact(model.input()) {
            Err(e) if is_end(&e) => return Ok(()),
            other => other?,
        }
        peer.write_all(model.run()?)?;
    }
}

struct Stream(UnixStream);

impl Client for Stream {
    fn call(&mut self, observation: &[u8], action: &mut [u8]) -> Result<(), Failure> {
        self.0.write_all(observation)?;
        Ok(self.0.read_exact(action)?)
    }
}

pub fn connect_stream(address: &str, _request: usize, _reply: usize) -> Result<Box<dyn Client>, Failure> {
    Ok(Box::new(Stream(UnixStream::connect(address)?)))
}

fn packet_socket() -> Result<OwnedFd, Failure> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

struct Packets(OwnedFd);

impl Packets {
    fn send(&self, bytes: &[u8]) -> Result<(), Failure> {
        for packet in bytes.chunks(PACKET_BYTES_MAX) {
            send(self.0.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL)?;
        }
        Ok(())
    }

    /// False: the other end has left.
    fn receive(&self, bytes: &mut [u8]) -> Result<bool, Failure> {
        for packet in bytes.chunks_mut(PACKET_BYTES_MAX) {
            match recv(self.0.as_raw_fd(), packet, MsgFlags::empty())? {
                0 => return Ok(false),
                got if got == packet.len() => {}
                got => return Err(format!("a packet of {got} bytes, not {}", packet.len()).into()),
            }
        }
        Ok(true)
    }
}

impl Client for Packets {
    fn call(&mut self, observation: &[u8], action: &mut [u8]) -> Result<(), Failure> {
        self.send(observation)?;
        if self.receive(action)? { Ok(()) } else { Err("the server has left".into()) }
    }
}

pub fn serve_packets(mut model: Model, _gate: &Gate, ready: &dyn Fn(&str)) -> Result<(), Failure> {
    let place = Place::here("seqpacket.sock")?;
    let listener = packet_socket()?;
    bind(listener.as_raw_fd(), &UnixAddr::new(&place.0)?)?;
    listen(&listener, Backlog::new(1)?)?;
    ready(&place.address());
    let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    let peer = Packets(unsafe { OwnedFd::from_raw_fd(accepted) });
    while peer.receive(model.input())? {
        peer.send(model.run()?)?;
    }
    Ok(())
}

pub fn connect_packets(address: &str, _request: usize, _reply: usize) -> Result<Box<dyn Client>, Failure> {
    let socket = packet_socket()?;
    connect(socket.as_raw_fd(), &UnixAddr::new(address)?)?;
    Ok(Box::new(Packets(socket)))
}
