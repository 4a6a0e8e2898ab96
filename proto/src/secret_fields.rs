/// Names of fields that hold a secret, or what a secret could be guessed from, where they are texts or bytes. Read by the
/// build, which leaves `Debug` of their messages to be written by hand, and by the test of what is written there.
const SECRET_FIELDS: [&str; 9] =
    ["secret", "secrets", "digest", "password", "token", "key", "client_secret", "creds", "dsns"];
