//! The services of this port, by the descriptors that are compiled in: for reflection and health.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// Services of the package that other processes serve.
pub(crate) const ELSEWHERE: [&str; 2] = ["IngestService", "EventHandler"];

/// The full names of the services.
pub(super) fn names() -> Vec<String> {
    let files = descriptors().file;
    let names = files.iter().flat_map(|file| {
        file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())).collect::<Vec<_>>()
    });
    names.collect()
}

/// The files that describe them, and those that these import: without other services, and without messages that are only stored.
pub(super) fn descriptors() -> FileDescriptorSet {
    // Compiled in: what cannot be read shows in every test, and costs only reflection and health.
    let mut set = FileDescriptorSet::decode(weft_proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
    for file in &mut set.file {
        file.service.retain(|service| !ELSEWHERE.contains(&service.name()));
    }
    let mut needed: BTreeSet<String> = BTreeSet::new();
    let serving = set.file.iter().filter(|file| !file.service.is_empty());
    let mut open: Vec<String> = serving.map(|file| file.name().to_owned()).collect();
    while let Some(name) = open.pop() {
        let imports = set.file.iter().filter(|file| file.name() == name).flat_map(|file| &file.dependency);
        if needed.insert(name.clone()) {
            open.extend(imports.cloned());
        }
    }
    set.file.retain(|file| needed.contains(file.name()));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients generate code for what is described: nothing of the log's inside, and nothing that another port serves.
    #[test]
    fn only_what_is_served_is_described() {
        let names = names();
        assert!(names.iter().any(|name| name == "weft.v1.AuditService"), "{names:?}");
        assert!(names.iter().all(|name| !ELSEWHERE.iter().any(|other| name.ends_with(other))), "{names:?}");
        let files: Vec<_> = descriptors().file.into_iter().map(|file| file.name().to_owned()).collect();
        assert!(!files.iter().any(|file| file.contains("internal")), "{files:?}");
        assert!(files.iter().any(|file| file.ends_with("timestamp.proto")), "{files:?}");
    }
}
