//! What a session is made of when it begins: two regions and a doorbell socket.
//!
//! The request region is the client's to write, the reply region the worker's; both have their size for good before
//! anybody else has them, and the request region's last seal comes with MAPPED. Whatever fails half-way leaves no name behind.

use super::attach::Refusal;
use super::sessions::Parts;
use super::sockets::refuse_descriptors;
use inferd_ipc::attach::AttachStatus;
use inferd_ipc::fdpass;
use inferd_ipc::layout::{Backing, Geometry, ServingState};
use inferd_ipc::region::{self, Access, NewRegion, RegionKind};
use inferd_ipc::signature::Signature;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// Mappings are whole pages.
const PAGE_BYTES: u64 = 4096;

/// The regions of a session that begins.
pub(super) struct Regions {
    /// What the daemon keeps.
    pub parts: Parts,
    /// Request region, reply region (read-only), doorbell socket.
    pub for_client: Vec<OwnedFd>,
}

impl Regions {
    /// Makes them for session `number`.
    ///
    /// # Errors
    /// What could not be had, as a refusal.
    pub fn make(
        geometry: Geometry,
        backing: Backing,
        instance: &str,
        number: u64,
        generation: u32,
        signature: &Signature,
    ) -> Result<Regions, Refusal> {
        let no_region = |error: region::RegionError| (AttachStatus::NoResources, error.to_string());
        let request =
            region::create(backing, RegionKind::Request, geometry.request_bytes, instance).map_err(no_region)?;
        let request = Named(Some(request));
        let reply = region::create(backing, RegionKind::Reply, geometry.reply_bytes, instance).map_err(no_region)?;
        let reply = Named(Some(reply));
        // Header, signature and words only: mapping all of a large region would hold the loop up.
        let head_bytes = geometry.reply_slots.next_multiple_of(PAGE_BYTES);
        let mem = region::map(reply.fd(), head_bytes, Access::ReadWrite, backing).map_err(no_region)?;
        region::init_reply(&mem, number, generation, signature, &geometry, ServingState::Serving);
        let (ours, theirs) = fdpass::socketpair().map_err(|error| {
            (AttachStatus::NoResources, format!("no doorbell socket: {error}; raise the limit on descriptors"))
        })?;
        let doorbell_refuses = refuse_descriptors(&ours);
        let for_client = vec![
            region::for_client(request.region(), RegionKind::Request).map_err(no_region)?,
            region::for_client(reply.region(), RegionKind::Reply).map_err(no_region)?,
            theirs,
        ];
        let (request, reply) = (request.keep(), reply.keep());
        let parts = Parts {
            connection: 0,
            pid: 0,
            queue: geometry.queue(),
            geometry,
            backing,
            names: request.name.into_iter().chain(reply.name).collect(),
            request: Rc::new(request.fd),
            reply: Rc::new(reply.fd),
            doorbell: Rc::new(ours),
            doorbell_refuses,
            state: None,
            ready_at: None,
        };
        Ok(Regions { parts, for_client })
    }
}

/// A region whose name goes with it, unless it is kept.
struct Named(Option<NewRegion>);

impl Named {
    fn region(&self) -> &NewRegion {
        self.0.as_ref().expect("kept only by value")
    }

    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.region().fd.as_fd()
    }

    fn keep(mut self) -> NewRegion {
        self.0.take().expect("kept only by value")
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(name) = self.0.as_ref().and_then(|region| region.name.as_deref()) {
            region::unlink(name);
        }
    }
}
