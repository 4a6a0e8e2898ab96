//! The caller of the events API and its rights.

use weft_catalog::keys::Grant;
use weft_nats::{envelope, event::OWN_SOURCE};
use weft_schema::pointer;

use super::Draft;
use weft_schemes::Verified;

use crate::{
    http::error::{Code, Problem},
    http::state::Api,
    http::webhooks,
    sequencer::{NewEvent, SubmitError},
    sources::LookupError,
};

/// A caller that may send events.
#[derive(Debug)]
pub(crate) struct Caller<'a> {
    api: &'a Api,
    grant: Grant,
}

impl<'a> Caller<'a> {
    /// The caller with a key that may do this.
    pub fn of(api: &'a Api, grant: Grant) -> Self {
        Self { api, grant }
    }

    /// The event, received now, if it is as it must be and the caller may send it.
    ///
    /// # Errors
    ///
    /// A [`Problem`]: what [`Draft::check`] says, or `out_of_scope`; `starting` while the catalog is not there.
    pub fn admit(&self, draft: Draft) -> Result<NewEvent, Problem> {
        let depth_max = self.api.bodies.depth_max();
        if envelope::is_json(&draft.content_type) && pointer::depth(&draft.data) > depth_max {
            let detail = format!("the JSON is nested more than {depth_max} levels deep");
            return Err(Problem::new(Code::MalformedBody, detail));
        }
        let event = draft.check(webhooks::now(), Verified::of_key(self.grant.operator()).by())?;
        if event.source == OWN_SOURCE {
            let detail = "the source is that of the mesh's own events; name another";
            return Err(Problem::new(Code::OutOfScope, detail));
        }
        // The ids of a source's events are derived from its name: a caller that may use the name could take its ids.
        match self.api.sources.get(&event.source) {
            Err(LookupError::Unknown) => {}
            Err(LookupError::Starting) => return Err(SubmitError::Starting.into()),
            Ok(_) | Err(LookupError::Broken) => {
                let detail = "the source is one of signed webhooks; name another";
                return Err(Problem::new(Code::OutOfScope, detail));
            }
        }
        self.grant.check(&event.source, &event.workflow)?;
        Ok(event)
    }
}
