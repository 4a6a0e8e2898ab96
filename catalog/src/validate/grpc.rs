//! Checks of gRPC destinations.

use weft_proto::v1::GrpcDestination;

use super::http::{check_auth, check_tls};
use crate::delivery_url::DeliveryUrl;

/// Checks a gRPC destination.
pub(super) fn check(grpc: &GrpcDestination) -> Result<(), String> {
    let named = |problem: String| format!("destination: {problem}");
    let url = DeliveryUrl::parse(&grpc.url).map_err(|problem| named(problem.to_string()))?;
    if url.uri().path_and_query().is_some_and(|path| path != "/") {
        return Err(named("url of type grpc has a path or a query; it is a host and a port".into()));
    }
    grpc.tls.as_ref().map_or(Ok(()), check_tls).map_err(named)?;
    grpc.auth.as_ref().map_or(Ok(()), check_auth).map_err(named)
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::{Auth, BearerAuth, ClientTls, auth};

    use super::*;

    #[test]
    fn a_service_is_a_host_and_a_port() {
        let at = |url: &str| check(&GrpcDestination { url: url.into(), ..Default::default() });
        for url in ["https://a.example", "https://a.example:443/", "http://[::1]:50051"] {
            assert_eq!(at(url), Ok(()), "{url}");
        }
        for url in ["", "a.example:443", "grpc://a", "https://a/path", "https://a/?q"] {
            assert!(at(url).unwrap_err().starts_with("destination: url"), "{url}");
        }
        let auth = Auth { kind: Some(auth::Kind::Bearer(BearerAuth { token: "two words".into() })) };
        let wrong = GrpcDestination { url: "https://a".into(), auth: Some(auth), ..Default::default() };
        assert!(check(&wrong).unwrap_err().contains("bearer"));
        let tls = ClientTls { ca: "junk".into(), ..Default::default() };
        let wrong = GrpcDestination { url: "https://a".into(), tls: Some(tls), ..Default::default() };
        assert!(check(&wrong).unwrap_err().contains("ca"));
    }
}
