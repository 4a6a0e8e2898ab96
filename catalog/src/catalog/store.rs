//! Writes of entries: sealed for the sequence that the message gets, or not stored.

use std::time::{Duration, Instant};

use async_nats::{HeaderMap, jetstream::context::PublishErrorKind};
use jiff::Timestamp;
use parking_lot::Mutex;
use weft_nats::{direct, streams::StreamState};
use weft_proto::ids::StreamSeq;

use super::{Catalog, CatalogError, READ_BYTES, READ_MESSAGES, READ_PATIENCE};
use crate::{
    bucket::{created_ns, prefix, stream, subject},
    reading::{Base, Reading, Stale, StaleEntry},
    seal::Claims,
    stamp,
};

/// Time for a write whose sequence other writes take again and again: other admins change the catalog at the same time, and
/// gateways note the uses of keys in the same bucket. One of all that try succeeds each time.
const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause before it is tried again; random, so that writers do not meet again.
const STORE_PAUSE_MS_MAX: u64 = 5;
/// Rounds of resealing that other writes may interrupt. Each round keeps what it has sealed.
const SEAL_ROUNDS: u32 = 1000;

/// How far a resealing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resealed {
    /// Entries sealed so far.
    pub sealed: usize,
    /// Entries that are left.
    pub remaining: usize,
}

/// Up to which sequence of the bucket values of the form before count, as far as has been read: the bucket's time of creation,
/// and the sequence; `None`: without an end.
#[derive(Debug, Default)]
pub(super) struct LegacyEnd(Mutex<Option<(i64, u64)>>);

impl LegacyEnd {
    /// In the bucket that was created then; the greatest number: without an end.
    pub fn of(&self, created_ns: i64) -> u64 {
        let known = *self.0.lock();
        known.filter(|(bucket, _)| *bucket == created_ns).map_or(u64::MAX, |(_, through)| through)
    }

    /// It is no later than this.
    pub fn lower(&self, created_ns: i64, through: u64) {
        let mut known = self.0.lock();
        let before = known.filter(|(bucket, _)| *bucket == created_ns).map_or(u64::MAX, |(_, before)| before);
        *known = Some((created_ns, before.min(through)));
    }

    /// Takes what a reading has found.
    pub fn learn(&self, reading: &Reading) {
        let (created_ns, through) = reading.legacy_end();
        self.lower(created_ns, through);
    }
}

