//! A session as its worker sees it: rings, doorbell, state, all mapped and ready.
//!
//! Built on the control thread from the descriptors of an `AddSession` record, so that the executor
//! neither maps nor unmaps anything. Descriptors are verified before they are mapped, although they
//! come from the supervisor: a mistake must show here, not as a fault in the executor.

use inferd_ipc::fdpass;
use inferd_ipc::layout::{Backing, Geometry};
use inferd_ipc::region::{self, Access, RegionKind};
use inferd_ipc::requester::Ring;
use inferd_ipc::responder::{PeerFault, Responder};
use inferd_ipc::state::{self, StateRegion};
use std::os::fd::{AsFd, OwnedFd};

/// Why a session cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The record came with other descriptors than it needs.
    #[error("the record of session {0} came with the wrong number of descriptors: a bug of the supervisor")]
    Descriptors(u64),
    /// The geometry is impossible.
    #[error(transparent)]
    Geometry(#[from] inferd_ipc::layout::GeometryError),
    /// A region cannot be mapped.
    #[error(transparent)]
    Region(#[from] region::RegionError),
    /// The replies in it are damaged.
    #[error(transparent)]
    Replies(#[from] PeerFault),
}

/// A session that is ready to be served.
pub struct Session {
    /// Its number.
    pub number: u64,
    /// Whose turns it takes.
    pub uid: u32,
    /// Its rings.
    pub rings: Responder,
    /// Its recurrent state, for a stateful model.
    pub state: Option<StateRegion>,
    /// Its doorbell socket.
    pub doorbell: OwnedFd,
    /// A named segment, whose client may truncate it.
    pub guarded: bool,
    /// Faulted: not served any more, and about to be removed.
    pub dead: bool,
}

impl Session {
    /// Verifies and maps a session's regions.
    ///
    /// # Errors
    /// [`SessionError`]; the supervisor then ends the session.
    pub fn map(
        number: u64,
        uid: u32,
        geometry: Geometry,
        state_bytes: u64,
        backing: Backing,
        fds: Vec<OwnedFd>,
    ) -> Result<Session, SessionError> {
        geometry.check()?;
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or(SessionError::Descriptors(number));
        let (request, reply, doorbell) = (next()?, next()?, next()?);
        region::verify_import(request.as_fd(), RegionKind::Request, backing, geometry.request_bytes)?;
        region::verify_import(reply.as_fd(), RegionKind::Reply, backing, geometry.reply_bytes)?;
        let request = region::map(request.as_fd(), geometry.request_bytes, Access::ReadOnly, backing)?;
        let reply = region::map(reply.as_fd(), geometry.reply_bytes, Access::ReadWrite, backing)?;
        let state = if state_bytes > 0 { Some(state::open(next()?.as_fd(), state_bytes)?) } else { None };
        let rings = Responder::open(request, reply, geometry)?;
        Ok(Session { number, uid, rings, state, doorbell, guarded: backing == Backing::Posix, dead: false })
    }

    /// Wakes the client as its sleeping word asks.
    #[inline]
    pub fn ring(&self, how: Ring) {
        if how == Ring::Socket {
            fdpass::ring(&self.doorbell);
        }
    }
}
