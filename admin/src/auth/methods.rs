//! What each method needs.

use weft_proto::v1::Scope;

use Limits::{Heeded, Refused};

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Whoever has a key with this scope.
    Key(Scope, Limits),
}

/// What becomes of a caller whose key is limited to some sources or workflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    /// The method shows and touches only those.
    Heeded,
    /// The method concerns all, so it is not his to call.
    Refused,
}

/// Health and reflection: they tell nothing of the mesh.
const OPEN: [&str; 2] = ["grpc.health.v1.", "grpc.reflection."];
/// The package of all others.
const PACKAGE: &str = "weft.v1.";

/// Every method of the admin.
const METHODS: [(&str, Scope, Limits); 48] = [
    ("EventService/GetEvent", Scope::Read, Heeded),
    ("EventService/EventsSince", Scope::Read, Heeded),
    ("EventService/TailEvents", Scope::Read, Heeded),
    ("DeadLetterService/ListDeadLetters", Scope::Read, Heeded),
    ("DeadLetterService/GetDeadLetter", Scope::Read, Heeded),
    ("DeadLetterService/RedriveDeadLetters", Scope::Operate, Heeded),
    ("DeadLetterService/ResolveDeadLetters", Scope::Operate, Heeded),
    ("DeadLetterService/DiscardDeadLetters", Scope::Operate, Heeded),
    ("DeadLetterService/DeadLetterStats", Scope::Read, Heeded),
    ("WorkflowService/GetWorkflow", Scope::Read, Heeded),
    ("WorkflowService/ListLanes", Scope::Read, Heeded),
    ("WorkflowService/RetryLane", Scope::Operate, Heeded),
    ("WorkflowService/SkipLane", Scope::Operate, Heeded),
    ("WorkflowService/PauseLane", Scope::Operate, Heeded),
    ("WorkflowService/ResumeLane", Scope::Operate, Heeded),
    ("ReplayService/PlanReplay", Scope::Read, Heeded),
    ("ReplayService/StartReplay", Scope::Operate, Heeded),
    ("ReplayService/GetReplay", Scope::Read, Refused),
    ("ReplayService/ListReplays", Scope::Read, Refused),
    ("ReplayService/PauseReplay", Scope::Operate, Refused),
    ("ReplayService/ResumeReplay", Scope::Operate, Refused),
    ("ReplayService/CancelReplay", Scope::Operate, Refused),
    ("RejectedService/ListRejected", Scope::Read, Heeded),
    ("RejectedService/GetRejected", Scope::Read, Heeded),
    ("RejectedService/RetryRejected", Scope::Operate, Refused),
    ("ShardService/ListShards", Scope::Read, Refused),
    ("ShardService/AdoptShard", Scope::Admin, Refused),
    ("CatalogService/CreateSource", Scope::Admin, Refused),
    ("CatalogService/GetSource", Scope::Read, Refused),
    ("CatalogService/ListSources", Scope::Read, Refused),
    ("CatalogService/UpdateSource", Scope::Admin, Refused),
    ("CatalogService/DeleteSource", Scope::Admin, Refused),
    ("CatalogService/CreateSubscription", Scope::Admin, Refused),
    ("CatalogService/GetSubscription", Scope::Read, Refused),
    ("CatalogService/ListSubscriptions", Scope::Read, Refused),
    ("CatalogService/UpdateSubscription", Scope::Admin, Refused),
    ("CatalogService/DeleteSubscription", Scope::Admin, Refused),
    ("CatalogService/PauseSubscription", Scope::Operate, Refused),
    ("CatalogService/ResumeSubscription", Scope::Operate, Refused),
    ("CatalogService/AdoptSubscription", Scope::Admin, Refused),
    ("CatalogService/DiscardSubscription", Scope::Admin, Refused),
    ("CatalogService/TestSubscription", Scope::Admin, Refused),
    ("CatalogService/CreateApiKey", Scope::Admin, Refused),
    ("CatalogService/GetApiKey", Scope::Read, Refused),
    ("CatalogService/ListApiKeys", Scope::Read, Refused),
    ("CatalogService/UpdateApiKey", Scope::Admin, Refused),
    ("CatalogService/DeleteApiKey", Scope::Admin, Refused),
    ("CatalogService/Apply", Scope::Admin, Refused),
];

/// Who may call the method of a request's path, `/<package>.<service>/<method>`. What is not known is only for admins: a
/// method that nobody has thought about is open to nobody else.
pub fn access(path: &str) -> Access {
    let name = path.strip_prefix('/').unwrap_or(path);
    if OPEN.iter().any(|package| name.starts_with(package)) {
        return Access::Open;
    }
    known(name).unwrap_or(Access::Key(Scope::Admin, Refused))
}

/// The method of a request's path as a label of metrics: of those that are not known there are as many as callers like.
pub fn label(path: &str) -> &'static str {
    let name = path.strip_prefix('/').unwrap_or(path);
    if OPEN.iter().any(|package| name.starts_with(package)) {
        return "health or reflection";
    }
    let method = name.strip_prefix(PACKAGE);
    let known = METHODS.iter().find(|(known, ..)| Some(*known) == method);
    known.map_or("unknown", |(name, ..)| name)
}

fn known(name: &str) -> Option<Access> {
    let method = name.strip_prefix(PACKAGE)?;
    METHODS.iter().find(|(known, ..)| *known == method).map(|(_, scope, limits)| Access::Key(*scope, *limits))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// The services of the package that other processes serve.
    const ELSEWHERE: [&str; 1] = ["IngestService"];

    /// Whoever adds a method has to say who may call it, and whoever takes one away leaves no entry behind.
    #[test]
    fn every_method_has_its_entry() {
        let files = FileDescriptorSet::decode(weft_proto::FILE_DESCRIPTOR_SET).unwrap().file;
        let ours = files.iter().filter(|file| file.package() == PACKAGE.trim_end_matches('.'));
        let services = ours.flat_map(|file| &file.service).filter(|service| !ELSEWHERE.contains(&service.name()));
        let mut methods: Vec<_> = services
            .flat_map(|service| service.method.iter().map(|method| format!("{}/{}", service.name(), method.name())))
            .collect();
        let without: Vec<_> = methods.iter().filter(|method| known(&format!("{PACKAGE}{method}")).is_none()).collect();
        assert_eq!(without, Vec::<&String>::new(), "methods without an entry in METHODS");
        let mut entries: Vec<_> = METHODS.iter().map(|(name, ..)| (*name).to_owned()).collect();
        methods.sort();
        entries.sort();
        assert_eq!(entries, methods, "entries without a method");
    }

    #[test]
    fn labels_are_of_known_methods() {
        assert_eq!(label("/weft.v1.EventService/GetEvent"), "EventService/GetEvent");
        assert_eq!(label("/grpc.health.v1.Health/Check"), "health or reflection");
        assert_eq!(label("/weft.v1.EventService/Made.Up"), "unknown");
    }

    #[test]
    fn what_is_not_known_is_for_admins() {
        let admins = Access::Key(Scope::Admin, Refused);
        for path in ["/weft.v1.EventService/Erase", "/other.v1.EventService/GetEvent", "/", "", "//", "/metrics"] {
            assert_eq!(access(path), admins, "{path}");
        }
        assert_eq!(access("/weft.v1.EventService/GetEvent"), Access::Key(Scope::Read, Heeded));
        assert_eq!(access("/grpc.health.v1.Health/Check"), Access::Open);
        assert_eq!(access("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), Access::Open);
    }
}