impl Catalog {
    /// Seals and stores a value for a key that has the revision `expected`; 0: for a missing key.
    pub(super) async fn store(
        &self,
        key: String,
        headers: HeaderMap,
        value: &[u8],
        expected: u64,
    ) -> Result<u64, CatalogError> {
        // Writers of this process would only take the sequences from each other.
        let _turn = self.writing.lock().await;
        let deadline = Instant::now() + STORE_PATIENCE;
        while Instant::now() < deadline {
            // First the end of the bucket, then the entry: so any message between the two makes the write fail.
            let state = self.state().await?;
            let base = self.base(&key, expected, created_ns(&state)).await?;
            let claims = claims(&state, base, self.legacy_end.of(created_ns(&state)));
            match self.store_at(claims, base, key.clone(), headers.clone(), value).await {
                // Whether the other write was to this entry is seen when it is read again.
                Err(CatalogError::Conflict { .. }) => {
                    let pause = rand::random::<u64>() % (STORE_PAUSE_MS_MAX + 1);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                stored => return stored,
            }
        }
        Err(CatalogError::Unavailable(format!("other writes came first for {} s; retry", STORE_PATIENCE.as_secs())))
    }

    /// Seals a value for a place, and stores it if that is where it comes to stand.
    async fn store_at(
        &self,
        claims: Claims,
        base: Base,
        key: String,
        mut headers: HeaderMap,
        value: &[u8],
    ) -> Result<u64, CatalogError> {
        let sealed = self.key.seal(&key, &headers, claims, value);
        headers.insert("Nats-Expected-Last-Sequence", claims.sequence.saturating_sub(1).to_string());
        headers.insert("Nats-Expected-Last-Subject-Sequence", base.last.to_string());
        self.publish(key, headers, sealed).await
    }

    /// Reseals every entry that is of the form before, with the stamp that it has. From then on no value of that form counts
    /// that is written later. Any process with the master key may do it, several at once. Returns how many it has sealed.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`].
    pub async fn reseal(&self) -> Result<usize, CatalogError> {
        self.reseal_stale(Stale::Form, |_| ()).await
    }

    /// Reseals every entry that is sealed with another key than the first, with the stamp that it has: afterwards the other
    /// keys are not needed. Any process with the keys may do it, several at once. Says how far it has come after each entry,
    /// and returns how many it has sealed.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`]. What has been sealed by then stays so.
    pub async fn reseal_with_first_key(&self, said: impl FnMut(Resealed)) -> Result<usize, CatalogError> {
        self.reseal_stale(Stale::FormOrKey, said).await
    }

    async fn reseal_stale(&self, which: Stale, mut said: impl FnMut(Resealed)) -> Result<usize, CatalogError> {
        let mut sealed = 0;
        for _ in 0..SEAL_ROUNDS {
            let state = self.state().await?;
            let reading = self.scan(None).await?.reading;
            if !reading.snapshot.complete {
                // Entries that cannot be read must not become entries that do not count.
                return Err(CatalogError::Unavailable(reading.snapshot.missing().unwrap_or_default()));
            }
            let created_ns = created_ns(&state);
            // Where no value contains it yet, it is here: a later message makes the first write fail.
            let through = self.legacy_end.of(created_ns).min(state.last.0);
            let stale = reading.stale(which);
            said(Resealed { sealed, remaining: stale.len() });
            if stale.is_empty() {
                self.legacy_end.lower(created_ns, through);
                return Ok(sealed);
            }
            let mut last = state;
            let mut remaining = stale.len();
            for entry in stale {
                match self.seal_entry(&last, &entry, through).await {
                    Ok(Some(stored)) => {
                        self.legacy_end.lower(created_ns, through);
                        sealed += 1;
                        remaining = remaining.saturating_sub(1);
                        said(Resealed { sealed, remaining });
                        last.last = StreamSeq(stored);
                    }
                    Ok(None) => {}
                    Err(CatalogError::Conflict { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Err(CatalogError::Unavailable("other writes came first while the catalog was resealed; retry".into()))
    }

    /// Reseals one entry; `None`: its message is not there any more.
    async fn seal_entry(
        &self,
        state: &StreamState,
        stale: &StaleEntry,
        through: u64,
    ) -> Result<Option<u64>, CatalogError> {
        let (stream, subject) = (stream(), subject(&stale.entry));
        let found = direct::range(&self.connection, &stream, StreamSeq(stale.revision), &subject, 1, READ_BYTES);
        let found = found.await.map_err(|error| CatalogError::Unavailable(error.to_string()))?;
        let Some(message) = found.first().filter(|message| message.seq.0 == stale.revision) else { return Ok(None) };
        let Ok(opened) = self.key.open(&stale.entry, &message.headers, &message.payload) else { return Ok(None) };
        let headers = stamp::kept(&message.headers);
        let claims = claims(state, stale.base, through);
        self.store_at(claims, stale.base, stale.entry.clone(), headers, &opened.value).await.map(Some)
    }

    async fn state(&self) -> Result<StreamState, CatalogError> {
        self.end(&stream(), Instant::now() + READ_PATIENCE).await
    }

    /// Where a key may be written, if it has the revision `expected`.
    async fn base(&self, key: &str, expected: u64, created_ns: i64) -> Result<Base, CatalogError> {
        let (prefix, stream, subject) = (prefix(), stream(), subject(key));
        let mut reading = Reading::new(&prefix, &self.key, created_ns, self.legacy_end.of(created_ns));
        let mut position = StreamSeq(1);
        loop {
            let messages = direct::range(&self.connection, &stream, position, &subject, READ_MESSAGES, READ_BYTES);
            let messages = messages.await.map_err(|error| CatalogError::Unavailable(error.to_string()))?;
            let Some(last) = messages.last() else { break };
            position = last.seq.next();
            for message in &messages {
                reading.apply(message);
            }
        }
        reading.base(key, expected).ok_or_else(|| CatalogError::Conflict { key: key.to_owned() })
    }

    pub(super) async fn publish(&self, key: String, headers: HeaderMap, value: Vec<u8>) -> Result<u64, CatalogError> {
        // While disconnected the client would queue it and send it much later.
        if !self.connection.is_connected() {
            return Err(CatalogError::Unavailable("not connected".into()));
        }
        let stored = async {
            self.connection.jetstream().publish_with_headers(subject(&key), headers, value.into()).await?.await
        };
        match stored.await {
            Ok(ack) => {
                self.reached().note(StreamSeq(ack.sequence));
                Ok(ack.sequence)
            }
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Err(CatalogError::Conflict { key }),
            // Another change of the key is under way on a cluster: the server has no sequence to report yet.
            Err(error) if error.to_string().contains("wrong last sequence") => Err(CatalogError::Conflict { key }),
            Err(error) => Err(CatalogError::Unavailable(error.to_string())),
        }
    }
}

/// Claims of a value for the next sequence of the bucket.
fn claims(state: &StreamState, base: Base, legacy_through: u64) -> Claims {
    Claims {
        bucket_created_ns: created_ns(state),
        sequence: state.last.next().0,
        previous: base.previous,
        legacy_through,
        sealed_at_ms: Timestamp::now().as_millisecond(),
    }
}
