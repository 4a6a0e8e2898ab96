//! Checks of a PostgreSQL destination: its form only. Connection strings, names and SQL are checked by the code that uses them.

use weft_proto::v1::PostgresDestination;

/// The most databases of a subscription.
const SHARDS_MAX: usize = 256;
/// The longest connection string.
const DSN_BYTES_MAX: usize = 4096;

pub(super) fn check_postgres(postgres: &PostgresDestination) -> Result<(), String> {
    if postgres.dsns.is_empty() {
        return Err("destination: shards is missing: say which databases, such as [\"env:PG_A\", \"env:PG_B\"]".into());
    }
    if postgres.dsns.len() > SHARDS_MAX {
        return Err(format!("destination: shards has more than {SHARDS_MAX} entries"));
    }
    for (index, dsn) in postgres.dsns.iter().enumerate() {
        if !(1..=DSN_BYTES_MAX).contains(&dsn.len()) {
            return Err(format!("destination: shards[{index}] is empty or longer than {DSN_BYTES_MAX} bytes"));
        }
        if postgres.dsns[..index].contains(dsn) {
            return Err(format!("destination: shards[{index}] is there twice"));
        }
    }
    Ok(())
}

/// The databases of a subscription may not change in number.
pub(crate) fn check_shards(new: &PostgresDestination, stored: &PostgresDestination) -> Result<(), String> {
    let (new, stored) = (new.dsns.len(), stored.dsns.len());
    if new == stored {
        return Ok(());
    }
    Err(format!(
        "destination: shards cannot change from {stored} to {new}: a workflow's database follows from their number, so its \
         events would be in two; create another subscription with start = \"beginning\", then delete this one"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(dsns: &[&str]) -> PostgresDestination {
        PostgresDestination { dsns: dsns.iter().map(ToString::to_string).collect(), ..Default::default() }
    }

    #[test]
    fn databases_are_named_once_each_and_stay_in_number() {
        assert_eq!(check_postgres(&shards(&["a", "b"])), Ok(()));
        for wrong in [shards(&[]), shards(&["a", ""]), shards(&["a", "a"]), shards(&[&"x".repeat(5000)])] {
            assert!(check_postgres(&wrong).is_err(), "{}", wrong.dsns.len());
        }
        assert_eq!(check_shards(&shards(&["c", "d"]), &shards(&["a", "b"])), Ok(()), "another password or host");
        assert!(check_shards(&shards(&["a"]), &shards(&["a", "b"])).unwrap_err().contains("from 2 to 1"));
    }
}
