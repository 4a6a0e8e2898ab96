//! `CatalogService`: sources, subscriptions and keys.
//!
//! - `mutation`: a change that acts once, is stamped and recorded; `request`: requests, converted to entries.
//! - `reseal`: every entry sealed with the first master key.
//! - `view`: entries in answers, without secrets.
//! - `test_delivery`: test deliveries; `sample`: signed samples of a source. `plan_applied`: answers of `Apply`.

use std::sync::Arc;

use futures_util::future::try_join_all;
use jiff::Timestamp;
use tonic::{Request, Response, Status};
use weft_catalog::{
    Snapshot,
    change::{
        Change, Refusal, adopt_subscription, create, create_subscription, delete, pause, update, with_changed_secrets,
        with_kept_secrets,
    },
    edit::record,
    entry::{Entry, Kind, without_secrets},
    keys, plan,
};
use weft_proto::v1::{self, catalog_service_server::CatalogService};

use super::state::{LogState, State};
use crate::{
    auth, convert,
    deliveries::{Deliveries, Migration},
    error::{Code, refuse},
};

mod mutation;
mod orphans;
mod plan_applied;
mod request;
mod reseal;
mod sample;
mod test_delivery;
mod view;

use mutation::{Mutation, of_edit, of_refusal};
use request::given;
use view::{View, hide_queries};

type Answer<T> = Result<Response<T>, Status>;

/// `CatalogService` over the catalog; changes are recorded on COMMANDS.
#[derive(Debug)]
pub(super) struct Catalogs {
    state: Arc<State>,
    deliveries: Arc<dyn Deliveries>,
}

impl Catalogs {
    pub fn new(state: Arc<State>, deliveries: Arc<dyn Deliveries>) -> Self {
        Self { state, deliveries }
    }

    fn log(&self) -> Result<&LogState, Status> {
        self.state.log()
    }

    async fn snapshot(&self) -> Result<Arc<Snapshot>, Status> {
        self.log()?.snapshot().await
    }

    async fn get<V: View>(&self, name: &str) -> Answer<V> {
        V::find(&*self.snapshot().await?, name).map(Response::new)
    }

    /// Changes one entry and returns its new state.
    async fn change<V: View>(
        &self,
        mutation: &Mutation,
        name: &str,
        decide: impl Fn(&Snapshot) -> Result<Option<Change>, Refusal>,
    ) -> Answer<V> {
        let edited = mutation.change(self.log()?, decide).await?;
        V::find(&edited.snapshot, name).map(Response::new)
    }

    /// Removes one entry.
    async fn remove<V: View>(&self, mutation: &Mutation, name: &str, revision: u64) -> Result<(), Status> {
        let gone = |snapshot: &Snapshot| delete::<V::Entry>(snapshot, name, revision).map(Some);
        mutation.change(self.log()?, gone).await.map(drop)
    }

    /// Adds the receivers that are away or held, as far as the history knows: the catalog's answer does not wait for it.
    async fn add_receivers(&self, views: &mut [v1::SubscriptionView]) -> Result<(), Status> {
        let receivers = match self.log()?.history.receivers().await {
            Ok(receivers) => receivers,
            Err(error) => {
                tracing::debug!(%error, "how receivers stand is not known now");
                return Ok(());
            }
        };
        for view in views {
            let Some(subscription) = &view.subscription else { continue };
            let of_it = receivers.iter().filter(|receiver| receiver.uid.as_bytes()[..] == subscription.uid);
            view.receivers = of_it.map(|receiver| convert::receiver(receiver.shard, &receiver.state)).collect();
        }
        Ok(())
    }

    /// Refuses the name of an orphaned subscription: its backlog would be taken for the new one's.
    async fn refuse_orphaned(&self, mutation: &Mutation, name: &str) -> Result<(), Status> {
        let log = self.log()?;
        if mutation.recorded(log).await?.is_some() {
            return Ok(());
        }
        let snapshot = self.snapshot().await?;
        let is_orphaned = orphans::now(log, &snapshot).await?.iter().any(|orphan| orphan.name == name);
        if is_orphaned && !snapshot.subscriptions.contains_key(name) {
            let message = format!(
                "subscription {name} is missing from the catalog and keeps its backlog; adopt it (weft subscription adopt \
                 {name}), or discard it first"
            );
            return Err(refuse(Code::Conflict, message));
        }
        Ok(())
    }

