//! Which deliveries are known, and the head of every workflow: a projection of one shard's EVENTS.
