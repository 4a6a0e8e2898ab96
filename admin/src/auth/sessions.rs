//! Sessions of the console: who has signed in, and with which key.
//!
//! A session holds its key, and every call of it is authorised as if it had brought the key. So a key that is revoked, narrowed
//! or expired counts at once for its sessions. They are in memory: a restart of the admin ends them.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, header};
use parking_lot::{Mutex, MutexGuard};
use rand::random;
use weft_nats::options::Secret;

/// Duration of a session: a working day.
pub const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// Maximum number of sessions: operators and their browsers. Beyond it the oldest ends.
const SESSIONS_MAX: usize = 1024;
/// Maximum number of sessions of one key, so that one key cannot end those of others.
const SESSIONS_PER_KEY_MAX: usize = 32;
const TOKEN_BYTES: usize = 32;

/// The secret of a session, which its cookie holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; TOKEN_BYTES]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(weft_proto::SECRET_MASK)
    }
}

/// Prefix of the cookie's name over TLS: browsers take such a cookie only from the host itself.
const OVER_TLS: &str = "__Host-";

/// The sessions of an admin, with the name of their cookie.
#[derive(Debug, Clone)]
pub struct Sessions {
    cookie: Arc<str>,
    /// The port has TLS: no other cookie counts.
    secure: bool,
    open: Arc<Mutex<HashMap<Token, Session>>>,
}

#[derive(Debug)]
struct Session {
    key: Secret,
    opened: Instant,
}

impl Sessions {
    /// None yet. Cookies do not distinguish ports, so that of a port has the port in its name. `secure`: the port has TLS.
    pub fn new(port: u16, secure: bool) -> Self {
        Self { cookie: format!("weft_session_{port}").into(), secure, open: Arc::default() }
    }

    /// Opens a session with a key that was authorised.
    pub fn open(&self, key: Secret, now: Instant) -> Token {
        let token = Token(random());
        let mut open = self.lock();
        open.retain(|_, session| !session.is_over(now));
        let same = open.iter().filter(|(_, session)| session.key.expose() == key.expose()).count();
        let oldest = if same >= SESSIONS_PER_KEY_MAX {
            oldest(open.iter().filter(|(_, session)| session.key.expose() == key.expose()))
        } else if open.len() >= SESSIONS_MAX {
            oldest(open.iter())
        } else {
            None
        };
        if let Some(oldest) = oldest {
            open.remove(&oldest);
        }
        open.insert(token, Session { key, opened: now });
        token
    }

    /// The key of a session that is open.
    pub fn key(&self, token: Token, now: Instant) -> Option<Secret> {
        self.lock().get(&token).filter(|session| !session.is_over(now)).map(|session| session.key.clone())
    }

    /// Ends a session.
    pub fn close(&self, token: Token) {
        self.lock().remove(&token);
    }

    /// The token in the cookies of a request.
    pub fn token(&self, headers: &HeaderMap) -> Option<Token> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (mut over_tls, mut plain) = (None, None);
        for (name, value) in pairs {
            if name.strip_prefix(OVER_TLS) == Some(&*self.cookie) {
                over_tls = over_tls.or(Some(value));
            } else if name == &*self.cookie && !self.secure {
                plain = plain.or(Some(value));
            }
        }
        let value = over_tls.or(plain)?;
        let mut bytes = [0; TOKEN_BYTES];
        hex::decode_to_slice(value, &mut bytes).ok()?;
        Some(Token(bytes))
    }

    /// The value of `Set-Cookie` that gives a browser its token; `None` takes it away. `over_tls`: the browser's connection has TLS,
    /// which a proxy in front may end.
    pub fn set_cookie(&self, token: Option<Token>, over_tls: bool) -> String {
        let (value, age) = token.map_or((String::new(), 0), |token| (hex::encode(token.0), LIFETIME.as_secs()));
        let (prefix, secure) = if self.secure || over_tls { (OVER_TLS, "; Secure") } else { ("", "") };
        format!("{prefix}{}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}", self.cookie)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Token, Session>> {
        self.open.lock()
    }
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.opened) >= LIFETIME
    }
}

fn oldest<'a>(sessions: impl Iterator<Item = (&'a Token, &'a Session)>) -> Option<Token> {
    sessions.min_by_key(|(_, session)| session.opened).map(|(token, _)| *token)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn key(name: usize) -> Secret {
        Secret::new(format!("weft_{name:08}_secret"))
    }

    #[test]
    fn a_cookie_names_its_session_until_that_ends() {
        let (sessions, now) = (Sessions::new(9080, false), Instant::now());
        let token = sessions.open(key(1), now);
        let cookie = sessions.set_cookie(Some(token), false);
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && !cookie.contains("Secure"));
        let pair = format!("other=1; {}", cookie.split(';').next().unwrap());
        let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&pair).unwrap())]);
        assert_eq!(sessions.token(&headers), Some(token));
        assert_eq!(Sessions::new(9081, false).token(&headers), None, "a session of another port");
        assert_eq!(sessions.key(token, now).unwrap().expose(), key(1).expose());
        assert!(sessions.key(token, now + LIFETIME).is_none());
        sessions.close(token);
        assert!(sessions.key(token, now).is_none());
        assert!(sessions.set_cookie(None, false).contains("Max-Age=0"));
    }

    #[test]
    fn over_tls_the_cookie_is_of_this_host_and_never_sent_in_clear() {
        for (sessions, over_tls) in [(Sessions::new(9080, true), false), (Sessions::new(9080, false), true)] {
            let token = sessions.open(key(1), Instant::now());
            let cookie = sessions.set_cookie(Some(token), over_tls);
            assert!(cookie.starts_with("__Host-weft_session_9080=") && cookie.ends_with("; Secure"), "{cookie}");
            let pair = cookie.split(';').next().unwrap();
            let of = |pairs: &str| {
                let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(pairs).unwrap())]);
                sessions.token(&headers)
            };
            let other = format!("weft_session_9080={}", "0".repeat(64));
            assert_eq!(
                of(&format!("{other}; {pair}")),
                Some(token),
                "one that another host may have set does not count"
            );
            assert_eq!(of(&other).is_some(), over_tls, "alone it counts where the port has no TLS");
        }
    }

    #[test]
    fn sessions_are_bounded_in_total_and_for_each_key() {
        let (sessions, now) = (Sessions::new(1, false), Instant::now());
        let after = |seconds: usize| now + Duration::from_secs(seconds as u64);
        let other = sessions.open(key(0), now);
        let first = sessions.open(key(1), after(1));
        for n in 0..SESSIONS_PER_KEY_MAX {
            sessions.open(key(1), after(2 + n));
        }
        assert!(sessions.key(first, after(100)).is_none(), "the oldest of the key has ended");
        assert!(sessions.key(other, after(100)).is_some(), "that of another key has not");
        for n in 0..SESSIONS_MAX {
            sessions.open(key(2 + n), after(100));
        }
        assert!(sessions.lock().len() <= SESSIONS_MAX);
        assert!(sessions.key(other, after(100)).is_none());
    }
}
