//! The HTTP API as an OpenAPI 3.1 document, generated from the handlers and their types.

use std::sync::{Arc, LazyLock};

use axum::{extract::State, response::IntoResponse};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ContentBuilder, Ref, RefOr, Response as OpenApiResponse, ResponseBuilder,
        path::Operation,
        security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme},
    },
};

use weft_proto::v1::Scope;

use super::{
    error::{self, Problem},
    events, since,
    state::Api,
    stream, webhooks,
    wire::{Envelope, Page, PlainEvent},
};
use crate::admission::Client;

/// The document.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Weft gateway",
        description = "Events in, in order per workflow, each taken once; and the events that were taken, to be read."
    ),
    paths(
        webhooks::webhook,
        webhooks::webhook_with_workflow,
        events::publish,
        since::since,
        since::event_of_delivery,
        since::event,
        stream::stream,
        document,
    ),
    components(schemas(
        webhooks::Accepted,
        error::Body,
        error::Code,
        Envelope,
        Page,
        PlainEvent,
        events::Batch,
        events::Outcome,
    )),
    tags(
        (name = "ingest", description = "Sending events"),
        (name = "read", description = "Reading events"),
    ),
    modifiers(&CommonParts),
)]
struct Document;

/// The parts that all operations share: authentication and error responses.
struct CommonParts;

/// The document as it is served: it never changes while a gateway runs.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    // Maps with texts as keys: there is nothing that could fail.
    serde_json::to_vec(&Document::openapi()).unwrap_or_default().into()
});

/// This document.
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    tag = "read",
    security(("apiKey" = []), ("bearer" = [])),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"))
)]
pub async fn document(
    State(api): State<Arc<Api>>,
    client: Client,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    api.authorize(&client, &headers, Scope::Read)?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT.clone()))
}

impl Modify for CommonParts {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        // The crate names none.
        document.info.license = None;
        let components = document.components.get_or_insert_with(Default::default);
        let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key")));
        components.add_security_scheme("apiKey", key);
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        components.responses.insert("problem".to_owned(), problem().into());
        for item in document.paths.paths.values_mut() {
            for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
                refuse_by_default(operation);
            }
        }
    }
}

fn refuse_by_default(operation: &mut Operation) {
    let problem = RefOr::Ref(Ref::from_response_name("problem"));
    operation.responses.responses.entry("default".to_owned()).or_insert(problem);
}

fn problem() -> OpenApiResponse {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new()
        .description("Refused: problem details (RFC 9457) with a stable code")
        .content("application/problem+json", body)
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};
    use weft_nats::{envelope, event::Event};

    use super::*;

    fn document() -> Value {
        serde_json::from_slice(&DOCUMENT).unwrap()
    }

    fn event() -> Event {
        Event { delivery_id: None, content_type: String::new(), ..weft_testkit::event("w").build() }
    }

    fn names(object: &Value) -> BTreeSet<&str> {
        object.as_object().unwrap().keys().map(String::as_str).collect()
    }

    /// Every new route needs a description: the document has every path of the router, without the trailing slash with which
    /// some are also served.
    #[test]
    fn every_route_is_described() {
        let document = document();
        let router = include_str!("router.rs");
        let routed: BTreeSet<&str> =
            router.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let routed: BTreeSet<&str> = routed.into_iter().map(|path| path.trim_end_matches('/')).collect();
        assert_eq!(routed, names(&document["paths"]));
    }

    #[test]
    fn every_operation_can_be_refused_and_every_reference_leads_somewhere() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let refused = &operation["responses"]["default"]["$ref"];
                assert_eq!(refused, "#/components/responses/problem", "{method} {path}");
            }
        }
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_code_is_named() {
        let document = document();
        let codes = document["components"]["schemas"]["Code"]["enum"].as_array().unwrap();
        assert!(codes.contains(&json!("timestamp_out_of_window")) && codes.contains(&json!("log_full")), "{codes:?}");
        let code = error::Code::TimestampOutOfWindow;
        assert_eq!(serde_json::to_value(code).unwrap(), json!(code.as_str()));
    }

    /// The envelope that is described is the one that is written.
    #[test]
    fn the_envelope_is_described_as_it_is_written() {
        let described = document();
        let described = names(&described["components"]["schemas"]["Envelope"]["properties"]);
        let mut written = BTreeSet::new();
        for content_type in ["application/json", "text/plain"] {
            let event = Event { content_type: content_type.into(), ..event() };
            let json: Value = serde_json::from_slice(&envelope::to_json(&event)).unwrap();
            written.extend(names(&json).into_iter().map(str::to_owned));
        }
        assert_eq!(written, described.into_iter().map(str::to_owned).collect());
    }
}