    /// Checks whether a destination may be called, with the code that will call it.
    async fn check(&self, subscription: &v1::Subscription) -> Result<(), Status> {
        let (kind, name) = (Kind::Subscription, subscription.name.clone());
        let checked = self.deliveries.check(subscription).await;
        checked.map_err(|problem| of_refusal(&Refusal::Invalid { kind, name, problem }))
    }
}

/// A value with its stored secrets changed as the request says.
fn rotated<T: Entry>(
    snapshot: &Snapshot,
    value: T,
    revision: u64,
    change: Option<&v1::SecretsChange>,
) -> Result<T, Refusal> {
    match change {
        Some(change) => with_changed_secrets(snapshot, value, revision, &change.secrets, &change.remove),
        None => Ok(value),
    }
}

#[tonic::async_trait]
impl CatalogService for Catalogs {
    async fn create_source(&self, request: Request<v1::CreateSourceRequest>) -> Answer<v1::SourceView> {
        let asked = request.get_ref();
        let source = given(asked.source.clone(), "source")?;
        let mutation = Mutation::new(&request, "CreateSource", &source.name, &asked.request_id, &asked.reason)?;
        let make = |snapshot: &Snapshot| create(snapshot, source.clone()).map(Some);
        self.change(&mutation, &source.name, make).await
    }

    async fn get_source(&self, request: Request<v1::GetSourceRequest>) -> Answer<v1::SourceView> {
        self.get(&request.get_ref().name).await
    }

    async fn list_sources(&self, request: Request<v1::ListSourcesRequest>) -> Answer<v1::ListSourcesResponse> {
        let v1::ListSourcesRequest { page_size, page_token } = request.get_ref();
        let (sources, next_page_token) = View::page(&*self.snapshot().await?, *page_size, page_token)?;
        Ok(Response::new(v1::ListSourcesResponse { sources, next_page_token }))
    }

    async fn update_source(&self, request: Request<v1::UpdateSourceRequest>) -> Answer<v1::SourceView> {
        let asked = request.get_ref();
        let source = given(asked.source.clone(), "source")?;
        let mutation = Mutation::new(&request, "UpdateSource", &source.name, &asked.request_id, &asked.reason)?;
        let (revision, change) = (asked.revision, asked.secrets_change.as_ref());
        let decide =
            |snapshot: &Snapshot| update(snapshot, rotated(snapshot, source.clone(), revision, change)?, revision);
        self.change(&mutation, &source.name, decide).await
    }

    async fn delete_source(&self, request: Request<v1::DeleteSourceRequest>) -> Answer<v1::DeleteSourceResponse> {
        let asked = request.get_ref();
        let mutation = Mutation::new(&request, "DeleteSource", &asked.name, &asked.request_id, &asked.reason)?;
        self.remove::<v1::SourceView>(&mutation, &asked.name, asked.revision).await?;
        Ok(Response::new(v1::DeleteSourceResponse {}))
    }

    async fn send_sample(&self, request: Request<v1::SendSampleRequest>) -> Answer<v1::SendSampleResponse> {
        let asked = request.get_ref();
        let mutation = Mutation::new(&request, "SendSample", &asked.source, &asked.request_id, &asked.reason)?;
        let (log, snapshot) = (self.log()?, self.snapshot().await?);
        sample::send(log, self.deliveries.as_ref(), &mutation, &snapshot, asked).await.map(Response::new)
    }

    async fn create_subscription(
        &self,
        request: Request<v1::CreateSubscriptionRequest>,
    ) -> Answer<v1::SubscriptionView> {
        let asked = request.get_ref();
        let subscription = given(asked.subscription.clone(), "subscription")?;
        let start = request::start(asked.start.clone())?;
        let name = &subscription.name;
        let mutation = Mutation::new(&request, "CreateSubscription", name, &asked.request_id, &asked.reason)?;
        self.check(&subscription).await?;
        self.refuse_orphaned(&mutation, name).await?;
        let make = |snapshot: &Snapshot| create_subscription(snapshot, subscription.clone(), start).map(Some);
        self.change(&mutation, name, make).await
    }

