//! Classification of HTTP statuses by a destination's `success` and `permanent`: accepted, rejected, or to be retried. Pure.

use weft_proto::v1::HttpDestination;

/// Maximum number of entries of each list.
const ENTRIES_MAX: usize = 64;
/// Statuses that reject an event where a destination names none: the request is wrong, and would be wrong again.
const PERMANENT_DEFAULT: [&str; 4] = ["400", "413", "415", "422"];
/// Statuses that accept an event where a destination names none.
const SUCCESS_DEFAULT: [&str; 1] = ["2xx"];
/// The endpoint is gone, which pauses its subscription.
const GONE: u16 = 410;

/// One entry: `404`, or a class such as `2xx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Exact(u16),
    /// By the first digit.
    Class(u16),
}

/// Meaning of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The event was accepted.
    Success,
    /// The event is rejected: a retry cannot succeed.
    Permanent,
    /// The attempt failed; it is retried.
    Transient,
    /// 410: the endpoint accepts no more events.
    Gone,
}

/// The meaning of each status for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses {
    success: Vec<Pattern>,
    permanent: Vec<Pattern>,
}

impl Statuses {
    /// By a destination's lists; an empty one stands for its default.
    ///
    /// # Errors
    ///
    /// The entry that is wrong, in one line.
    pub fn of(http: &HttpDestination) -> Result<Self, String> {
        let statuses = Self {
            success: patterns("success", &http.success, &SUCCESS_DEFAULT)?,
            permanent: patterns("permanent", &http.permanent, &PERMANENT_DEFAULT)?,
        };
        if let Some(both) = statuses.success.iter().find(|pattern| statuses.permanent.contains(pattern)) {
            return Err(format!("success and permanent both hold {both}"));
        }
        Ok(statuses)
    }

    /// Meaning of a status. An exact entry counts before a class.
    pub fn meaning(&self, status: u16) -> Meaning {
        if status == GONE {
            return Meaning::Gone;
        }
        for pattern in [Pattern::Exact(status), Pattern::Class(status / 100)] {
            if self.success.contains(&pattern) {
                return Meaning::Success;
            }
            if self.permanent.contains(&pattern) {
                return Meaning::Permanent;
            }
        }
        Meaning::Transient
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(status) => write!(f, "{status}"),
            Self::Class(digit) => write!(f, "{digit}xx"),
        }
    }
}

fn patterns(list: &str, given: &[String], default: &[&str]) -> Result<Vec<Pattern>, String> {
    if given.len() > ENTRIES_MAX {
        return Err(format!("{list} has {} entries; {ENTRIES_MAX} are the most, use classes such as 4xx", given.len()));
    }
    let texts: Vec<&str> = if given.is_empty() { default.to_vec() } else { given.iter().map(String::as_str).collect() };
    texts.into_iter().map(|text| pattern(text).map_err(|problem| format!("{list}: {text:?} {problem}"))).collect()
}

fn pattern(text: &str) -> Result<Pattern, &'static str> {
    const FORM: &str = "is neither a status such as 404 nor a class such as 4xx";
    if let Some(digit) = text.strip_suffix("xx") {
        let digit = digit.parse().ok().filter(|digit| (2..=5).contains(digit));
        return digit.map(Pattern::Class).ok_or(FORM);
    }
    match text.parse() {
        Ok(GONE) => Err("always pauses the subscription; leave it out"),
        Ok(status @ 200..=599) if text.len() == 3 => Ok(Pattern::Exact(status)),
        _ => Err(FORM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(success: &[&str], permanent: &[&str]) -> Result<Statuses, String> {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Statuses::of(&HttpDestination { success: list(success), permanent: list(permanent), ..Default::default() })
    }

    /// Guards: without lists, 2xx accepts, 400, 413, 415 and 422 reject, 410 pauses, and everything else is retried.
    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let statuses = statuses(&[], &[]).unwrap();
        for status in 100..600 {
            let meaning = match status {
                200..=299 => Meaning::Success,
                400 | 413 | 415 | 422 => Meaning::Permanent,
                410 => Meaning::Gone,
                _ => Meaning::Transient,
            };
            assert_eq!(statuses.meaning(status), meaning, "{status}");
        }
    }

    #[test]
    fn an_exact_status_counts_before_its_class() {
        let statuses = statuses(&["2xx", "404", "409"], &["4xx", "202"]).unwrap();
        for (status, meaning) in [
            (200, Meaning::Success),
            (202, Meaning::Permanent),
            (404, Meaning::Success),
            (409, Meaning::Success),
            (400, Meaning::Permanent),
            (429, Meaning::Permanent),
            (410, Meaning::Gone),
            (302, Meaning::Transient),
            (500, Meaning::Transient),
        ] {
            assert_eq!(statuses.meaning(status), meaning, "{status}");
        }
    }

    #[test]
    fn wrong_entries_are_named() {
        for wrong in ["", "xx", "1xx", "6xx", "20x", "2XX", "99", "600", "0200", "+404", "2xxx", "ok"] {
            assert!(statuses(&[wrong], &[]).unwrap_err().starts_with("success: "), "{wrong:?}");
            assert!(statuses(&[], &[wrong]).unwrap_err().starts_with("permanent: "), "{wrong:?}");
        }
        assert!(statuses(&[], &["410"]).unwrap_err().contains("pauses"));
        assert!(statuses(&["404"], &["404"]).unwrap_err().contains("both"));
        assert!(statuses(&["200"; 65], &[]).unwrap_err().contains("64"));
    }
}
