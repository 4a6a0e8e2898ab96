//! `weft dlq redrive | resolve | discard | cancel`: what is done with many dead letters in one call.

use serde::Serialize;
use weft_proto::{
    v1::{self, RedriveDeadLettersRequest, RedriveDeadLettersResponse},
    words::Word as _,
};

use super::{CancelArgs, RedriveAndWaitArgs, RedriveArgs};
use crate::{
    command::{
        admin::AdminClient,
        common::{ReasonArgs, request_id},
        output, prompt,
        select::one_way,
        view,
    },
    failure::Failure,
};

/// Result of a redrive.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Redriven {
    request_id: String,
    dry_run: bool,
    selected: u32,
    delivered: u32,
    failed: u32,
    not_applicable: u32,
    cancelled: u32,
    /// Those that are left wait for these receivers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waits_for: Vec<WaitsFor>,
}

/// A receiver that dead letters wait for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WaitsFor {
    subscription: String,
    receiver: view::Receiver,
}

impl Redriven {
    fn take(&mut self, progress: &RedriveDeadLettersResponse) {
        self.selected = progress.selected;
        self.delivered = progress.delivered;
        self.failed = progress.failed;
        self.not_applicable = progress.not_applicable;
        self.cancelled = progress.cancelled;
        let waits_for = progress.waits_for.iter().map(|waits_for| WaitsFor {
            subscription: waits_for.subscription.clone(),
            receiver: waits_for.receiver.clone().unwrap_or_default().into(),
        });
        self.waits_for = waits_for.collect();
        if !progress.request_id.is_empty() {
            self.request_id.clone_from(&progress.request_id);
        }
    }

    fn settled(&self) -> u32 {
        self.delivered + self.failed + self.not_applicable + self.cancelled
    }

    fn human(&self) -> String {
        if self.dry_run {
            return format!("would redrive {}", self.selected);
        }
        let Self { selected, delivered, failed, not_applicable, cancelled, request_id, .. } = self;
        let mut counts = format!(
            "redriven {selected}: {delivered} delivered, {failed} failed again, {not_applicable} not applicable"
        );
        if *cancelled > 0 {
            counts.push_str(&format!(", {cancelled} cancelled"));
        }
        let left = selected - self.settled();
        if left == 0 {
            return counts;
        }
        let ends = format!("weft dlq cancel {request_id} ends it");
        if self.waits_for.is_empty() {
            return format!("{counts}, {left} under way\n{ends}");
        }
        let obstacles = self.obstacles();
        format!(
            "{counts}, {left} waiting\n{obstacles}\nthey are delivered when that is over; --wait waits for it; {ends}"
        )
    }

    /// The receivers that the rest waits for, for people.
    fn obstacles(&self) -> String {
        let line =
            |waits_for: &WaitsFor| format!("the receiver of {} {}", waits_for.subscription, waits_for.receiver.human());
        self.waits_for.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

pub(super) async fn redrive(args: RedriveAndWaitArgs) -> Result<(), Failure> {
    let RedriveAndWaitArgs { which: args, wait, no_wait } = args;
    let patience = match (wait, no_wait) {
        (true, _) => Patience::ToTheEnd,
        (_, true) => Patience::None,
        _ => Patience::WhileAvailable,
    };
    one_way("redrive", "--subscription", args.given())?;
    let by_id = !args.ids.is_empty();
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = RedriveDeadLettersRequest {
        ids: args.ids,
        filter: (!args.filter.is_empty()).then(|| args.filter.into_filter(&[])),
        all: args.all,
        reason: args.reason.reason,
        request_id: request_id(),
        dry_run: args.dry_run,
    };
    if !args.dry_run && !args.yes && !by_id && prompt::is_attended() {
        let planned =
            carry_out(&admin, RedriveDeadLettersRequest { dry_run: true, ..request.clone() }, patience).await?;
        if planned.selected > 0 && !prompt::confirmed(&format!("redrive {} dead letters?", planned.selected))? {
            return Err(Failure::Failed("nothing was redriven".into()));
        }
    }
    let result = carry_out(&admin, request, patience).await?;
    output::one(format, &result, || result.human())?;
    changed_something(result.dry_run, result.selected, result.selected - result.not_applicable)?;
    if result.failed > 0 {
        return Err(Failure::Failed(format!("{} failed again; see weft dlq list", result.failed)));
    }
    Ok(())
}

/// A command that changes nothing fails: a script must not believe that it worked.
fn changed_something(dry_run: bool, selected: u32, changed: u32) -> Result<(), Failure> {
    match (selected, changed) {
        _ if dry_run => Ok(()),
        (0, _) => Err(Failure::Failed("nothing was done: no open dead letter is selected".into())),
        (_, 0) => {
            let problem = "nothing was done: none of them was open any more when the command was carried out";
            Err(Failure::Failed(problem.into()))
        }
        _ => Ok(()),
    }
}

/// How long a redrive is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Until it is recorded.
    None,
    /// Until all that are left wait for receivers that are away or held.
    WhileAvailable,
    ToTheEnd,
}

/// Sends the request and follows its progress.
async fn carry_out(
    admin: &AdminClient,
    request: RedriveDeadLettersRequest,
    patience: Patience,
) -> Result<Redriven, Failure> {
    let mut result =
        Redriven { request_id: request.request_id.clone(), dry_run: request.dry_run, ..Redriven::default() };
    let answer = admin.dead_letters().redrive_dead_letters(admin.request(request)).await;
    let mut progress = answer.map_err(|status| admin.failure(&status))?.into_inner();
    let bar = if result.dry_run { prompt::no_bar() } else { prompt::bar("redriving") };
    while let Some(step) = progress.message().await.map_err(|status| admin.failure(&status))? {
        result.take(&step);
        bar.set_length(result.selected.into());
        bar.set_position(result.settled().into());
        if patience == Patience::None && !result.dry_run {
            break;
        }
        if !result.waits_for.is_empty() {
            if patience != Patience::ToTheEnd {
                break;
            }
            bar.suspend(|| result.obstacles().lines().for_each(output::notice));
        }
    }
    bar.finish_and_clear();
    Ok(result)
}

/// How dead letters end that are not redriven.
#[derive(Debug, Clone, Copy)]
pub(super) enum Closing {
    Resolve,
    Discard,
}

impl Closing {
    const fn verb(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Discard => "discard",
        }
    }
}

