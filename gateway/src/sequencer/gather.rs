//! How long a group may grow before it is sent, into the log or to another gateway: for those who have just been answered.
//!
//! Senders come again as soon as they have their answers, and a batch costs about the same whatever rides in it. A group
//! that is sent the moment the last one has landed holds only those that came meanwhile; the many that come a moment later
//! wait for it, and so two groups of half the size take turns. So after a batch the next one waits until everybody is
//! there who is known: who was answered, and who came meanwhile.
//!
//! That pays where senders do come again. Where they come by themselves, however fast others are answered, it is only
//! lost time. The two are told apart by when they come: those who wait for answers come after them, the others as much
//! before. So a wait is in vain when too few come in it, or no faster than while the last batch was under way. The second
//! ends it, once there has been time to tell; after either the next batches do not wait, more of them after each such
//! wait. After single publishes nothing waits: there is no batch to be filled. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How often the last append's time gathering may take: with two groups that take turns everybody waits for the other one
/// as long.
const WAIT_APPENDS: u32 = 2;
/// The most that it may take, however slow the disk is: what it takes two busy processors to answer a thousand senders and
/// to read what they send next. Who does not come again is not waited for so long.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// So much faster come those who wait for answers than those who do not.
const FASTER: f64 = 1.25;
/// After the last append's time divided by this it can be told whether they do: most who come again have come by then.
const LOOK_PARTS: u32 = 2;
/// The most batches that do not wait after one that waited in vain, as a power of two: it is tried again several times a
/// second.
const SKIPS_MAX: u32 = 6;

/// Whom the next group waits for.
#[derive(Debug)]
pub(super) struct Gather {
    /// A group holds no more.
    most: usize,
    round: Option<Round>,
    /// Waits in a row in which too few came.
    in_vain: u32,
    /// So many batches do not wait.
    skips: u32,
}

#[derive(Debug)]
struct Round {
    /// Who was answered.
    sent: usize,
    /// Who came while they waited for that, and how long it was.
    there: usize,
    took: Duration,
    landed_at: Instant,
    look_at: Instant,
    until: Instant,
}

impl Round {
    /// Whether it has been worth it to wait until `now` for a group of `there`, where all are `expected`.
    fn was_worth_it(&self, there: usize, expected: usize, now: Instant) -> bool {
        there >= expected.min(self.there + self.sent.div_ceil(2)) && now <= self.come_again_until(there)
    }

    /// Until when those of a group of `there` who came since the batch landed have come faster than others come anyway, if
    /// nobody else does. One more than came while it was under way may have been about to.
    fn come_again_until(&self, there: usize) -> Instant {
        let came = there.saturating_sub(self.there);
        self.landed_at + self.took.mul_f64(came as f64 / (FASTER * (self.there + 1) as f64))
    }
}

impl Gather {
    /// For groups of at most so many.
    pub fn new(most: usize) -> Self {
        Self { most, round: None, in_vain: 0, skips: 0 }
    }

    /// A group of `sent` has landed, `took` after it was sent, and all of their senders have been answered. `there` have come
    /// meanwhile. Where one has landed before, and nothing was sent since, the next waits for both.
    pub fn landed(&mut self, sent: usize, there: usize, took: Duration, now: Instant) {
        let until = now + (took * WAIT_APPENDS).min(WAIT_MAX);
        let look_at = (now + took / LOOK_PARTS).min(until);
        if let Some(round) = &mut self.round {
            round.sent += sent;
            (round.look_at, round.until) = (look_at, until);
            return;
        }
        if self.skips > 0 {
            self.skips -= 1;
            return;
        }
        self.round = Some(Round { sent, there, took, landed_at: now, look_at, until });
    }

    /// With so many everybody is there.
    fn expected(&self, round: &Round) -> usize {
        (round.there + round.sent).min(self.most)
    }

    /// Nobody is waited for: a group has failed, or there was none. Whoever is there goes at once.
    pub fn nobody(&mut self) {
        self.round = None;
    }

    /// Whether a group of `there` is to wait, and until when it need not be asked again if nobody comes.
    pub fn waits(&self, there: usize, now: Instant) -> Option<Instant> {
        let round = self.round.as_ref().filter(|round| there < self.expected(round))?;
        if now < round.look_at {
            return Some(round.look_at);
        }
        let until = round.until.min(round.come_again_until(there));
        (now < until).then_some(until)
    }

