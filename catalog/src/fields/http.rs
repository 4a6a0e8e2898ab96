//! Fields of an HTTP destination, and those that others have in common with it.

use sha2::{Digest as _, Sha256};
use weft_proto::v1::{Auth, ClientTls, HttpDestination, HttpFormat, HttpSignature, auth};

use super::{Fields, TOKEN_URL_KEY, URL_KEY, span};

pub(super) fn put(fields: &mut Fields, http: &HttpDestination) {
    fields.put("destination.type", "http");
    fields.put(URL_KEY, http.url.as_str());
    fields.put("destination.secrets", http.secrets.len());
    let format = match http.format() {
        HttpFormat::Envelope | HttpFormat::Unspecified => "envelope",
        HttpFormat::Cloudevents => "cloudevents",
        HttpFormat::Raw => "raw",
    };
    fields.put("destination.format", format);
    match http.signature() {
        HttpSignature::V1 | HttpSignature::Unspecified => {}
        HttpSignature::V1a => fields.put("destination.signature", "v1a"),
        HttpSignature::None => fields.put("destination.signature", "none"),
    }
    let headers: Vec<_> = http.headers.iter().map(|header| header.name.clone()).collect();
    fields.put_list("destination.headers", &headers);
    if let Some(tls) = &http.tls {
        put_tls(fields, tls);
    }
    if let Some(proxy) = &http.proxy {
        fields.put("destination.proxy.url", proxy.url.as_str());
        fields.put_text("destination.proxy.user", &proxy.user);
    }
    if let Some(auth) = &http.auth {
        put_auth(fields, auth);
    }
    fields.put_list("destination.success", &http.success);
    fields.put_list("destination.permanent", &http.permanent);
    if http.retry_after_max_ms != 0 {
        fields.put("destination.retry_after_max", span(http.retry_after_max_ms));
    }
}

/// Certificates are named by their digest, which distinguishes them.
pub(super) fn put_tls(fields: &mut Fields, tls: &ClientTls) {
    for (key, pem) in [("destination.ca", &tls.ca), ("destination.cert", &tls.cert)] {
        if !pem.is_empty() {
            let digest: String = Sha256::digest(pem).iter().map(|byte| format!("{byte:02x}")).collect();
            fields.put(key, format!("sha256:{digest}"));
        }
    }
}

/// The kind and what is not secret.
pub(super) fn put_auth(fields: &mut Fields, auth: &Auth) {
    match &auth.kind {
        Some(auth::Kind::Bearer(_)) => fields.put("destination.auth.type", "bearer"),
        Some(auth::Kind::Basic(basic)) => {
            fields.put("destination.auth.type", "basic");
            fields.put("destination.auth.user", basic.user.as_str());
        }
        Some(auth::Kind::Oauth2(oauth2)) => {
            fields.put("destination.auth.type", "oauth2");
            fields.put(TOKEN_URL_KEY, oauth2.token_url.as_str());
            fields.put("destination.auth.client_id", oauth2.client_id.as_str());
            fields.put_list("destination.auth.scopes", &oauth2.scopes);
        }
        None => {}
    }
}
