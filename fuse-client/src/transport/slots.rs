//! The session's places in the gateway's reply cache (RFC 8881, 2.10.6.1).

use strongroom_protocol::op::Slot;

/// Free places, and the number that the next request in each has.
#[derive(Debug, Default)]
pub(super) struct Slots {
    free: Vec<u16>,
    next: Vec<u64>,
}

impl Slots {
    /// The slots of a new session.
    pub(super) fn new(count: u16) -> Slots {
        Slots { free: (0..count).rev().collect(), next: vec![1; usize::from(count)] }
    }

    /// A place for one request; `None` if all are taken.
    pub(super) fn take(&mut self) -> Option<Slot> {
        let index = self.free.pop()?;
        let next = self.next.get_mut(usize::from(index))?;
        let sequence = *next;
        *next += 1;
        Some(Slot { index, sequence })
    }

    /// Gives a place back whose request was answered.
    pub(super) fn give(&mut self, slot: Slot) {
        self.free.push(slot.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_by_one_in_each_slot() {
        let mut slots = Slots::new(2);
        let first = slots.take().unwrap();
        let second = slots.take().unwrap();
        assert_eq!((first, second), (Slot { index: 0, sequence: 1 }, Slot { index: 1, sequence: 1 }));
        assert_eq!(slots.take(), None);
        slots.give(second);
        assert_eq!(slots.take(), Some(Slot { index: 1, sequence: 2 }));
        assert_eq!(Slots::new(0).take(), None);
    }
}
