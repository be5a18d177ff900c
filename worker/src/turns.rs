//! Whose turn it is: by uid, then by session, one step per turn.
//!
//! A uid with many sessions gets no more turns than a uid with one, and within a uid no session gets
//! two turns before another that waits has had one. A waiting session therefore waits at most for one
//! step of each competitor.

/// The sessions of one uid: index in the executor's list, and number.
#[derive(Debug, Default)]
struct Group {
    uid: u32,
    sessions: Vec<(usize, u64)>,
    next: usize,
}

/// The order of turns over all sessions.
#[derive(Debug, Default)]
pub struct Turns {
    groups: Vec<Group>,
    next: usize,
}

impl Turns {
    /// Rebuilds the order for these sessions, by index: uid and number. Whose turn it was keeps it, or else whoever came
    /// after: otherwise sessions that come and go would bring the first ones their turn again and again.
    pub fn rebuild(&mut self, sessions: impl Iterator<Item = (u32, u64)>) {
        let before = std::mem::take(&mut self.groups);
        for (index, (uid, number)) in sessions.enumerate() {
            match self.groups.iter_mut().find(|g| g.uid == uid) {
                Some(group) => group.sessions.push((index, number)),
                None => self.groups.push(Group { uid, sessions: vec![(index, number)], next: 0 }),
            }
        }
        for group in &mut self.groups {
            let Some(old) = before.iter().find(|old| old.uid == group.uid) else { continue };
            let is_there = |number: u64| group.sessions.iter().position(|(_, n)| *n == number);
            group.next = from(&old.sessions, old.next).find_map(|(_, number)| is_there(*number)).unwrap_or(0);
        }
        let is_there = |uid: u32| self.groups.iter().position(|g| g.uid == uid);
        self.next = from(&before, self.next).find_map(|old| is_there(old.uid)).unwrap_or(0);
    }

    /// Gives one turn: asks the sessions in order until `step` says that one had work. False when none had.
    #[inline]
    pub fn turn(&mut self, mut step: impl FnMut(usize) -> bool) -> bool {
        let groups = self.groups.len();
        for g in 0..groups {
            let at = wrap(self.next + g, groups);
            let group = &mut self.groups[at];
            let sessions = group.sessions.len();
            for s in 0..sessions {
                let index = wrap(group.next + s, sessions);
                if step(group.sessions[index].0) {
                    group.next = wrap(index + 1, sessions);
                    self.next = wrap(at + 1, groups);
                    return true;
                }
            }
        }
        false
    }
}

/// All of them, from this one on and around.
fn from<T>(all: &[T], first: usize) -> impl Iterator<Item = &T> {
    all[first..].iter().chain(&all[..first])
}

/// `i` modulo `n` for `i < 2n`: a division would cost as much as the rest of an empty sweep.
#[inline]
fn wrap(i: usize, n: usize) -> usize {
    if i >= n { i - n } else { i }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Turns given to each session when these always have work.
    fn shares(uids: &[u32], busy: &[usize], turns: usize) -> Vec<usize> {
        let mut order = Turns::default();
        order.rebuild(uids.iter().copied().zip(1..));
        let mut given = vec![0; uids.len()];
        for _ in 0..turns {
            order.turn(|i| {
                let works = busy.contains(&i);
                given[i] += usize::from(works);
                works
            });
        }
        given
    }

    #[test]
    fn uids_share_evenly_whatever_their_number_of_sessions() {
        assert_eq!(shares(&[1, 1, 1, 2], &[0, 1, 2, 3], 60), [10, 10, 10, 30]);
    }

    #[test]
    fn sessions_without_work_cost_no_turns() {
        assert_eq!(shares(&[1, 1, 2, 3], &[1, 3], 40), [0, 20, 0, 20]);
        assert_eq!(shares(&[1, 2], &[], 40), [0, 0]);
        assert!(!Turns::default().turn(|_| true));
    }

    #[test]
    fn no_session_gets_a_second_turn_before_the_others_had_one() {
        let mut order = Turns::default();
        order.rebuild([7, 7, 7].into_iter().zip(1..));
        let mut seen = Vec::new();
        for _ in 0..6 {
            order.turn(|i| {
                seen.push(i);
                true
            });
        }
        assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn sessions_that_come_and_go_bring_nobody_an_earlier_turn() {
        // Uid 1 keeps session 1 busy and lets others come and go between any two steps; 2 and 3 are busy too.
        let mut order = Turns::default();
        let mut given = BTreeMap::from([(1, 0), (2, 0), (3, 0), (4, 0)]);
        for round in 0..80 {
            let mut all = vec![(1, 1), (2, 2), (3, 3), (2, 4)];
            if round % 2 == 0 {
                all.push((1, 100 + round));
            }
            order.rebuild(all.iter().copied());
            order.turn(|i| given.get_mut(&all[i].1).map(|n| *n += 1).is_some());
        }
        assert_eq!(given, BTreeMap::from([(1, 27), (2, 14), (3, 26), (4, 13)]));
    }

    #[test]
    fn the_turn_of_one_who_left_is_that_of_the_next() {
        let mut order = Turns::default();
        let mut next = |all: &[(u32, u64)]| {
            order.rebuild(all.iter().copied());
            let mut number = 0;
            order.turn(|i| {
                number = all[i].1;
                true
            });
            number
        };
        assert_eq!(next(&[(1, 1), (2, 2), (3, 3), (1, 4), (1, 5)]), 1);
        // It is uid 2's turn, which has gone; then within uid 1 that of session 4, which has gone too.
        assert_eq!(next(&[(1, 1), (3, 3), (1, 4), (1, 5)]), 3);
        assert_eq!(next(&[(1, 1), (3, 3), (1, 5)]), 5);
        assert_eq!(next(&[]), 0);
    }
}
