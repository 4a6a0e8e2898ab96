//! Authentication of this side: the header `authorization` of requests to a destination.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use weft_catalog::delivery_url::DeliveryUrl;
use weft_proto::v1::{AttemptClass, Auth, auth};

use super::{
    Failure,
    clients::{ClientSettings, HttpClients},
    credentials::{basic, bearer},
    oauth2::{InvalidAuth, TokenSource, TokenSources},
};

/// The header of a destination.
#[derive(Debug, Clone)]
pub(super) enum Authorization {
    Fixed(HeaderValue),
    OAuth2(Arc<TokenSource>),
}

impl Authorization {
    /// `client`: the destination's own settings, of which token endpoints are called with certificates and proxy.
    pub fn new(
        auth: &Auth,
        client: &ClientSettings,
        clients: &HttpClients,
        tokens: &TokenSources,
    ) -> Result<Self, InvalidAuth> {
        match &auth.kind {
            Some(auth::Kind::Bearer(token)) => bearer(&token.token).map(Self::Fixed),
            Some(auth::Kind::Basic(user)) => basic(&user.user, &user.password).map(Self::Fixed),
            Some(auth::Kind::Oauth2(oauth2)) => return tokens.get(oauth2, client, clients).map(Self::OAuth2),
            None => return Err(InvalidAuth::Kind),
        }
        .ok_or(InvalidAuth::Characters)
    }

    /// The header for a request now. Cancel safe; the caller limits the wait.
    ///
    /// # Errors
    ///
    /// [`Failure`], which names the token endpoint: no event was sent.
    pub async fn header(&self) -> Result<HeaderValue, Failure> {
        match self {
            Self::Fixed(header) => Ok(header.clone()),
            Self::OAuth2(tokens) => tokens.header().await,
        }
    }

    /// The receiver has refused a header with 401. Returns whether the next one is another: a token is dropped.
    pub fn refused(&self, header: &HeaderValue) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::OAuth2(tokens) => {
                tokens.drop_token(header);
                true
            }
        }
    }

    /// The failure of an attempt that has waited for the header until its timeout.
    pub fn timed_out(&self, timeout: Duration) -> Failure {
        let at = self.token_url().map(DeliveryUrl::authority).unwrap_or_default();
        let error = format!("no access token from {at} within {} ms", timeout.as_millis());
        Failure::unreachable(AttemptClass::Timeout, error)
    }

    /// The endpoint that is called for it.
    pub fn token_url(&self) -> Option<&DeliveryUrl> {
        match self {
            Self::Fixed(_) => None,
            Self::OAuth2(tokens) => Some(tokens.url()),
        }
    }
}
