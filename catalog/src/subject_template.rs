//! Subject templates of NATS destinations, such as `orders.{workflow}.{type}`. Pure.

use weft_nats::{
    event::Event,
    subject::{encode_token, encode_workflow},
    user_subjects::{check_first_token, check_literal, covers},
};

/// The longest template.
const TEMPLATE_BYTES_MAX: usize = 512;
/// The longest subject: the server's limit for a line of the protocol is 4 KiB, and it closes the connection beyond.
const SUBJECT_BYTES_MAX: usize = 2048;

/// A template. Its first token is a literal, so that no event decides which part of the subjects it reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectTemplate(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(String),
    Workflow,
    Type,
    Source,
}

impl SubjectTemplate {
    /// Parses a template: tokens with dots between them, each a literal or one of `{workflow}`, `{type}` and `{source}`.
    ///
    /// # Errors
    ///
    /// The problem, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is missing: say which subject events are published to".into());
        }
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(format!("is longer than {TEMPLATE_BYTES_MAX} bytes"));
        }
        let (first, rest) = text.split_once('.').map_or((text, None), |(first, rest)| (first, Some(rest)));
        if first.starts_with('{') {
            return Err(format!("{text:?} begins with a placeholder; begin with a name, such as \"orders.{text}\""));
        }
        check_first_token(first).map_err(|problem| format!("{text:?} {problem}"))?;
        let rest = rest.map(|rest| rest.split('.').map(token)).into_iter().flatten();
        let tokens = std::iter::once(Ok(Token::Literal(first.to_owned()))).chain(rest);
        tokens.collect::<Result<_, _>>().map(Self).map_err(|problem| format!("{text:?} {problem}"))
    }

    /// Whether all subjects of the template that belong to one workflow belong to it alone.
    pub fn names_workflow(&self) -> bool {
        self.0.contains(&Token::Workflow)
    }

    /// Whether a pattern such as `orders.>` matches every subject of the template.
    pub fn is_within(&self, pattern: &str) -> bool {
        let tokens = self.0.iter().map(|token| match token {
            Token::Literal(literal) => Some(literal.as_str()),
            Token::Workflow | Token::Type | Token::Source => None,
        });
        covers(pattern, &tokens.collect::<Vec<_>>())
    }

    /// The subject of an event. Each placeholder becomes one token, encoded as workflow ids are: `order.paid` is
    /// `order%2Epaid`.
    ///
    /// # Errors
    ///
    /// The problem, in one line: the subject is too long, or a token of it empty.
    pub fn subject(&self, event: &Event) -> Result<String, String> {
        let mut subject = String::new();
        for token in &self.0 {
            if !subject.is_empty() {
                subject.push('.');
            }
            let before = subject.len();
            match token {
                Token::Literal(literal) => subject.push_str(literal),
                Token::Workflow => subject.push_str(&encode_workflow(&event.workflow)),
                Token::Type => subject.push_str(&encode_token(&event.event_type)),
                Token::Source => subject.push_str(&encode_token(&event.source)),
            }
            if subject.len() == before {
                return Err("the event has an empty type or source, and a subject has no empty token".into());
            }
        }
        if subject.len() > SUBJECT_BYTES_MAX {
            return Err(format!("the subject is longer than {SUBJECT_BYTES_MAX} bytes"));
        }
        Ok(subject)
    }
}

fn token(text: &str) -> Result<Token, String> {
    match text {
        "{workflow}" => Ok(Token::Workflow),
        "{type}" => Ok(Token::Type),
        "{source}" => Ok(Token::Source),
        text if text.contains(['{', '}']) => {
            Err(format!("has a token {text:?}; a placeholder is a whole token: {{workflow}}, {{type}} or {{source}}"))
        }
        text => check_literal(text).map(|()| Token::Literal(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weft_proto::ids::{EventId, SequenceNumber, WorkflowId};

    use super::*;

    fn event(workflow: &str, event_type: &str) -> Event {
        Event {
            id: EventId::unique(),
            sequence_number: SequenceNumber(1),
            workflow: WorkflowId::new(workflow).unwrap(),
            previous: None,
            event_type: event_type.into(),
            source: "shop".into(),
            time: jiff::Timestamp::UNIX_EPOCH,
            received_at: jiff::Timestamp::UNIX_EPOCH,
            delivery_id: None,
            content_type: "application/json".into(),
            data_pointer: String::new(),
            verified_by: String::new(),
            traceparent: None,
            quarantine: None,
            kept_headers: Vec::new(),
            payload: Bytes::new(),
        }
    }

    /// Guards: a value of an event is one token, so it can neither add tokens nor be a wildcard.
    #[test]
    fn each_placeholder_becomes_one_token() {
        let template = SubjectTemplate::parse("orders.{workflow}.{type}.{source}.x").unwrap();
        for (workflow, event_type, subject) in [
            ("order-42", "paid", "orders.order-42.paid.shop.x"),
            ("order.42", "order.paid", "orders.order%2E42.order%2Epaid.shop.x"),
            ("*", ">", "orders.%2A.%3E.shop.x"),
            ("a b", "é", "orders.a%20b.%C3%A9.shop.x"),
        ] {
            assert_eq!(template.subject(&event(workflow, event_type)).as_deref(), Ok(subject));
        }
        assert!(template.subject(&event("a", "")).is_err());
        assert!(template.subject(&event("a", &"x".repeat(3000))).unwrap_err().contains("longer"));
        assert!(template.names_workflow());
        assert!(!SubjectTemplate::parse("orders.{type}").unwrap().names_workflow());
    }

    /// Guards: no template reaches the subjects of the mesh or of NATS, by any event.
    #[test]
    fn templates_that_could_reach_the_meshs_subjects_are_refused() {
        for refused in [
            "",
            "events.{workflow}",
            "outcomes.0",
            "$JS.API.{type}",
            "_INBOX.{type}",
            "{type}",
            "{type}.{workflow}",
            "orders..a",
            "orders.",
            ".orders",
            "orders.*",
            "orders.>",
            "orders.x{workflow}",
            "orders.{id}",
            "orders.a b",
        ] {
            assert!(SubjectTemplate::parse(refused).is_err(), "{refused}");
        }
        let template = SubjectTemplate::parse("orders.{workflow}").unwrap();
        assert!(template.is_within("orders.>") && template.is_within("orders.*"));
        assert!(!template.is_within("orders.a") && !template.is_within("orders.*.*") && !template.is_within("other.>"));
    }
}
