//! Whose turn it is: by uid, then by session, one step per turn.
//!
//! A uid with many sessions gets no more turns than a uid with one, and within a uid no session gets
//! two turns before another that waits has had one. A waiting session therefore waits at most for one
//! step of each competitor.

/// The sessions of one uid, as indices into the executor's list.
#[derive(Debug, Default)]
struct Group {
    uid: u32,
    sessions: Vec<usize>,
    next: usize,
}

/// The order of turns over all sessions.
#[derive(Debug, Default)]
pub struct Turns {
    groups: Vec<Group>,
    next: usize,
}

impl Turns {
    /// Rebuilds the order for these sessions' uids, by index.
    pub fn rebuild(&mut self, uids: impl Iterator<Item = u32>) {
        self.groups.clear();
        for (index, uid) in uids.enumerate() {
            match self.groups.iter_mut().find(|g| g.uid == uid) {
                Some(group) => group.sessions.push(index),
                None => self.groups.push(Group { uid, sessions: vec![index], next: 0 }),
            }
        }
        self.next = 0;
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
                if step(group.sessions[index]) {
                    group.next = wrap(index + 1, sessions);
                    self.next = wrap(at + 1, groups);
                    return true;
                }
            }
        }
        false
    }
}

/// `i` modulo `n` for `i < 2n`: a division would cost as much as the rest of an empty sweep.
#[inline]
fn wrap(i: usize, n: usize) -> usize {
    if i >= n { i - n } else { i }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns given to each session when these always have work.
    fn shares(uids: &[u32], busy: &[usize], turns: usize) -> Vec<usize> {
        let mut order = Turns::default();
        order.rebuild(uids.iter().copied());
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
        order.rebuild([7, 7, 7].into_iter());
        let mut seen = Vec::new();
        for _ in 0..6 {
            order.turn(|i| {
                seen.push(i);
                true
            });
        }
        assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
    }
}
