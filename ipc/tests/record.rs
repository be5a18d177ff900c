//! The record region: what was written is read back, whoever wrote it; and any other content is survived.

#![cfg(feature = "worker-records")]
#![allow(clippy::unwrap_used)]

use inferd_ipc::layout::Status;
use inferd_ipc::mem::Mem;
use inferd_ipc::record::{self, Begun, Read, RecordLayout, RecordReader, RecordedStep, Recorder};
use inferd_ipc::region;
use inferd_ipc::signature::{DType, Signature, TensorSpec};
use inferd_ipc::sync::Ordering;
use proptest::prelude::*;
use std::os::fd::AsFd;

fn layout() -> RecordLayout {
    let tensor = |name: &str, n| TensorSpec::new(name, DType::U8, &[n]);
    let signature =
        Signature { inputs: vec![tensor("a", 3), tensor("b", 70)], outputs: vec![tensor("y", 5)], stateful: true };
    RecordLayout::new(&signature, &[tensor("h", 9)])
}

fn begun(number: u64) -> Begun {
    Begun { session: 7, request: number, observation_id: number * 10, t_start_ns: number + 1, generation: 3 }
}

/// Writes the inputs and the state of a step; every byte says which.
fn begin(recorder: &mut Recorder, number: u64) {
    recorder.begin(&begun(number));
    recorder.input(0, &[number as u8; 3]);
    recorder.input(1, &[number as u8 + 1; 70]);
    recorder.state(0, &[number as u8 + 2; 9]);
    recorder.begun();
}

fn step(recorder: &mut Recorder, number: u64) {
    begin(recorder, number);
    recorder.output(0, &[number as u8 + 3; 5]);
    recorder.end(Status::Ok, 2, number + 100);
}

fn check_inputs(step: &RecordedStep, number: u64) {
    assert_eq!((step.number, step.begun), (number, begun(number)));
    assert_eq!(step.input(0), [number as u8; 3]);
    assert_eq!(step.input(1), [number as u8 + 1; 70]);
    assert_eq!(step.state(0), [number as u8 + 2; 9]);
}

fn check(step: &RecordedStep, number: u64) {
    check_inputs(step, number);
    assert_eq!((step.status, step.flags, step.run_ns), (Some(Status::Ok), 2, number + 100));
    assert_eq!(step.output(0), [number as u8 + 3; 5]);
}

fn memory(slots: u32) -> Mem {
    Mem::heap(layout().region_bytes(slots) as usize)
}

#[test]
fn the_last_steps_are_read_back_oldest_first_whoever_wrote_them() {
    let mem = memory(4);
    let reader = RecordReader::new(mem.clone(), &layout(), 4);
    assert_eq!((reader.next(), reader.steps().count()), (0, 0));
    let mut recorder = Recorder::new(mem.clone(), &layout(), 4);
    (0..3).for_each(|n| step(&mut recorder, n));
    assert_eq!(reader.steps().map(|s| s.number).collect::<Vec<_>>(), [0, 1, 2]);
    // A successor goes on where its predecessor ended, even if it mapped the region before.
    let mut successor = Recorder::new(mem, &layout(), 4);
    step(&mut recorder, 3);
    successor.adopt();
    (4..10).for_each(|n| step(&mut successor, n));
    let numbers: Vec<u64> = reader
        .steps()
        .map(|s| {
            check(&s, s.number);
            s.number
        })
        .collect();
    assert_eq!(numbers, [6, 7, 8, 9]);
    assert!(matches!(reader.read(5), Read::Gone) && matches!(reader.read(10), Read::NotYet));
    assert!(reader.has(9) && !reader.has(5) && !reader.has(10));
}

