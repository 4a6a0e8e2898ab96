//! What all projections share: the redb file, its one writing thread, the cursor and its check against the log.