    async fn get_subscription(&self, request: Request<v1::GetSubscriptionRequest>) -> Answer<v1::SubscriptionView> {
        let mut found: Response<v1::SubscriptionView> = self.get(&request.get_ref().name).await?;
        self.add_receivers(std::slice::from_mut(found.get_mut())).await?;
        hide_queries(&auth::grant(&request)?, std::slice::from_mut(found.get_mut()));
        Ok(found)
    }

    async fn list_subscriptions(
        &self,
        request: Request<v1::ListSubscriptionsRequest>,
    ) -> Answer<v1::ListSubscriptionsResponse> {
        let v1::ListSubscriptionsRequest { page_size, page_token } = request.get_ref();
        let (log, snapshot) = (self.log()?, self.snapshot().await?);
        let (mut subscriptions, next_page_token) = View::page(&snapshot, *page_size, page_token)?;
        self.add_receivers(&mut subscriptions).await?;
        hide_queries(&auth::grant(&request)?, &mut subscriptions);
        let mut found = Vec::new();
        // A list does not wait for the history: it shows the history's current state.
        let orphans =
            if page_token.is_empty() { orphans::all(log, &snapshot).await.unwrap_or_default() } else { vec![] };
        for orphan in orphans {
            found.push(orphans::view(log, &orphan).await?);
        }
        Ok(Response::new(v1::ListSubscriptionsResponse { subscriptions, next_page_token, orphans: found }))
    }

    async fn update_subscription(
        &self,
        request: Request<v1::UpdateSubscriptionRequest>,
    ) -> Answer<v1::SubscriptionView> {
        let asked = request.get_ref();
        let subscription = given(asked.subscription.clone(), "subscription")?;
        let name = &subscription.name;
        let mutation = Mutation::new(&request, "UpdateSubscription", name, &asked.request_id, &asked.reason)?;
        // As it would be stored: whether a connection string or a certificate can be used shows only with its secrets.
        self.check(&with_kept_secrets(&*self.snapshot().await?, subscription.clone())).await?;
        let (revision, change) = (asked.revision, asked.secrets_change.as_ref());
        let decide = |snapshot: &Snapshot| {
            update(snapshot, rotated(snapshot, subscription.clone(), revision, change)?, revision)
        };
        self.change(&mutation, name, decide).await
    }

    async fn delete_subscription(
        &self,
        request: Request<v1::DeleteSubscriptionRequest>,
    ) -> Answer<v1::DeleteSubscriptionResponse> {
        let asked = request.get_ref();
        let mutation = Mutation::new(&request, "DeleteSubscription", &asked.name, &asked.request_id, &asked.reason)?;
        self.remove::<v1::SubscriptionView>(&mutation, &asked.name, asked.revision).await?;
        Ok(Response::new(v1::DeleteSubscriptionResponse {}))
    }

    async fn pause_subscription(&self, request: Request<v1::PauseSubscriptionRequest>) -> Answer<v1::SubscriptionView> {
        let asked = request.get_ref();
        let mutation = Mutation::new(&request, "PauseSubscription", &asked.name, &asked.request_id, &asked.reason)?;
        let reason = mutation.stamp().reason.as_str();
        self.change(&mutation, &asked.name, |snapshot| pause(snapshot, &asked.name, Some(reason))).await
    }

    async fn resume_subscription(
        &self,
        request: Request<v1::ResumeSubscriptionRequest>,
    ) -> Answer<v1::SubscriptionView> {
        let asked = request.get_ref();
        let mutation = Mutation::new(&request, "ResumeSubscription", &asked.name, &asked.request_id, &asked.reason)?;
        self.change(&mutation, &asked.name, |snapshot| pause(snapshot, &asked.name, None)).await
    }

