//! The catalog at rest: each entry is sealed as a whole with the mesh's master key.
//!
//! A removal is an entry's value as well, the empty one.
//!
//! Entries hold secrets, which the log's files, backups and any user with read access to the stream would otherwise
//! get. Sealing also says who wrote an entry: one that was not made with the master key is passed over, wherever it
//! came from. The name of the entry is part of what is sealed, so that one cannot be put in another's place.
//!
//! A sealed value also holds for one place only: the sequence of its message in this bucket, behind the entry's last
//! sound message, with the stamp in its headers. So an earlier value that is published again, under any headers, opens
//! and does not count ([`Claims`]).
//!
//! A mesh may have several master keys: the first one seals, all of them open. So keys can be exchanged while the mesh runs.
//!
//! Form of a sealed value: `wft2`, the key's id (4 bytes), a random nonce (12 bytes), the claims (40 bytes),
//! ChaCha20-Poly1305 ciphertext and tag. Nonces may be random: a mesh would have to write some hundred million entries before
//! two became likely to be alike. The earlier format, `wft1`, has no claims and authenticates no stamp; it is read where it
//! was written before the catalog was resealed ([`Claims::legacy_through`]).

use std::{fmt, sync::Arc};

use async_nats::HeaderMap;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    hkdf,
};
use weft_nats::tags::Tags;

use super::stamp;

/// First bytes of every sealed value: the form's version.
const MAGIC: &[u8; 4] = b"wft2";
/// The form before.
const MAGIC_LEGACY: &[u8; 4] = b"wft1";
/// Salt of the derived keys: separates them from any other use of the same bytes.
const DERIVATION: &[u8] = b"weft derived keys 1";
/// Bytes of a key's id.
const ID_BYTES: usize = 4;
/// Bytes of a master key.
const KEY_BYTES: usize = 32;
/// Bytes of [`Claims`]: five numbers.
const CLAIMS_BYTES: usize = 40;

/// Claims of a sealed value. Authenticated, and readable without the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claims {
    /// When the bucket was created that it was sealed for, in unix nanoseconds.
    pub bucket_created_ns: i64,
    /// The sequence of its message.
    pub sequence: u64,
    /// The sequence of the entry's last sound message before it, 0: there was none.
    pub previous: u64,
    /// Entries of the form before count up to this sequence of the bucket. The greatest number: all do, since the catalog
    /// has not been resealed.
    pub legacy_through: u64,
    /// When it was sealed, by the clock of the process that did, in unix milliseconds.
    pub sealed_at_ms: i64,
}

impl Claims {
    fn to_bytes(self) -> [u8; CLAIMS_BYTES] {
        let numbers = [
            self.bucket_created_ns.to_be_bytes(),
            self.sequence.to_be_bytes(),
            self.previous.to_be_bytes(),
            self.legacy_through.to_be_bytes(),
            self.sealed_at_ms.to_be_bytes(),
        ];
        let mut bytes = [0; CLAIMS_BYTES];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number);
        }
        bytes
    }

    fn of_bytes(bytes: &[u8; CLAIMS_BYTES]) -> Self {
        let number = |index: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[index * 8..][..8]);
            u64::from_be_bytes(number)
        };
        Self {
            bucket_created_ns: number(0).cast_signed(),
            sequence: number(1),
            previous: number(2),
            legacy_through: number(3),
            sealed_at_ms: number(4).cast_signed(),
        }
    }
}

/// A value that was sealed with the key for the entry, wherever its message now stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opened {
    /// The value.
    pub value: Vec<u8>,
    /// Its claims; `None`: the form before.
    pub claims: Option<Claims>,
    /// It was sealed with another key than the one that seals now.
    pub by_older_key: bool,
}

/// The keys that the catalog is sealed with, and that keys for tags are derived from. Cheap to clone; never printed, but for
/// the id.
#[derive(Clone)]
pub struct MasterKey {
    /// Seals, opens and tags.
    first: Arc<SingleKey>,
    /// Open, and check tags.
    others: Arc<[Arc<SingleKey>]>,
}

/// One of the keys.
struct SingleKey {
    key: LessSafeKey,
    /// Pseudorandom key that other keys are derived from.
    root: hkdf::Prk,
    id: [u8; ID_BYTES],
}

