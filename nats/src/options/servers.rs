//! Addresses of servers as they may be shown: a URL can hold a user and a password.

/// URLs, separated by commas, without the users and passwords in them.
pub fn shown(urls: &str) -> String {
    urls.split(',').map(|url| without_user(url.trim())).collect::<Vec<_>>().join(",")
}

fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    // A password that is not percent-encoded as it should be may hold anything, so the last one counts.
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_passwords_are_left_out() {
        for (urls, expected) in [
            ("nats://a:4222", "nats://a:4222"),
            ("nats://u:p@a:4222, tls://u:p@b", "nats://a:4222,tls://b"),
            ("u:p@a", "a"),
            ("nats://u:p@/x@a:1/", "nats://a:1/"),
            ("", ""),
        ] {
            assert_eq!(shown(urls), expected);
        }
    }
}