    async fn adopt_subscription(
        &self,
        request: Request<v1::AdoptSubscriptionRequest>,
    ) -> Answer<v1::AdoptSubscriptionResponse> {
        let asked = request.get_ref();
        let subscription = given(asked.subscription.clone(), "subscription")?;
        let method = "AdoptSubscription";
        let mutation = Mutation::new(&request, method, &asked.orphan, &asked.request_id, &asked.reason)?;
        let log = self.log()?;
        if mutation.recorded(log).await?.is_some() {
            let view = v1::SubscriptionView::find(&*self.snapshot().await?, &subscription.name)?;
            return Ok(Response::new(v1::AdoptSubscriptionResponse { orphan: None, view: Some(view) }));
        }
        self.check(&subscription).await?;
        let snapshot = self.snapshot().await?;
        let orphan = orphans::find(log, &snapshot, &asked.orphan).await?;
        let shown = Some(orphans::view(log, &orphan).await?);
        let adopt = |snapshot: &Snapshot| adopt_subscription(snapshot, subscription.clone(), &orphan).map(Some);
        if asked.dry_run {
            adopt(&snapshot).map_err(|refusal| of_refusal(&refusal))?;
            return Ok(Response::new(v1::AdoptSubscriptionResponse { orphan: shown, view: None }));
        }
        let edited = mutation.change(log, adopt).await?;
        let view = v1::SubscriptionView::find(&edited.snapshot, &subscription.name)?;
        Ok(Response::new(v1::AdoptSubscriptionResponse { orphan: shown, view: Some(view) }))
    }

    async fn discard_subscription(
        &self,
        request: Request<v1::DiscardSubscriptionRequest>,
    ) -> Answer<v1::DiscardSubscriptionResponse> {
        let grant = auth::grant(&request)?;
        orphans::discard(self.log()?, &grant, request.get_ref()).await.map(Response::new)
    }

    async fn test_subscription(
        &self,
        request: Request<v1::TestSubscriptionRequest>,
    ) -> Answer<v1::TestSubscriptionResponse> {
        let asked = request.get_ref();
        let mutation = Mutation::new(&request, "TestSubscription", &asked.name, &asked.request_id, &asked.reason)?;
        if let Some(edit) = mutation.recorded(self.log()?).await? {
            return Ok(Response::new(test_delivery::answer(edit.test)));
        }
        let snapshot = self.snapshot().await?;
        let subscription = &test_delivery::subscription_of(&snapshot, asked)?;
        let (log, deliveries) = (self.log()?, self.deliveries.as_ref());
        let event = test_delivery::event_of(log, asked).await?;
        let planned = test_delivery::plan(deliveries, subscription, event.clone()).await?;
        if !asked.send {
            return Ok(Response::new(planned));
        }
        test_delivery::deliver(log, deliveries, &mutation, subscription, event, planned).await.map(Response::new)
    }

    async fn migrate_subscription(
        &self,
        request: Request<v1::MigrateSubscriptionRequest>,
    ) -> Answer<v1::MigrateSubscriptionResponse> {
        let asked = request.get_ref();
        let mutation = Mutation::new(&request, "MigrateSubscription", &asked.name, &asked.request_id, &asked.reason)?;
        let (log, snapshot) = (self.log()?, self.snapshot().await?);
        let is_recorded = mutation.recorded(log).await?.is_some();
        let missing = || of_refusal(&Refusal::NotFound { kind: Kind::Subscription, name: asked.name.clone() });
        let subscription = &snapshot.subscriptions.get(&asked.name).ok_or_else(missing)?.value;
        let migrate = async |dry_run| {
            let migrated = self.deliveries.migrate(subscription, dry_run).await;
            migrated.map_err(|problem| refuse(Code::InvalidEntry, problem))
        };
        let mut migration = migrate(true).await?;
        if !asked.dry_run {
            if !is_recorded {
                record(&log.connection, log.layout, mutation.stamp(), 0, mutation.edit()).await.map_err(of_edit)?;
            }
            // Only what is missing is made, so a call that broke off is completed by its repeat.
            migration = migrate(false).await?;
        }
        let Migration { statements, databases } = migration;
        Ok(Response::new(v1::MigrateSubscriptionResponse { statements, databases }))
    }

