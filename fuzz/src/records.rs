//! Records between processes: attach records and signatures (binary), worker records (JSON).

use inferd_ipc::attach::{Attach, AttachStatus, Attached, Mapped, Ready, RecordKind, model_name, parse, text};
use inferd_ipc::layout::{Geometry, Queue};
use inferd_ipc::signature::Signature;
use inferd_ipc::worker_records::{FromWorker, ToWorker, decode, encode};

/// Whatever comes in over an attach socket, at either end, and the signature that a client reads from its reply region.
pub fn attach(bytes: &[u8]) {
    if let Ok(wish) = parse::<Attach>(bytes, RecordKind::Attach) {
        if let Ok(name) = model_name(&wish.model) {
            assert!(!name.contains('/') && !name.starts_with('.'), "a model's name is no path: {name:?}");
        }
        let _ = Queue::from_number(wish.queue);
    }
    if let Ok(attached) = parse::<Attached>(bytes, RecordKind::Attached) {
        let _ = (AttachStatus::from_number(attached.status), text(&attached.message), text(&attached.version));
        inside(&attached.geometry);
    }
    let _ = parse::<Mapped>(bytes, RecordKind::Mapped);
    if let Ok(ready) = parse::<Ready>(bytes, RecordKind::Ready) {
        let _ = text(&ready.message);
    }
    if let Ok(signature) = Signature::decode(bytes) {
        lay_out(&signature);
        assert_eq!(
            Signature::decode(&signature.encode()).ok().as_ref(),
            Some(&signature),
            "what was read can be written"
        );
    }
}

/// What the supervisor does with a worker's word.
pub fn from_worker(bytes: &[u8]) {
    let Ok(record) = decode::<FromWorker>(bytes) else { return };
    let _ = encode(&record);
    if let FromWorker::Loaded(loaded) = record {
        let layout = &loaded.record_layout;
        if layout.check().is_ok() {
            let slots = layout.slots(1000, 64 << 20);
            assert!(slots == 0 || layout.used_bytes(slots) <= 64 << 20, "the region is as large as was allowed");
            assert!(layout.region_bytes(slots) >= layout.used_bytes(slots));
        }
        if loaded.signature.check().is_ok() {
            lay_out(&loaded.signature);
        }
    }
}

/// What a worker does with its supervisor's word.
pub fn to_worker(bytes: &[u8]) {
    let Ok(record) = decode::<ToWorker>(bytes) else { return };
    let _ = encode(&record);
    if let ToWorker::AddSession { geometry, .. } = record {
        inside(&geometry);
    }
}

fn lay_out(signature: &Signature) {
    for (slots, colour) in [(1, 0), (4, 31), (64, 7)] {
        if let Ok(geometry) = Geometry::new(signature, slots, Queue::Latest, colour) {
            inside(&geometry);
        }
    }
}

/// A geometry that passes its check keeps every slot within its region.
fn inside(geometry: &Geometry) {
    if geometry.check().is_ok() {
        assert!(geometry.request_slot_end() <= geometry.request_bytes);
        assert!(geometry.reply_slot_end() <= geometry.reply_bytes);
    }
}
