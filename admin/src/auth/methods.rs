//! Table of the scope that each method needs, and whether limits of a key are enforced.

use weft_proto::v1::Scope;

use Limits::{Enforced, Forbidden};

/// Access to a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Without a key.
    Open,
    /// With a key of this scope.
    Key(Scope, Limits),
}

/// Treatment of a key that is limited to some sources or workflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    /// The method shows and changes only those.
    Enforced,
    /// The method concerns all of them, so a limited key cannot call it.
    Forbidden,
}

/// Health and reflection, which show nothing of the mesh.
const OPEN: [&str; 2] = ["grpc.health.v1.", "grpc.reflection."];
/// The package of all others.
const PACKAGE: &str = "weft.v1.";

/// Every method of the admin.
const METHODS: [(&str, Scope, Limits); 57] = [
    ("EventService/ListEvents", Scope::Read, Enforced),
    ("EventService/GetEvent", Scope::Read, Enforced),
    ("EventService/EventsSince", Scope::Read, Enforced),
    ("EventService/TailEvents", Scope::Read, Enforced),
    ("EventService/EraseEvents", Scope::Admin, Forbidden),
    ("DeadLetterService/ListDeadLetters", Scope::Read, Enforced),
    ("DeadLetterService/GetDeadLetter", Scope::Read, Enforced),
    ("DeadLetterService/RedriveDeadLetters", Scope::Operate, Enforced),
    ("DeadLetterService/ResolveDeadLetters", Scope::Operate, Enforced),
    ("DeadLetterService/DiscardDeadLetters", Scope::Operate, Enforced),
    ("DeadLetterService/CancelDeadLetterOperation", Scope::Operate, Forbidden),
    ("DeadLetterService/DeadLetterStats", Scope::Read, Enforced),
    ("WorkflowService/GetWorkflow", Scope::Read, Enforced),
    ("WorkflowService/ListLanes", Scope::Read, Enforced),
    ("WorkflowService/RetryLane", Scope::Operate, Enforced),
    ("WorkflowService/SkipLane", Scope::Operate, Enforced),
    ("WorkflowService/PauseLane", Scope::Operate, Enforced),
    ("WorkflowService/ResumeLane", Scope::Operate, Enforced),
    ("ReplayService/PlanReplay", Scope::Read, Enforced),
    ("ReplayService/StartReplay", Scope::Operate, Enforced),
    ("ReplayService/GetReplay", Scope::Read, Forbidden),
    ("ReplayService/ListReplays", Scope::Read, Forbidden),
    ("ReplayService/PauseReplay", Scope::Operate, Forbidden),
    ("ReplayService/ResumeReplay", Scope::Operate, Forbidden),
    ("ReplayService/CancelReplay", Scope::Operate, Forbidden),
    ("RejectedService/ListRejected", Scope::Read, Enforced),
    ("RejectedService/GetRejected", Scope::Read, Enforced),
    ("RejectedService/RetryRejected", Scope::Operate, Forbidden),
    ("ShardService/ListShards", Scope::Read, Forbidden),
    ("ShardService/AdoptShard", Scope::Admin, Forbidden),
    ("AuditService/ListAudit", Scope::Read, Forbidden),
    ("StatsService/GetStats", Scope::Read, Forbidden),
    ("StatsService/WatchStats", Scope::Read, Forbidden),
    ("CatalogService/CreateSource", Scope::Admin, Forbidden),
    ("CatalogService/GetSource", Scope::Read, Forbidden),
    ("CatalogService/ListSources", Scope::Read, Forbidden),
    ("CatalogService/UpdateSource", Scope::Admin, Forbidden),
    ("CatalogService/DeleteSource", Scope::Admin, Forbidden),
    ("CatalogService/SendSample", Scope::Admin, Forbidden),
    ("CatalogService/CreateSubscription", Scope::Admin, Forbidden),
    ("CatalogService/GetSubscription", Scope::Read, Forbidden),
    ("CatalogService/ListSubscriptions", Scope::Read, Forbidden),
    ("CatalogService/UpdateSubscription", Scope::Admin, Forbidden),
    ("CatalogService/DeleteSubscription", Scope::Admin, Forbidden),
    ("CatalogService/PauseSubscription", Scope::Operate, Forbidden),
    ("CatalogService/ResumeSubscription", Scope::Operate, Forbidden),
    ("CatalogService/AdoptSubscription", Scope::Admin, Forbidden),
    ("CatalogService/DiscardSubscription", Scope::Admin, Forbidden),
    ("CatalogService/TestSubscription", Scope::Admin, Forbidden),
    ("CatalogService/MigrateSubscription", Scope::Admin, Forbidden),
    ("CatalogService/CreateApiKey", Scope::Admin, Forbidden),
    ("CatalogService/GetApiKey", Scope::Read, Forbidden),
    ("CatalogService/ListApiKeys", Scope::Read, Forbidden),
    ("CatalogService/UpdateApiKey", Scope::Admin, Forbidden),
    ("CatalogService/DeleteApiKey", Scope::Admin, Forbidden),
    ("CatalogService/Apply", Scope::Admin, Forbidden),
    ("CatalogService/Reseal", Scope::Admin, Forbidden),
];

/// Access to the method of a request's path, `/<package>.<service>/<method>`. A method without an entry is for admins only.
pub fn access(path: &str) -> Access {
    let name = path.strip_prefix('/').unwrap_or(path);
    if OPEN.iter().any(|package| name.starts_with(package)) {
        return Access::Open;
    }
    known(name).unwrap_or(Access::Key(Scope::Admin, Forbidden))
}

/// The names of all methods, as labels of metrics.
pub fn names() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|(name, ..)| *name)
}

/// The method of a request's path as a label of metrics. Unknown methods share one label, so that callers cannot create series.
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
    use crate::service::served::ELSEWHERE;

    /// A new method needs an entry, and a removed one leaves none.
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
    fn unknown_methods_are_for_admins() {
        let admins = Access::Key(Scope::Admin, Forbidden);
        for path in ["/weft.v1.EventService/Erase", "/other.v1.EventService/GetEvent", "/", "", "//", "/metrics"] {
            assert_eq!(access(path), admins, "{path}");
        }
        assert_eq!(access("/weft.v1.EventService/GetEvent"), Access::Key(Scope::Read, Enforced));
        assert_eq!(access("/grpc.health.v1.Health/Check"), Access::Open);
        assert_eq!(access("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), Access::Open);
    }
}
