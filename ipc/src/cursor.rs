//! Where the slots around a number lie, without a division on the way of a request.
//!
//! Slot n lies at `first + n % count * stride`, and the ends of a ring ask for the same few numbers again and again: the one
//! that is due, the one before it, the one after it. Their offsets are kept; any other number is worked out.

/// The offsets around one number of a ring of slots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor {
    first: u64,
    stride: u64,
    count: u64,
    number: u64,
    before: usize,
    here: usize,
    after: usize,
}

impl Cursor {
    /// A ring of `count` slots from offset `first` on, at number 0.
    pub(crate) fn new(first: u64, stride: u64, count: u64) -> Cursor {
        let mut new = Cursor { first, stride, count, number: 0, before: 0, here: 0, after: 0 };
        new.jump(0);
        new
    }

    /// The number that it stands at.
    #[inline]
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Offset of the slot that it stands at.
    #[inline]
    pub(crate) fn here(&self) -> usize {
        self.here
    }

    /// Offset of the slot of any number.
    #[inline]
    pub(crate) fn at(&self, number: u64) -> usize {
        match number.wrapping_sub(self.number) {
            0 => self.here,
            1 => self.after,
            u64::MAX => self.before,
            _ => self.far(number),
        }
    }

    /// Goes to a number.
    #[inline]
    pub(crate) fn seek(&mut self, number: u64) {
        if number.wrapping_sub(self.number) == 1 {
            self.number = number;
            (self.before, self.here) = (self.here, self.after);
            let next = self.after + self.stride as usize;
            let end = (self.first + self.count * self.stride) as usize;
            self.after = if next == end { self.first as usize } else { next };
        } else {
            self.jump(number);
        }
    }

    #[cold]
    fn jump(&mut self, number: u64) {
        self.number = number;
        let around = |n: u64| self.far(n);
        (self.before, self.here, self.after) = (around(number.wrapping_sub(1)), around(number), around(number + 1));
    }

    fn far(&self, number: u64) -> usize {
        (self.first + (number % self.count) * self.stride) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_a_slot_leads_to_the_same_place() {
        for count in [1, 2, 3, 4, 63, 64] {
            let mut cursor = Cursor::new(640, 256, count);
            let right = |n: u64| (640 + n % count * 256) as usize;
            for to in (0..200).chain([1_000, 1_001, 7, 8, 1 << 62]) {
                cursor.seek(to);
                assert_eq!((cursor.number(), cursor.here()), (to, right(to)));
                for n in to.saturating_sub(3)..to + 4 {
                    assert_eq!(cursor.at(n), right(n), "{n} from {to} of {count}");
                }
            }
        }
    }
}
