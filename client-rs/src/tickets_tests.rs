//! Tests of the tickets: sentences for the rules, and random histories against a slow reference model.

use super::*;
use proptest::prelude::*;

fn header(request: u64) -> ReplyHeader {
    ReplyHeader { request, ..ReplyHeader::default() }
}

fn submitted(queue: Queue, slots: u32, count: u64) -> Tickets {
    let mut tickets = Tickets::new(queue, slots);
    for n in 0..count {
        assert!(tickets.may_submit());
        assert_eq!(tickets.submitted(1000 + n), n);
    }
    tickets
}

#[test]
fn the_released_count_advances_over_the_contiguous_prefix_only() {
    let mut t = submitted(Queue::InOrder, 4, 3);
    for n in 0..3 {
        t.arrived(&header(n)).unwrap();
    }
    t.claim(2);
    t.release(2);
    assert_eq!(t.released(), 0);
    t.abandon(0);
    assert_eq!(t.released(), 1);
    t.claim(1);
    t.release(1);
    assert_eq!(t.released(), 3);
}

#[test]
fn an_abandoned_reply_is_released_when_it_arrives() {
    let mut t = submitted(Queue::InOrder, 1, 1);
    t.abandon(0);
    assert!(!t.may_submit());
    assert_eq!(t.look(0), Fate::Spent);
    t.arrived(&header(0)).unwrap();
    assert!(t.may_submit());
    assert_eq!(t.submitted(0), 1);
    assert_eq!(t.look(1), Fate::Pending);
}

#[test]
fn in_order_refuses_while_all_slots_are_in_flight_or_unclaimed() {
    let mut t = submitted(Queue::InOrder, 2, 2);
    assert!(!t.may_submit());
    t.arrived(&header(0)).unwrap();
    assert!(!t.may_submit());
    t.claim(0);
    t.release(0);
    assert!(t.may_submit());
}

#[test]
fn latest_tells_what_superseded_a_request_and_passes_older_replies_over() {
    let mut t = submitted(Queue::Latest, 2, 6);
    t.arrived(&header(1)).unwrap();
    t.arrived(&header(4)).unwrap();
    assert_eq!(t.look(0), Fate::Superseded(1));
    assert_eq!(t.look(2), Fate::Superseded(4));
    assert_eq!(t.look(5), Fate::Pending);
    assert!(!t.has_room());
    assert!(t.make_room_for(5));
    assert_eq!((t.look(1), t.look(4)), (Fate::Spent, Fate::Reply(1)));
    t.arrived(&header(5)).unwrap();
    t.claim(2);
    assert_eq!((t.look(4), t.look(5), t.released()), (Fate::Spent, Fate::Spent, 2));
    t.release(2);
    assert_eq!(t.released(), 3);
}

#[test]
fn in_latest_giving_up_a_ticket_gives_up_every_older_one() {
    let mut t = submitted(Queue::Latest, 4, 4);
    t.arrived(&header(0)).unwrap();
    t.abandon(2);
    assert_eq!((t.look(1), t.look(2), t.look(3), t.released()), (Fate::Spent, Fate::Spent, Fate::Pending, 1));
    t.arrived(&header(2)).unwrap();
    assert_eq!(t.released(), 2);
}

#[test]
fn replies_that_contradict_what_was_published_are_faults() {
    let mut t = submitted(Queue::InOrder, 2, 2);
    assert!(t.arrived(&header(1)).is_err(), "out of order");
    assert!(t.arrived(&header(2)).is_err(), "never published");
    t.arrived(&header(0)).unwrap();
    assert!(t.arrived(&header(0)).is_err(), "twice");
    t.arrived(&header(1)).unwrap();
    let mut t = submitted(Queue::Latest, 1, 5);
    t.arrived(&header(3)).unwrap();
    assert!(t.arrived(&header(4)).is_err(), "without credit");
    t.claim(0);
    t.release(0);
    assert!(t.arrived(&header(2)).is_err(), "backwards");
    t.arrived(&header(4)).unwrap();
}

#[test]
fn tickets_from_far_back_are_spent_and_never_mistaken() {
    let mut t = Tickets::new(Queue::Latest, 4);
    for n in 0..3000 {
        t.submitted(n);
        if n % 3 == 2 {
            t.arrived(&header(n)).unwrap();
            let r = t.any().unwrap();
            t.claim(r);
            t.release(r);
        }
    }
    for n in 0..3000 {
        match t.look(n) {
            Fate::Superseded(by) => assert!(n % 3 != 2 && by == n - n % 3 + 2),
            fate => {
                assert!(
                    fate == Fate::Spent && (n % 3 == 2 || n < 3000 - 3 * (CLIENT_HISTORY as u64 - 1)),
                    "{n}: {fate:?}"
                )
            }
        }
    }
    assert_eq!((t.t_submit_ns(2999), t.t_submit_ns(0)), (2999, 0));
}