/// Why a value cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
    /// It is sealed with another key.
    #[error("it is sealed with another master key ({id})")]
    OtherKey {
        /// That key's id, in hex.
        id: String,
    },
    /// It was not sealed for this entry, or was changed since.
    #[error("it is not sealed as this entry: it was written by someone without the master key, or is damaged")]
    Forged,
    /// It was sealed for another place in this bucket, or its message follows another one than it was sealed behind.
    #[error("it is an earlier value that was published again: it was sealed for revision {0}")]
    Replayed(u64),
    /// It is of the form that was in use before the catalog was resealed, and was written afterwards.
    #[error("it is in the form of an earlier version, and was written after the catalog was resealed at revision {0}")]
    Outdated(u64),
    /// It was sealed for another bucket.
    #[error("it was sealed for another bucket, which was created at another time")]
    OtherBucket,
}

impl MasterKey {
    /// The key of a text: base64 of 32 bytes.
    ///
    /// # Errors
    ///
    /// The problem, and how to make a key. The text is not part of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "the master key is not base64 of 32 bytes; make one with: openssl rand -base64 32".to_owned();
        let bytes = BASE64_STANDARD.decode(text.trim()).map_err(|_| wrong())?;
        let bytes: [u8; KEY_BYTES] = bytes.try_into().map_err(|_| wrong())?;
        Self::new(&bytes)
    }

    /// A new key, as the text that [`parse`](Self::parse) reads.
    pub fn generate() -> String {
        BASE64_STANDARD.encode(rand::random::<[u8; KEY_BYTES]>())
    }

    fn new(bytes: &[u8; KEY_BYTES]) -> Result<Self, String> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| "the master key is no key".to_owned())?;
        let hash = digest(&SHA256, bytes);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&hash.as_ref()[..ID_BYTES]);
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, DERIVATION).extract(bytes);
        let first = Arc::new(SingleKey { key: LessSafeKey::new(key), root, id });
        Ok(Self { first, others: Arc::default() })
    }

    /// This key, and `others` that only open what was sealed with them.
    ///
    /// # Errors
    ///
    /// The problem: two of them are the same.
    pub fn with_others(self, others: impl IntoIterator<Item = Self>) -> Result<Self, String> {
        let mut known = vec![self.first];
        for other in others {
            for key in std::iter::once(other.first).chain(other.others.iter().map(Arc::clone)) {
                if known.iter().any(|known| known.id == key.id) {
                    return Err(format!("the master key {} is named twice", hex(&key.id)));
                }
                known.push(key);
            }
        }
        let mut known = known.into_iter();
        match known.next() {
            Some(first) => Ok(Self { first, others: known.collect() }),
            None => Err("there is no master key".into()),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<SingleKey>> {
        std::iter::once(&self.first).chain(self.others.iter())
    }

    /// Tags for what processes of this mesh say to each other for `purpose`, which is part of the protocol: made with the
    /// first key, and good with any.
    pub fn tags(&self, purpose: &str) -> Tags {
        Tags::derive(&self.first.root, self.others.iter().map(|other| &other.root), purpose)
    }

    /// Identifier that distinguishes the key that seals from others, for people: 8 hex digits.
    pub fn id(&self) -> String {
        hex(&self.first.id)
    }

    /// Identifiers of the keys that only open.
    pub fn other_ids(&self) -> Vec<String> {
        self.others.iter().map(|other| hex(&other.id)).collect()
    }

    /// Seals the value of an entry for one place, with the stamp in the message's headers.
    pub(super) fn seal(&self, entry: &str, headers: &HeaderMap, claims: Claims, value: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let claims = claims.to_bytes();
        let mut sealed = Vec::with_capacity(MAGIC.len() + ID_BYTES + NONCE_LEN + CLAIMS_BYTES + value.len() + 16);
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&self.first.id);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&claims);
        self.encrypt(nonce, &bound(entry, headers, &claims), value, sealed)
    }

    /// Seals in the form before, as earlier versions did: for tests of what they have left.
    #[cfg(test)]
    pub fn seal_legacy(&self, entry: &str, value: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let sealed = [&MAGIC_LEGACY[..], &self.first.id, &nonce].concat();
        self.encrypt(nonce, entry.as_bytes(), value, sealed)
    }

    /// Appends ciphertext and tag.
    fn encrypt(&self, nonce: [u8; NONCE_LEN], bound: &[u8], value: &[u8], mut sealed: Vec<u8>) -> Vec<u8> {
        let mut text = value.to_vec();
        // Fails only beyond 256 GiB; a value without its tag is never opened.
        let nonce = Nonce::assume_unique_for_key(nonce);
        if let Ok(tag) = self.first.key.seal_in_place_separate_tag(nonce, Aad::from(bound), &mut text) {
            sealed.extend_from_slice(&text);
            sealed.extend_from_slice(tag.as_ref());
        }
        sealed
    }

    /// Opens the value of an entry. Whether it stands where it was sealed for is for the caller to compare.
    pub(super) fn open(&self, entry: &str, headers: &HeaderMap, sealed: &[u8]) -> Result<Opened, OpenError> {
        let legacy = sealed.starts_with(MAGIC_LEGACY);
        let magic = if legacy { MAGIC_LEGACY } else { MAGIC };
        let rest = sealed.strip_prefix(magic).ok_or(OpenError::Forged)?;
        let (id, rest) = rest.split_at_checked(ID_BYTES).ok_or(OpenError::Forged)?;
        let Some(key) = self.all().find(|key| key.id == id) else {
            return Err(OpenError::OtherKey { id: hex(id) });
        };
        let by_older_key = key.id != self.first.id;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(OpenError::Forged)?;
        if legacy {
            let value = key.decrypt(*nonce, entry.as_bytes(), rest)?;
            return Ok(Opened { value, claims: None, by_older_key });
        }
        let (claims, text) = rest.split_first_chunk::<CLAIMS_BYTES>().ok_or(OpenError::Forged)?;
        let value = key.decrypt(*nonce, &bound(entry, headers, claims), text)?;
        Ok(Opened { value, claims: Some(Claims::of_bytes(claims)), by_older_key })
    }
}