/// Result of closing dead letters.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Closed {
    request_id: String,
    dry_run: bool,
    selected: u32,
    closed: u32,
    not_applicable: u32,
    pending: u32,
}

pub(super) async fn close(args: RedriveArgs, closing: Closing) -> Result<(), Failure> {
    let verb = closing.verb();
    one_way(verb, "--subscription", args.given())?;
    let by_id = !args.ids.is_empty();
    let format = args.common.format();
    let admin = args.common.admin.connect().await?;
    let request = v1::ResolveDeadLettersRequest {
        ids: args.ids,
        filter: (!args.filter.is_empty()).then(|| args.filter.into_filter(&[])),
        all: args.all,
        reason: args.reason.reason,
        request_id: request_id(),
        dry_run: args.dry_run,
    };
    if !args.dry_run && !args.yes && !by_id && prompt::is_attended() {
        let dry_run = v1::ResolveDeadLettersRequest { dry_run: true, ..request.clone() };
        let planned = ask_close(&admin, dry_run, closing).await?;
        if planned.selected > 0 && !prompt::confirmed(&format!("{verb} {} dead letters?", planned.selected))? {
            return Err(Failure::Failed("nothing was done".into()));
        }
    }
    let closed = ask_close(&admin, request, closing).await?;
    output::one(format, &closed, || match &closed {
        Closed { dry_run: true, selected, .. } => format!("would {verb} {selected}"),
        Closed { selected, closed, not_applicable, pending, .. } => {
            format!("{verb} {selected}: {closed} done, {not_applicable} not applicable, {pending} pending")
        }
    })?;
    changed_something(closed.dry_run, closed.selected, closed.closed + closed.pending)
}

async fn ask_close(
    admin: &AdminClient,
    request: v1::ResolveDeadLettersRequest,
    closing: Closing,
) -> Result<Closed, Failure> {
    let dry_run = request.dry_run;
    let answer = match closing {
        Closing::Resolve => admin.dead_letters().resolve_dead_letters(admin.request(request)).await,
        Closing::Discard => {
            let v1::ResolveDeadLettersRequest { ids, filter, all, reason, request_id, dry_run } = request;
            let request = v1::DiscardDeadLettersRequest { ids, filter, all, reason, request_id, dry_run };
            admin.dead_letters().discard_dead_letters(admin.request(request)).await
        }
    };
    let answer = answer.map_err(|status| admin.failure(&status))?.into_inner();
    let v1::CloseDeadLettersResponse { selected, closed, not_applicable, pending, request_id } = answer;
    Ok(Closed { request_id, dry_run, selected, closed, not_applicable, pending })
}

/// A cancelled call.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cancelled {
    request_id: String,
    kind: &'static str,
    selected: u32,
    done: u32,
    failed: u32,
    not_applicable: u32,
    cancelled: u32,
    pending: u32,
}

impl From<v1::DeadLetterOperation> for Cancelled {
    fn from(operation: v1::DeadLetterOperation) -> Self {
        let kind = operation.kind().word();
        let v1::DeadLetterOperation { id, selected, done, failed, not_applicable, cancelled, pending, .. } = operation;
        Self { request_id: id, kind, selected, done, failed, not_applicable, cancelled, pending }
    }
}

impl Cancelled {
    fn human(&self) -> String {
        let Self { kind, selected, done, failed, not_applicable, cancelled, pending, .. } = self;
        format!(
            "{kind} {selected}: {done} done, {failed} failed again, {not_applicable} not applicable, {cancelled} left \
             open, {pending} being attempted or waiting for the owner of their shard"
        )
    }
}

pub(super) async fn cancel(args: CancelArgs) -> Result<(), Failure> {
    let CancelArgs { id, reason: ReasonArgs { reason }, common } = args;
    let format = common.format();
    let admin = common.admin.connect().await?;
    let request = v1::CancelDeadLetterOperationRequest { id, reason, request_id: request_id() };
    let answer = admin.dead_letters().cancel_dead_letter_operation(admin.request(request)).await;
    let cancelled = Cancelled::from(answer.map_err(|status| admin.failure(&status))?.into_inner());
    output::one(format, &cancelled, || cancelled.human())
}
