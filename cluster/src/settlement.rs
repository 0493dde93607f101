//! Which admissions of this life of the process still need their answer kept.

use std::collections::VecDeque;

/// Hands out sequences and tells the lowest that is not settled.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    /// Every sequence below is settled.
    low: u64,
    /// Whether `low`, `low + 1`, … are settled; the first never is.
    settled: VecDeque<bool>,
}

impl Settlement {
    pub(crate) fn issue(&mut self) -> u64 {
        self.settled.push_back(false);
        self.low + self.settled.len() as u64 - 1
    }

    /// A sequence that was never issued or is settled already changes nothing.
    pub(crate) fn settle(&mut self, sequence: u64) {
        let position = sequence.checked_sub(self.low).and_then(|position| usize::try_from(position).ok());
        if let Some(settled) = position.and_then(|position| self.settled.get_mut(position)) {
            *settled = true;
        }
        while self.settled.front() == Some(&true) {
            self.settled.pop_front();
            self.low += 1;
        }
    }

    /// Whether nothing was ever issued.
    pub(crate) fn is_untouched(&self) -> bool {
        self.low == 0 && self.settled.is_empty()
    }

    pub(crate) fn settled_below(&self) -> u64 {
        self.low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_unsettled_sequence_holds_the_rest_back() {
        let mut settlement = Settlement::default();
        assert!(settlement.is_untouched());
        let issued: Vec<u64> = (0..4).map(|_| settlement.issue()).collect();
        assert_eq!(issued, [0, 1, 2, 3]);
        settlement.settle(1);
        settlement.settle(2);
        assert_eq!(settlement.settled_below(), 0);
        settlement.settle(0);
        assert_eq!(settlement.settled_below(), 3);
        settlement.settle(0);
        settlement.settle(99);
        assert_eq!(settlement.settled_below(), 3);
        assert!(!settlement.is_untouched());
        settlement.settle(3);
        assert_eq!((settlement.settled_below(), settlement.issue()), (4, 4));
    }
}