impl SingleKey {
    fn decrypt(&self, nonce: [u8; NONCE_LEN], bound: &[u8], text: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut text = text.to_vec();
        let opened = self.key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(bound), &mut text);
        let length = opened.map_err(|_| OpenError::Forged)?.len();
        text.truncate(length);
        Ok(text)
    }
}

/// Associated data of a value: its entry, its claims, and the stamp in its message's headers. Each part has its
/// length before it, so that no two differ only in where they are divided.
fn bound(entry: &str, headers: &HeaderMap, claims: &[u8; CLAIMS_BYTES]) -> Vec<u8> {
    let mut bound = claims.to_vec();
    let stamp = stamp::SEALED.map(|name| headers.get(name).map_or("", |value| value.as_str()));
    for part in std::iter::once(entry).chain(stamp) {
        bound.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bound.extend_from_slice(part.as_bytes());
    }
    bound
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIMS: Claims = Claims {
        bucket_created_ns: -7,
        sequence: 12,
        previous: 10,
        legacy_through: u64::MAX,
        sealed_at_ms: 1_700_000_000_000,
    };

    fn key() -> MasterKey {
        MasterKey::parse(&MasterKey::generate()).unwrap()
    }

    fn stamped(operator: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("weft-operator", operator);
        headers
    }

    #[test]
    fn only_the_key_opens_and_only_the_entry() {
        let (ours, headers) = (key(), stamped("ab12cd34"));
        let sealed = ours.seal("source.shop", &headers, CLAIMS, b"whsec_");
        let opened = Opened { value: b"whsec_".to_vec(), claims: Some(CLAIMS), by_older_key: false };
        assert_eq!(ours.open("source.shop", &headers, &sealed), Ok(opened));
        assert_eq!(ours.open("source.other", &headers, &sealed), Err(OpenError::Forged), "put in another's place");
        let theirs = key();
        assert_eq!(theirs.open("source.shop", &headers, &sealed), Err(OpenError::OtherKey { id: ours.id() }));
        assert_ne!(sealed, ours.seal("source.shop", &headers, CLAIMS, b"whsec_"), "each time another nonce");
    }

    /// The stamp cannot be changed, taken away or divided otherwise.
    #[test]
    fn the_stamp_is_sealed_with_the_value() {
        let key = key();
        let sealed = key.seal("a", &stamped("ab12cd34"), CLAIMS, b"value");
        let mut moved = HeaderMap::new();
        moved.insert("weft-reason", "ab12cd34");
        let mut added = stamped("ab12cd34");
        added.insert("weft-uid", "x");
        for headers in [HeaderMap::new(), stamped("ab12cd35"), moved, added] {
            assert_eq!(key.open("a", &headers, &sealed), Err(OpenError::Forged), "{headers:?}");
        }
        let mut other = stamped("ab12cd34");
        other.insert("Nats-Expected-Last-Subject-Sequence", "7");
        assert!(key.open("a", &other, &sealed).is_ok(), "headers for the server are no part of the stamp");
    }

    /// The first of several keys seals; all of them open, and say whether the value is to be sealed again.
    #[test]
    fn several_keys_open_and_the_first_seals() {
        let (new, old, headers) = (key(), key(), HeaderMap::new());
        let both = new.clone().with_others([old.clone()]).unwrap();
        assert_eq!((both.id(), both.other_ids()), (new.id(), vec![old.id()]));
        let of_old = both.open("a", &headers, &old.seal("a", &headers, CLAIMS, b"value")).unwrap();
        assert_eq!((of_old.value.as_slice(), of_old.by_older_key), (&b"value"[..], true));
        assert!(both.open("a", &headers, &old.seal_legacy("a", b"value")).unwrap().by_older_key);
        let sealed = both.seal("a", &headers, CLAIMS, b"value");
        assert!(!both.open("a", &headers, &sealed).unwrap().by_older_key);
        assert!(new.open("a", &headers, &sealed).is_ok());
        assert_eq!(old.open("a", &headers, &sealed), Err(OpenError::OtherKey { id: new.id() }));
        // A tag of a process that still has the old key first is good for one that has the new one first, and the reverse.
        let reversed = old.clone().with_others([new.clone()]).unwrap();
        let tag = reversed.tags("p").tag("s", b"x");
        assert!(both.tags("p").holds("s", b"x", &tag) && !new.tags("p").holds("s", b"x", &tag));
        assert!(new.clone().with_others([old, new]).is_err(), "the same key twice");
    }

    #[test]
    fn the_form_before_is_opened_and_told_apart() {
        let key = key();
        let sealed = key.seal_legacy("a", b"value");
        let opened = key.open("a", &stamped("anyone"), &sealed).unwrap();
        assert_eq!((opened.value.as_slice(), opened.claims), (&b"value"[..], None));
        assert_eq!(key.open("b", &HeaderMap::new(), &sealed), Err(OpenError::Forged));
        // One form is not the other by another magic.
        let mut renamed = sealed;
        renamed[..4].copy_from_slice(MAGIC);
        assert_eq!(key.open("a", &HeaderMap::new(), &renamed), Err(OpenError::Forged));
    }

    /// A changed, shortened or invented value is not opened.
    #[test]
    fn what_is_not_sealed_is_not_opened() {
        let (key, headers) = (key(), HeaderMap::new());
        let sealed = key.seal("a", &headers, CLAIMS, b"value");
        for place in MAGIC.len() + ID_BYTES..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(key.open("a", &headers, &changed), Err(OpenError::Forged), "byte {place}");
        }
        for length in 0..sealed.len() {
            assert!(key.open("a", &headers, &sealed[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(key.open("a", &headers, b"value"), Err(OpenError::Forged));
    }

    #[test]
    fn a_key_is_read_as_it_is_made_and_never_shown() {
        let text = MasterKey::generate();
        let key = MasterKey::parse(&format!("{text}\n")).unwrap();
        assert_eq!(key.id(), MasterKey::parse(&text).unwrap().id());
        assert!(!format!("{key:?}").contains(&text[..8]));
        for wrong in ["", "short", "AAAA", &text[..40]] {
            let problem = MasterKey::parse(wrong).unwrap_err();
            assert!(problem.contains("openssl rand -base64 32"), "{problem}");
        }
    }
}