    /// A group of `there` is sent.
    pub fn launched(&mut self, there: usize, now: Instant) {
        let Some(round) = self.round.take() else { return };
        if round.was_worth_it(there, self.expected(&round), now) {
            // Once may be chance.
            self.in_vain = self.in_vain.saturating_sub(1);
        } else {
            self.in_vain = (self.in_vain + 1).min(SKIPS_MAX);
            self.skips = 1 << self.in_vain;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(3);
    const MOST: usize = 999;

    #[test]
    fn a_group_waits_for_everybody_who_is_known_and_not_for_long() {
        let now = Instant::now();
        let mut gather = Gather::new(MOST);
        assert_eq!(gather.waits(1, now), None, "nobody has been answered yet");
        gather.landed(10, 5, TOOK, now);
        let look_at = now + TOOK / LOOK_PARTS;
        assert_eq!(gather.waits(14, now), Some(look_at));
        assert_eq!(gather.waits(15, now), None, "all are there");
        let nine_more = TOOK.mul_f64(9.0 / (FASTER * 6.0));
        assert_eq!(gather.waits(14, look_at), Some(now + nine_more), "they come again, so many for so long");
        assert_eq!(gather.waits(7, look_at), None, "no faster than before");
        assert_eq!(gather.waits(14, now + TOOK * WAIT_APPENDS), None, "its time is over");
        let landed_at = now + TOOK;
        gather.landed(20, 0, TOOK, landed_at);
        assert_eq!(gather.waits(34, landed_at), Some(landed_at + TOOK / LOOK_PARTS), "two have landed");
        assert_eq!(gather.waits(34, landed_at + TOOK), Some(landed_at + TOOK * WAIT_APPENDS));
        assert_eq!(gather.waits(35, landed_at), None);
        gather.nobody();
        gather.landed(10, 5, Duration::from_secs(1), now);
        assert_eq!(gather.waits(5, now), Some(now + WAIT_MAX));
        gather.nobody();
        gather.landed(3, 0, TOOK, now);
        let one_more = TOOK.mul_f64(1.0 / FASTER);
        assert_eq!(gather.waits(1, look_at), Some(now + one_more), "one alone is no sign that others follow");
        assert_eq!(gather.waits(1, now + one_more), None);
        gather.nobody();
        gather.landed(990, 100, TOOK, now);
        assert_eq!(gather.waits(MOST, now), None, "no more fit into a group");
        gather.nobody();
        assert_eq!(gather.waits(1, now), None);
    }

    /// How long a group has waited, with so many who come by themselves.
    fn wait(gather: &mut Gather, arrivals_per_ms: f64, sent: usize, took: Duration, now: Instant) -> Duration {
        let there = |since: Duration| (arrivals_per_ms * since.as_secs_f64() * 1e3) as usize;
        gather.landed(sent, there(took), took, now);
        let mut waited = Duration::ZERO;
        while gather.waits(there(took + waited), now + waited).is_some() {
            waited += Duration::from_micros(100);
        }
        gather.launched(there(took + waited), now + waited);
        waited
    }

    /// Who comes by himself is not kept waiting for those who do not come again, at whatever rate.
    #[test]
    fn waiting_in_vain_is_short_and_becomes_rare() {
        for arrivals_per_ms in [1.0, 4.0, 12.0] {
            let now = Instant::now();
            let mut gather = Gather::new(MOST);
            let sent = (arrivals_per_ms * 3.0) as usize;
            let waits: Vec<_> = (0..650).map(|_| wait(&mut gather, arrivals_per_ms, sent, TOOK, now)).collect();
            let waited = waits.iter().filter(|waited| !waited.is_zero()).count();
            assert!((7..=16).contains(&waited), "{arrivals_per_ms} per ms: {waited}");
            let longest = waits.iter().max().unwrap();
            assert!(*longest <= TOOK / LOOK_PARTS + Duration::from_millis(1), "{arrivals_per_ms} per ms: {longest:?}");
        }
    }

    /// Two groups that take turns become one, also where so many are slow to come again: processors that are busy take 15 ms
    /// for 256 senders.
    #[test]
    fn who_comes_again_is_waited_for_each_time() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut gather = Gather::new(MOST);
        gather.landed(128, 128, ms(9), now);
        gather.launched(256, now + ms(6));
        for (took, come_after) in [(8, 8), (12, 15)].repeat(10) {
            gather.landed(256, 10, ms(took), now);
            assert!(gather.waits(255, now + ms(come_after)).is_some(), "{took} ms, {come_after} ms");
            gather.launched(256, now + ms(come_after));
        }
    }
}
