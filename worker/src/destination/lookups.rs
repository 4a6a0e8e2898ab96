//! DNS lookups by the system's resolver, on a few dedicated threads.
//!
//! The system's resolver blocks its thread, for half a minute where a name server does not answer. In the runtime's pool, such
//! names would take the threads that files and schemas need. Here the number of threads is small, concurrent lookups of one
//! name are merged, and names that were slow take at most half of the threads.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Maximum number of threads, one a name: as many new names may hang at a time before others wait. A thread ends when nothing
/// waits.
const THREADS_MAX: usize = 64;
/// Maximum number of threads for names whose last lookup was slow.
const SLOW_THREADS_MAX: usize = THREADS_MAX / 2;
/// Duration of a slow lookup: longer than a name server that answers takes, one lost packet included.
const SLOW: Duration = Duration::from_secs(2);
/// Maximum number of names that are waiting or looked up: above the default number of attempts in flight.
const NAMES_MAX: usize = 1024;
/// Maximum number of names known to be slow. Above it all are forgotten, which costs at most one slow lookup each.
const SLOW_NAMES_MAX: usize = 1024;
/// Stack of a thread: a lookup needs little.
const STACK_BYTES: usize = 256 * 1024;

/// The addresses of a name, or the error.
pub(super) type Found = Result<Vec<SocketAddr>, String>;

/// DNS lookups. Clones share the threads.
#[derive(Debug, Clone)]
pub(super) struct Lookups {
    look_up: fn(&str) -> Found,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Callers that wait for each name.
    asking: BTreeMap<String, Vec<oneshot::Sender<Found>>>,
    waiting: VecDeque<String>,
    slow_waiting: VecDeque<String>,
    threads: usize,
    slow_threads: usize,
    slow: BTreeSet<String>,
}

/// A lookup.
struct Job {
    name: String,
    slow: bool,
}

impl State {
    fn next(&mut self) -> Option<Job> {
        if let Some(name) = self.waiting.pop_front() {
            return Some(Job { name, slow: false });
        }
        if self.slow_threads >= SLOW_THREADS_MAX {
            return None;
        }
        let name = self.slow_waiting.pop_front()?;
        self.slow_threads += 1;
        Some(Job { name, slow: true })
    }
}

impl Lookups {
    /// Lookups by the system's resolver.
    pub fn system() -> Self {
        Self::with(|name| (name, 0).to_socket_addrs().map(Iterator::collect).map_err(|error| error.to_string()))
    }

    pub fn with(look_up: fn(&str) -> Found) -> Self {
        Self { look_up, state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The addresses of a name. Cancel safe.
    pub async fn look_up(&self, name: &str) -> Found {
        let answer = self.ask(name)?;
        answer.await.unwrap_or_else(|_| Err("the lookup was aborted".into()))
    }

    fn ask(&self, name: &str) -> Result<oneshot::Receiver<Found>, String> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.lock();
        if let Some(asking) = state.asking.get_mut(name) {
            asking.retain(|other| !other.is_closed());
            asking.push(answer);
            return Ok(answered);
        }
        if state.asking.len() >= NAMES_MAX {
            return Err("too many names are being looked up".into());
        }
        state.asking.insert(name.to_owned(), vec![answer]);
        let slow = state.slow.contains(name);
        let queue = if slow { &mut state.slow_waiting } else { &mut state.waiting };
        queue.push_back(name.to_owned());
        let threads = state.threads;
        if threads < THREADS_MAX
            && let Some(job) = state.next()
        {
            state.threads += 1;
            drop(state);
            self.start(job);
        }
        Ok(answered)
    }

    /// Starts a thread that makes lookups until nothing waits.
    fn start(&self, job: Job) {
        let lookups = self.clone();
        let builder = thread::Builder::new().name("weft-dns".into()).stack_size(STACK_BYTES);
        let name = job.name.clone();
        let slow = job.slow;
        let spawned = builder.spawn(move || {
            let mut next = Some(job);
            while let Some(job) = next {
                let began = Instant::now();
                let found = (lookups.look_up)(&job.name);
                next = lookups.found(job, found, began.elapsed());
            }
        });
        if let Err(error) = spawned {
            let mut state = self.lock();
            state.threads -= 1;
            state.slow_threads -= usize::from(slow);
            answer(state.asking.remove(&name), &Err(format!("no thread to look it up: {error}")));
        }
    }

    /// A lookup has ended. Returns the next one of the same thread; `None`: the thread ends.
    fn found(&self, job: Job, found: Found, took: Duration) -> Option<Job> {
        let mut state = self.lock();
        let asking = state.asking.remove(&job.name);
        state.slow_threads -= usize::from(job.slow);
        if took < SLOW {
            state.slow.remove(&job.name);
        } else {
            if state.slow.len() >= SLOW_NAMES_MAX {
                state.slow.clear();
            }
            state.slow.insert(job.name);
        }
        let next = state.next();
        state.threads -= usize::from(next.is_none());
        drop(state);
        answer(asking, &found);
        next
    }
}

fn answer(asking: Option<Vec<oneshot::Sender<Found>>>, found: &Found) {
    for answer in asking.into_iter().flatten() {
        // An error: the caller has timed out.
        let _ = answer.send(found.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn one_address() -> Found {
        Ok(vec![SocketAddr::from(([1, 1, 1, 1], 0))])
    }

    /// Forty receivers whose name servers do not answer do not delay calls of another one.
    #[tokio::test]
    async fn names_that_hang_leave_threads_for_others_and_are_looked_up_once() {
        static HANGING: AtomicUsize = AtomicUsize::new(0);
        let lookups = Lookups::with(|name| {
            if name.starts_with("hangs") {
                HANGING.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_secs(3));
            }
            one_address()
        });
        let hanging: Vec<_> = (0..100).map(|number| lookups.ask(&format!("hangs-{}", number % 40)).unwrap()).collect();
        let other = tokio::time::timeout(Duration::from_secs(2), lookups.look_up("other")).await;
        assert_eq!(other, Ok(one_address()), "while the others hang");
        for answer in hanging {
            assert_eq!(tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap(), one_address());
        }
        assert_eq!(HANGING.load(Ordering::SeqCst), 40, "once for all callers");

        // Known to be slow by now: more of them than there are threads take half of these.
        lookups.lock().slow.extend((0..80).map(|number| format!("hangs-{number}")));
        let hanging: Vec<_> = (0..80).map(|number| lookups.ask(&format!("hangs-{number}")).unwrap()).collect();
        let other = tokio::time::timeout(Duration::from_secs(2), lookups.look_up("other")).await;
        assert_eq!(other, Ok(one_address()));
        assert!(lookups.lock().threads <= SLOW_THREADS_MAX + 1);
        drop(hanging);
    }

    #[tokio::test]
    async fn threads_end_when_nothing_waits() {
        let lookups = Lookups::with(|_| Err("no".into()));
        for number in 0..100 {
            let found = lookups.look_up(&format!("name-{number}")).await;
            assert_eq!(found, Err("no".into()));
        }
        let state = lookups.lock();
        assert_eq!((state.threads, state.slow_threads, state.asking.len()), (0, 0, 0));
    }
}