#[test]
fn nobody_gets_the_reply_to_a_cancelled_request() {
    let mut t = submitted(Queue::Latest, 1, 1);
    t.cancelled();
    t.arrived(&header(1)).unwrap();
    assert_eq!((t.any(), t.released(), t.look(0)), (None, 1, Fate::Superseded(1)));
}

/// The same rules over plain lists, without any bound.
struct Reference {
    queue: Queue,
    slots: usize,
    given_up: Vec<bool>,
    replies: Vec<(u64, Claim)>,
}

impl Reference {
    fn look(&self, n: u64) -> Fate {
        let answer = self.replies.iter().position(|(request, _)| *request >= n);
        match answer.map(|r| (r, self.replies[r])) {
            Some((r, (request, Claim::Unclaimed))) if request == n => Fate::Reply(r as u64),
            Some((_, (request, _))) if request == n => Fate::Spent,
            Some((_, (request, _))) => Fate::Superseded(request),
            None if self.given_up[n as usize] => Fate::Spent,
            None => Fate::Pending,
        }
    }

    fn released(&self) -> usize {
        self.replies.iter().take_while(|(_, claim)| *claim == Claim::Released).count()
    }

    fn may_submit(&self) -> bool {
        self.queue == Queue::Latest || self.given_up.len() - self.released() < self.slots
    }

    fn abandon(&mut self, n: u64) {
        let older = self.queue == Queue::Latest;
        for i in 0..=n {
            self.given_up[i as usize] |= i == n || older;
        }
        for (request, claim) in &mut self.replies {
            if *claim == Claim::Unclaimed && (*request == n || (older && *request < n)) {
                *claim = Claim::Released;
            }
        }
    }

    fn answer(&mut self, request: u64) {
        let claim = if self.given_up[request as usize] { Claim::Released } else { Claim::Unclaimed };
        self.replies.push((request, claim));
    }

    fn claim(&mut self, r: u64) {
        let request = self.replies[r as usize].0;
        for (other, claim) in &mut self.replies {
            if *claim == Claim::Unclaimed && *other < request && self.queue == Queue::Latest {
                *claim = Claim::Released;
            }
        }
        self.replies[r as usize].1 = Claim::Claimed;
    }
}

#[derive(Debug, Clone)]
enum Op {
    Submit,
    Answer(u64),
    Claim(u64),
    ReleaseClaimed,
    Abandon(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Submit),
        4 => (0u64..8).prop_map(Op::Answer),
        3 => (0u64..8).prop_map(Op::Claim),
        3 => Just(Op::ReleaseClaimed),
        1 => (0u64..8).prop_map(Op::Abandon),
    ]
}

fn apply(op: &Op, t: &mut Tickets, m: &mut Reference) {
    let count = m.given_up.len() as u64;
    let next = m.replies.last().map_or(0, |(request, _)| request + 1);
    match op {
        Op::Submit if m.may_submit() => {
            t.submitted(count);
            m.given_up.push(false);
        }
        Op::Answer(skip) if next < count && m.replies.len() - m.released() < m.slots => {
            let request = if m.queue == Queue::InOrder { next } else { (next + skip).min(count - 1) };
            t.arrived(&header(request)).expect("an honest reply");
            m.answer(request);
        }
        Op::Claim(back) if count > 0 => {
            if let Fate::Reply(r) = m.look((count - 1).saturating_sub(*back)) {
                t.claim(r);
                m.claim(r);
            }
        }
        Op::ReleaseClaimed => {
            for r in 0..m.replies.len() {
                if m.replies[r].1 == Claim::Claimed {
                    t.release(r as u64);
                    m.replies[r].1 = Claim::Released;
                }
            }
        }
        Op::Abandon(back) if count > 0 => {
            let n = (count - 1).saturating_sub(*back);
            t.abandon(n);
            m.abandon(n);
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn any_history_ends_as_in_the_reference_model(
        latest: bool,
        slots in 1u32..5,
        ops in proptest::collection::vec(op(), 0..200),
    ) {
        let queue = if latest { Queue::Latest } else { Queue::InOrder };
        let mut tickets = Tickets::new(queue, slots);
        let mut model = Reference { queue, slots: slots as usize, given_up: Vec::new(), replies: Vec::new() };
        for op in &ops {
            apply(op, &mut tickets, &mut model);
            prop_assert_eq!(tickets.may_submit(), model.may_submit());
            prop_assert_eq!(tickets.released(), model.released() as u64);
            for n in 0..model.given_up.len() as u64 {
                prop_assert_eq!(tickets.look(n), model.look(n), "request {} after {:?}", n, op);
            }
        }
    }
}
