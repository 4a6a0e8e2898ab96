//! `sslmode` and `sslrootcert` as in libpq.

use weft_testkit::Authority;

use super::*;

#[tokio::test]
async fn certificates_are_verified_as_the_connection_string_says() {
    let authority = Authority::new();
    let mut server = TestPostgres::start().await;
    let (cert, key) = (server.install(&authority.cert()), server.install(&authority.key()));
    server.set(&["ssl=on", &format!("ssl_cert_file={}", cert.display()), &format!("ssl_key_file={}", key.display())]);
    server.restart().await;
    let ours = authority.ca().display().to_string();
    let other = Authority::new();
    let theirs = other.ca().display().to_string();
    let named = server.dsn();
    // A name that is not in the certificate, for the same server.
    let misnamed = format!("hostaddr=127.0.0.1 host=db.test port={} user=weft dbname=weft", server.address().port());
    for (dsn, encrypted) in [
        (format!("{named}?sslmode=disable"), false),
        (format!("{named}?sslmode=prefer"), true),
        (format!("{named}?sslmode=require"), true),
        (format!("{named}?sslmode=verify-full&sslrootcert={ours}"), true),
        (format!("{misnamed} sslmode=verify-ca sslrootcert={ours}"), true),
        (format!("{misnamed} sslmode=require sslrootcert={ours}"), true),
    ] {
        let statement = "INSERT INTO seen SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        server.query("DROP TABLE IF EXISTS seen; CREATE TABLE seen (ssl boolean)").await;
        let destination = destination(&v1::PostgresDestination { dsns: vec![dsn.clone()], ..sql(&server, statement) });
        assert_eq!(destination.deliver(&numbered(1)).await, DeliveryResult::all(1), "{dsn}");
        assert_eq!(server.query("SELECT ssl::text FROM seen").await, [[encrypted.to_string()]], "{dsn}");
    }
    for dsn in [
        format!("{named}?sslmode=verify-full"),
        format!("{named}?sslmode=verify-full&sslrootcert={theirs}"),
        format!("{named}?sslmode=require&sslrootcert={theirs}"),
        format!("{misnamed} sslmode=verify-full sslrootcert={ours}"),
    ] {
        let destination = destination(&v1::PostgresDestination { dsns: vec![dsn.clone()], ..table(&server) });
        let failure = failure(destination.deliver(&numbered(1)).await, 0, FailureKind::Unreachable, "no TLS");
        assert_eq!(failure.class, AttemptClass::Tls, "{dsn}");
    }
    let missing = format!("{named}?sslmode=verify-full&sslrootcert=/missing.pem");
    let destination = destination(&v1::PostgresDestination { dsns: vec![missing], ..table(&server) });
    failure(destination.deliver(&numbered(1)).await, 0, FailureKind::Held, "/missing.pem");
}
