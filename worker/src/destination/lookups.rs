//! Look-ups of names by the system, on a few threads of their own.
//!
//! The system's resolver blocks its thread, for half a minute where a name server does not answer. In the runtime's pool
//! receivers whose names hang would take the threads that files and schemas need. Here there are few threads, a name is
//! looked up once at a time for all who ask, and names that were slow take at most half of the threads.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// Threads at the most. They end as soon as nothing waits.
const THREADS_MAX: usize = 16;
/// Of these, the ones that names may take whose last look-up was slow.
const SLOW_THREADS_MAX: usize = THREADS_MAX / 2;
/// Longer than a name server that answers takes, even with one repetition lost.
const SLOW: Duration = Duration::from_secs(2);
/// Names that wait or are looked up: more than receivers that one process calls at a time by default.
const NAMES_MAX: usize = 1024;
/// Names that are remembered to be slow. Above it all are forgotten, which costs at most one slow look-up each.
const SLOW_NAMES_MAX: usize = 1024;
/// A look-up needs little; the default of two mebibytes is for deep recursions.
const STACK_BYTES: usize = 256 * 1024;

/// The addresses of a name, or why there is none.
pub(super) type Found = Result<Vec<SocketAddr>, String>;

/// Look-ups of names.
#[derive(Debug, Clone)]
pub(super) struct Lookups {
    look_up: fn(&str) -> Found,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Who waits for a name that is looked up or waits to be.
    asking: BTreeMap<String, Vec<oneshot::Sender<Found>>>,
    waiting: VecDeque<String>,
    slow_waiting: VecDeque<String>,
    threads: usize,
    slow_threads: usize,
    slow: BTreeSet<String>,
}

/// One look-up that a thread makes.
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
    /// By the system's resolver.
    pub fn system() -> Self {
        Self::with(|name| (name, 0).to_socket_addrs().map(Iterator::collect).map_err(|error| error.to_string()))
    }

    pub fn with(look_up: fn(&str) -> Found) -> Self {
        Self { look_up, state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of a name. May be dropped at any time.
    pub async fn look_up(&self, name: &str) -> Found {
        let answer = self.ask(name)?;
        answer.await.unwrap_or_else(|_| Err("the look-up was given up".into()))
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

    /// Makes look-ups on a thread of their own, until nothing waits.
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

    /// A look-up has ended. The next one of the same thread; `None`: the thread ends.
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
        // Nobody waits any more for an answer that was too late.
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

    /// Ten receivers whose name servers do not answer do not keep another from being called.
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
        let hanging: Vec<_> = (0..100).map(|number| lookups.ask(&format!("hangs-{}", number % 10)).unwrap()).collect();
        let other = tokio::time::timeout(Duration::from_secs(2), lookups.look_up("other")).await;
        assert_eq!(other, Ok(one_address()), "while the others hang");
        for answer in hanging {
            assert_eq!(tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap(), one_address());
        }
        assert_eq!(HANGING.load(Ordering::SeqCst), 10, "once for all who ask");

        // Known to be slow by now: thirty of them take half of the threads.
        lookups.lock().slow.extend((0..30).map(|number| format!("hangs-{number}")));
        let hanging: Vec<_> = (0..30).map(|number| lookups.ask(&format!("hangs-{number}")).unwrap()).collect();
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