    async fn create_api_key(&self, request: Request<v1::CreateApiKeyRequest>) -> Answer<v1::CreateApiKeyResponse> {
        let asked = request.get_ref();
        let now = Timestamp::now();
        let mutation = Mutation::new(&request, "CreateApiKey", &asked.name, &asked.request_id, &asked.reason)?;
        let (key, text) = keys::make(request::key(asked, now)?, now);
        let make = |snapshot: &Snapshot| create(snapshot, key.clone()).map(Some);
        let edited = mutation.change(self.log()?, make).await?;
        // A repeated call returns the key that the first one made.
        let id = edited.changes.first().map_or("", |change| &change.name);
        let view = v1::ApiKeyView::find(&edited.snapshot, id)?;
        let text = if id == key.id { text.expose() } else { "" };
        Ok(Response::new(v1::CreateApiKeyResponse { view: Some(view), key: text.to_owned() }))
    }

    async fn get_api_key(&self, request: Request<v1::GetApiKeyRequest>) -> Answer<v1::ApiKeyView> {
        self.get(&request.get_ref().id).await
    }

    async fn list_api_keys(&self, request: Request<v1::ListApiKeysRequest>) -> Answer<v1::ListApiKeysResponse> {
        let v1::ListApiKeysRequest { page_size, page_token } = request.get_ref();
        let (keys, next_page_token) = View::page(&*self.snapshot().await?, *page_size, page_token)?;
        Ok(Response::new(v1::ListApiKeysResponse { keys, next_page_token }))
    }

    async fn update_api_key(&self, request: Request<v1::UpdateApiKeyRequest>) -> Answer<v1::ApiKeyView> {
        let asked = request.get_ref();
        let key = given(asked.key.clone(), "key")?;
        let mutation = Mutation::new(&request, "UpdateApiKey", &key.id, &asked.request_id, &asked.reason)?;
        self.change(&mutation, &key.id, |snapshot| update(snapshot, key.clone(), asked.revision)).await
    }

    async fn delete_api_key(&self, request: Request<v1::DeleteApiKeyRequest>) -> Answer<v1::DeleteApiKeyResponse> {
        let asked = request.get_ref();
        let mutation = Mutation::new(&request, "DeleteApiKey", &asked.id, &asked.request_id, &asked.reason)?;
        self.remove::<v1::ApiKeyView>(&mutation, &asked.id, asked.revision).await?;
        Ok(Response::new(v1::DeleteApiKeyResponse {}))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        let asked = request.get_ref();
        let mutation = Mutation::new(&request, "Apply", "", &asked.request_id, &asked.reason)?;
        let desired = request::desired(asked.sources.clone(), asked.subscriptions.clone())?;
        let snapshot = self.snapshot().await?;
        let new = desired.subscriptions.iter().filter(|wanted| goes_elsewhere(&snapshot, &wanted.value));
        try_join_all(new.map(|wanted| self.check(&wanted.value))).await?;
        if asked.dry_run {
            let changes = plan(&snapshot, &desired, asked.prune).map_err(|refusal| of_refusal(&refusal))?;
            return Ok(Response::new(plan_applied::planned(&snapshot, &changes)));
        }
        let edited = mutation.carry_out(self.log()?, |snapshot, _| plan(snapshot, &desired, asked.prune)).await?;
        Ok(Response::new(plan_applied::done(edited.changes)))
    }

    type ResealStream = reseal::Responses;

    async fn reseal(&self, request: Request<v1::ResealRequest>) -> Answer<Self::ResealStream> {
        let asked = request.get_ref();
        let log = self.log()?;
        let key_id = log.catalog.master_key().id();
        let mutation = Mutation::new(&request, "Reseal", &key_id, &asked.request_id, &asked.reason)?;
        let place = self.state.place(&auth::grant(&request)?)?;
        Ok(Response::new(reseal::run(log.clone(), mutation, key_id, place).await?))
    }
}

/// Whether a subscription has another destination than the stored one of its name, or is new.
fn goes_elsewhere(snapshot: &Snapshot, wanted: &v1::Subscription) -> bool {
    let destination = |subscription: &v1::Subscription| without_secrets(subscription).destination;
    let stored = snapshot.subscriptions.get(&wanted.name);
    stored.is_none_or(|stored| destination(&stored.value) != destination(wanted))
}
