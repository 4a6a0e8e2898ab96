//! What an operator asks for: events, their deliveries and attempts, dead letters. A projection of EVENTS, OUTCOMES, DLQ and COMMANDS.