#[test]
fn the_observation_of_a_step_that_never_ended_is_there() {
    let mem = memory(2);
    let mut recorder = Recorder::new(mem.clone(), &layout(), 2);
    (0..3).for_each(|n| step(&mut recorder, n));
    begin(&mut recorder, 3);
    drop(recorder);
    let reader = RecordReader::new(mem.clone(), &layout(), 2);
    let Read::Step(last) = reader.read(3) else { panic!("it began") };
    check_inputs(&last, 3);
    assert_eq!((last.status, last.run_ns), (None, 0));
    // The next worker leaves it where it is.
    step(&mut Recorder::new(mem, &layout(), 2), 4);
    assert_eq!(reader.steps().map(|s| s.number).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn a_step_that_is_being_overwritten_is_gone_and_a_failed_one_keeps_its_status() {
    let mem = memory(2);
    let mut recorder = Recorder::new(mem.clone(), &layout(), 2);
    let reader = RecordReader::new(mem, &layout(), 2);
    begin(&mut recorder, 0);
    recorder.end(Status::ModelError, 0, 55);
    let Read::Step(failed) = reader.read(0) else { panic!("it stands") };
    assert_eq!((failed.status, failed.run_ns), (Some(Status::ModelError), 55));
    step(&mut recorder, 1);
    recorder.begin(&begun(2));
    assert!(matches!(reader.read(0), Read::NotYet), "withdrawn");
    assert_eq!(reader.steps().map(|s| s.number).collect::<Vec<_>>(), [1]);
}

#[test]
fn sizes_are_bounded_whatever_the_tensors_say() {
    let tensor = |shape: &[u64]| vec![TensorSpec::new("t", DType::F64, shape)];
    let huge = RecordLayout { inputs: tensor(&[u64::MAX, 2]), states: tensor(&[u64::MAX]), outputs: tensor(&[1]) };
    assert!(huge.check().is_err());
    assert_eq!((huge.slots(256, u64::MAX), huge.region_bytes(2)), (0, u64::MAX));
    let small = layout();
    assert_eq!(small.check(), Ok(()));
    assert_eq!(small.step_bytes(), 64 + 64 + 128 + 64 + 64);
    assert_eq!(small.slots(256, 8 << 20), 256);
    assert_eq!(small.slots(256, 64 + 3 * 384 + 383), 3);
    assert_eq!((small.slots(256, 64 + 384), small.slots(1, 1 << 20), small.slots(0, 1 << 20)), (0, 0, 0));
}

#[test]
fn a_region_is_sealed_and_only_mapped_as_what_it_is() {
    let fd = record::create(&layout(), 4).unwrap();
    let mut recorder = record::open_writer(fd.as_fd(), &layout(), 4).unwrap();
    step(&mut recorder, 0);
    let read_only = region::reopen(fd.as_fd(), region::Access::ReadOnly).unwrap();
    let reader = record::open_reader(read_only.as_fd(), &layout(), 4).unwrap();
    check(&reader.steps().next().unwrap(), 0);
    assert!(record::open_writer(read_only.as_fd(), &layout(), 4).is_err(), "a reader's descriptor does not write");
    assert!(nix::unistd::ftruncate(&fd, 0).is_err(), "its size is sealed");
    let mut other = layout();
    other.inputs[1].shape = vec![700];
    assert!(record::open_reader(read_only.as_fd(), &other, 4).is_err(), "another layout");
    assert!(record::open_reader(read_only.as_fd(), &layout(), 40).is_err(), "other slots");
    assert!(record::open_reader(read_only.as_fd(), &layout(), 0).is_err());
}

proptest! {
    #[test]
    fn any_content_is_survived_by_readers_and_by_the_next_recorder(
        slots in 1u32..9,
        words in proptest::collection::vec(
            prop_oneof![0u64..20, Just(u64::MAX), any::<u64>(), (0u64..20).prop_map(|n| n | 1 << 63)], 0..500),
        stride in 1usize..49,
        asked in prop_oneof![0u64..40, any::<u64>()],
    ) {
        let mem = memory(slots);
        for (i, word) in words.iter().enumerate() {
            let at = (i * stride * 8) % mem.bytes();
            mem.word(at).store(*word, Ordering::Relaxed);
        }
        let reader = RecordReader::new(mem.clone(), &layout(), slots);
        prop_assert!(reader.steps().count() <= slots as usize);
        let _ = (reader.read(asked), reader.has(asked), reader.read(reader.next()));
        let mut recorder = Recorder::new(mem, &layout(), slots);
        let number = reader.next();
        let label = number % 50;
        step(&mut recorder, label);
        let Read::Step(read) = reader.read(number) else { panic!("just written") };
        prop_assert_eq!(read.begun, begun(label));
        prop_assert_eq!(read.output(0), [label as u8 + 3; 5]);
    }
}
