//! Streaming (non-temporal) stores, with which callers fill big tensors: whole when their request is seen.
//!
//! x86 does not order them by a releasing store: without the fence in `publish` the tensor is seen without them. A machine
//! of one CPU cannot show it: threads that take turns see everything.
#![cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
#![allow(clippy::unwrap_used)]

use core::arch::x86_64::{_mm_set1_epi64x, _mm_stream_si128};
use inferd_ipc::layout::{Geometry, Queue, ServingState, Status};
use inferd_ipc::mem::Mem;
use inferd_ipc::requester::{RequestMeta, Requester};
use inferd_ipc::responder::{Answer, Responder};
use inferd_ipc::signature::{DType, Signature, TensorSpec};
use std::time::{Duration, Instant};

/// A line that is not full waits longest on its way to memory.
const TENSOR_BYTES: usize = 48;

#[test]
fn tensors_written_with_streaming_stores_are_whole_when_their_request_is_seen() {
    let tensor = |bytes: usize| vec![TensorSpec::new("t", DType::U8, &[bytes as u64])];
    let signature = Signature { inputs: tensor(TENSOR_BYTES), outputs: tensor(8), stateful: false };
    let geometry = Geometry::new(&signature, 4, Queue::InOrder, 1).unwrap();
    let (request, reply) = (Mem::heap(geometry.request_bytes as usize), Mem::heap(geometry.reply_bytes as usize));
    let mut worker = Responder::open(request.clone(), reply.clone(), geometry).unwrap();
    let _ = worker.set_state(ServingState::Serving);
    let mut client = Requester::new(request, reply, geometry);
    let end = Instant::now() + Duration::from_secs(1);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let ok = Answer { status: Status::Ok, flags: 0, t_start_ns: 1, t_done_ns: 2, generation: 1 };
            let mut seen = [0; TENSOR_BYTES];
            while Instant::now() < end {
                let Some(request) = worker.take().unwrap() else { continue };
                worker.read(&request, 64, &mut seen);
                let torn = seen.chunks_exact(8).position(|w| w != request.observation_id.to_ne_bytes());
                assert_eq!(torn, None, "request {} is torn at this word", request.number);
                let _ = worker.publish(&request, &ok);
            }
        });
        while Instant::now() < end {
            if client.begin() {
                let value = client.next() + 1;
                let tensor = client.input_mut(64, TENSOR_BYTES as u64);
                for at in tensor.chunks_exact_mut(16) {
                    // SAFETY: sixteen bytes of a slice that is ours, aligned: the tensor lies 64-aligned in its slot.
                    unsafe { _mm_stream_si128(at.as_mut_ptr().cast(), _mm_set1_epi64x(value as i64)) }
                }
                let _ = client.publish(&RequestMeta { observation_id: value, ..RequestMeta::default() });
            }
            while let Some((reply, _)) = client.poll() {
                let _ = client.release(reply + 1);
            }
        }
    });
}
