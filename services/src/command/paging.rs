//! Lists come in pages: `page_size` and `page_token` ask for one, `next_page_token` names the next.

use crate::exit::Failure;

/// Entries of one page, where the service gives as many: the most that services give.
pub const PAGE_MAX: u32 = 1000;

/// The first `limit` entries of a list, in as many pages of at most `page_max` as it takes. `page` asks for one by its
/// size and token, and answers its entries and the next one's token.
///
/// # Errors
///
/// What `page` fails with.
pub async fn read<T>(
    limit: usize,
    page_max: u32,
    mut page: impl AsyncFnMut(u32, String) -> Result<(Vec<T>, String), Failure>,
) -> Result<Vec<T>, Failure> {
    let mut entries = Vec::new();
    let mut page_token = String::new();
    while entries.len() < limit {
        let left = u32::try_from(limit - entries.len()).unwrap_or(u32::MAX);
        let (found, next) = page(left.min(page_max), page_token).await?;
        entries.extend(found);
        if next.is_empty() {
            break;
        }
        page_token = next;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of 25 numbers.
    async fn numbers(limit: usize) -> (Vec<u32>, usize) {
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
        for (limit, pages) in [(0, 0), (7, 1), (10, 1), (11, 2), (25, 3), (usize::MAX, 3)] {
            let expected: Vec<u32> = (0..u32::try_from(limit.min(25)).unwrap()).collect();
            assert_eq!(numbers(limit).await, (expected, pages), "limit {limit}");
        }
    }
}
