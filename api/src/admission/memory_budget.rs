//! Memory that clients fill: bytes counted against a limit that all workers share.
//!
//! Bodies take what has arrived of them, answers what is not sent yet. Where a body finds no room, the
//! largest of those that stand still goes: a client that announces much and sends little holds no room
//! that somebody else could use. It must not know what the bytes are.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use tokio::sync::oneshot;

/// Bytes in use and their limit.
#[derive(Debug)]
pub struct MemoryBudget {
    bytes_max: usize,
    taken: AtomicUsize,
    stalled: Mutex<Stalled>,
}

/// There is no room, or it was given to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// Bodies of which more is awaited, the smallest first.
#[derive(Debug, Default)]
struct Stalled {
    /// Dropping a sender wakes its body and takes its room.
    by_size: BTreeMap<(usize, u64), oneshot::Sender<()>>,
    /// Sum of their sizes.
    bytes: usize,
    id_last: u64,
}

impl MemoryBudget {
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, taken: AtomicUsize::new(0), stalled: Mutex::default() })
    }

    /// Takes room for something of a known size.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reserved> {
        let reserved = Reserved { budget: self.clone(), bytes };
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        (before.saturating_add(bytes) <= self.bytes_max).then_some(reserved)
    }

    /// Checks that so much would fit now.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.taken.load(Ordering::Relaxed).saturating_add(bytes) <= self.bytes_max
    }

    /// Takes room for something that is there already, whether or not it fits.
    pub fn reserve_always(self: &Arc<Self>, bytes: usize) -> Reserved {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Reserved { budget: self.clone(), bytes }
    }

    /// Begins a body of which nothing has arrived yet.
    pub fn arriving(&self) -> Arriving<'_> {
        Arriving { budget: self, bytes: 0, stalled: None }
    }

    /// Refuses the largest stalled bodies until there is room; none where all of them were too few.
    fn make_room(&self) -> Result<(), NoRoom> {
        let mut stalled = self.lock();
        if self.taken.load(Ordering::Relaxed).saturating_sub(stalled.bytes) > self.bytes_max {
            return Err(NoRoom);
        }
        while self.taken.load(Ordering::Relaxed) > self.bytes_max {
            let ((bytes, _), _) = stalled.by_size.pop_last().ok_or(NoRoom)?;
            stalled.bytes -= bytes;
            self.taken.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Stalled> {
        self.stalled.lock().expect("no code panics while it holds this lock")
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    budget: Arc<MemoryBudget>,
    bytes: usize,
}

impl Reserved {
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The room of one body, as large as what has arrived; given back when dropped.
///
/// Only a body that stands still is in the shared list, so that one that arrives at once takes no lock.
#[derive(Debug)]
pub struct Arriving<'a> {
    budget: &'a MemoryBudget,
    bytes: usize,
    stalled: Option<(u64, oneshot::Receiver<()>)>,
}

impl Arriving<'_> {
    /// Takes room for what has come. Fails when there is none, even without the bodies that stand still.
    pub fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        self.go_on()?;
        self.bytes += bytes;
        let before = self.budget.taken.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) <= self.budget.bytes_max { Ok(()) } else { self.budget.make_room() }
    }

    /// Stands still until more has come; ready when its room was given to others.
    pub fn poll_refused(&mut self, cx: &mut Context<'_>) -> Poll<NoRoom> {
        if self.bytes == 0 {
            return Poll::Pending;
        }
        let (_, refused) = self.stalled.get_or_insert_with(|| {
            let (keep, refused) = oneshot::channel();
            let mut stalled = self.budget.lock();
            stalled.id_last += 1;
            let id = stalled.id_last;
            stalled.by_size.insert((self.bytes, id), keep);
            stalled.bytes += self.bytes;
            (id, refused)
        });
        refused.poll_unpin(cx).map(|_| NoRoom)
    }

    /// Leaves the list of bodies that stand still. Fails when its room was given to others.
    fn go_on(&mut self) -> Result<(), NoRoom> {
        let Some((id, _)) = self.stalled.take() else { return Ok(()) };
        let mut stalled = self.budget.lock();
        if stalled.by_size.remove(&(self.bytes, id)).is_none() {
            // Whoever took it has counted it already.
            self.bytes = 0;
            return Err(NoRoom);
        }
        stalled.bytes -= self.bytes;
        Ok(())
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        let _ = self.go_on();
        if self.bytes > 0 {
            self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn refused(body: &mut Arriving<'_>) -> bool {
        body.poll_refused(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn taken(budget: &MemoryBudget) -> usize {
        budget.taken.load(Ordering::Relaxed)
    }

    #[test]
    fn a_body_takes_what_has_arrived_and_gives_it_back() {
        let budget = MemoryBudget::new(100);
        let mut body = budget.arriving();
        assert!(!refused(&mut body), "nothing has come, so nothing can be taken from it");
        assert_eq!(taken(&budget), 0);
        body.grow(60).expect("fits");
        assert!(!refused(&mut body));
        body.grow(40).expect("fits");
        assert_eq!(taken(&budget), 100);
        assert_eq!(budget.arriving().grow(1), Err(NoRoom), "nothing stands still");
        drop(body);
        assert_eq!(taken(&budget), 0);
    }

    #[test]
    fn the_largest_that_stands_still_makes_room_for_what_comes() {
        let budget = MemoryBudget::new(100);
        let mut bodies: Vec<_> = [10, 50, 30].into_iter().map(|bytes| (bytes, budget.arriving())).collect();
        for (bytes, body) in &mut bodies {
            body.grow(*bytes).expect("fits");
            assert!(!refused(body));
        }
        let mut newcomer = budget.arriving();
        newcomer.grow(15).expect("finds room");
        let given_up: Vec<_> = bodies.iter_mut().map(|(_, body)| refused(body)).collect();
        assert_eq!(given_up, [false, true, false]);
        assert_eq!(taken(&budget), 55);
        let (_, largest) = &mut bodies[1];
        assert_eq!(largest.grow(1), Err(NoRoom), "it comes too late");
        assert_eq!(taken(&budget), 55);
        drop((bodies, newcomer));
        assert_eq!(taken(&budget), 0);
    }

    #[test]
    fn bodies_that_stand_still_stay_where_all_of_them_make_no_room() {
        let budget = MemoryBudget::new(100);
        let (mut small, mut smaller) = (budget.arriving(), budget.arriving());
        for (bytes, body) in [(20, &mut small), (10, &mut smaller)] {
            body.grow(bytes).expect("fits");
            assert!(!refused(body));
        }
        let held = budget.reserve(70).expect("fits");
        assert_eq!(budget.arriving().grow(31), Err(NoRoom));
        assert!(!refused(&mut small) && !refused(&mut smaller), "it was in vain");
        assert_eq!(taken(&budget), 100);
        let mut newcomer = budget.arriving();
        newcomer.grow(30).expect("finds room");
        assert!(refused(&mut small) && refused(&mut smaller));
        drop((small, smaller, newcomer));
        let mut next = budget.arriving();
        next.grow(25).expect("fits");
        assert!(!refused(&mut next));
        next.grow(5).expect("goes on");
        drop((next, held));
        assert_eq!((taken(&budget), budget.lock().bytes), (0, 0));
    }

    #[test]
    fn a_reservation_is_refused_where_it_does_not_fit_and_given_back() {
        let budget = MemoryBudget::new(100);
        let held = budget.reserve(60).expect("fits");
        assert!(budget.reserve(41).is_none() && !budget.has_room(41) && budget.has_room(40));
        assert_eq!(taken(&budget), 60);
        drop(held);
        budget.reserve(100).expect("fits again");
    }
}
