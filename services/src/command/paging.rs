//! Lists come in pages: `page_size` and `page_token` ask for one, `next_page_token` names the next.

use crate::failure::Failure;

/// Entries of one page, where the service gives as many: the most that services give.
pub const PAGE_MAX: u32 = 1000;

/// The first entries of a list.
#[derive(Debug)]
pub struct Listed<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Whether the list has more than these.
    pub has_more: bool,
}

impl<T> Listed<T> {
    /// The entries; on stderr, that there are more of them.
    pub fn reported(self) -> Vec<T> {
        if self.has_more {
            super::output::notice(&cut(self.entries.len()));
        }
        self.entries
    }
}

/// The line for a list that was cut.
fn cut(shown: usize) -> String {
    format!("only the first {shown} are shown, there are more; -n sets how many")
}

/// The first `limit` entries of a list, in as many pages of at most `page_max` as it takes. `page` asks for one by its
/// size and token, and answers its entries and the next one's token.
///
/// # Errors
///
/// The error of `page`.
pub async fn read<T>(
    limit: usize,
    page_max: u32,
    mut page: impl AsyncFnMut(u32, String) -> Result<(Vec<T>, String), Failure>,
) -> Result<Listed<T>, Failure> {
    if limit == 0 {
        let (found, _) = page(1, String::new()).await?;
        return Ok(Listed { entries: Vec::new(), has_more: !found.is_empty() });
    }
    let mut entries = Vec::new();
    let mut page_token = String::new();
    let mut has_more = false;
    while entries.len() < limit {
        let left = u32::try_from(limit - entries.len()).unwrap_or(u32::MAX);
        let (found, next) = page(left.min(page_max), page_token).await?;
        entries.extend(found);
        has_more = !next.is_empty();
        if !has_more {
            break;
        }
        page_token = next;
    }
    Ok(Listed { entries, has_more })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of 25 numbers.
    async fn numbers(limit: usize) -> (Listed<u32>, usize) {
        let mut asked = 0;
        let read = read(limit, 10, async |size, token| {
            asked += 1;
            let from = token.parse().unwrap_or(0);
            let to = (from + size).min(25);
            Ok(((from..to).collect(), if to < 25 { to.to_string() } else { String::new() }))
        });
        (read.await.unwrap(), asked)
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_limit_or_its_end() {
        for (limit, pages, more) in [
            (0, 1, true),
            (7, 1, true),
            (10, 1, true),
            (11, 2, true),
            (25, 3, false),
            (26, 3, false),
            (usize::MAX, 3, false),
        ] {
            let expected: Vec<u32> = (0..u32::try_from(limit.min(25)).unwrap()).collect();
            let (listed, asked) = numbers(limit).await;
            assert_eq!((listed.entries, asked, listed.has_more), (expected, pages, more), "limit {limit}");
        }
    }
}
