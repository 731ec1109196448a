//! Text for people.

use std::fmt::Display;
use std::time::Duration;

use volmux::{Access, AuditReport, ByteSize, Collected, Pool, Pressure, Sharing, Usage, Volume};

use super::rfc3339;

/// Lines of `key  value`, with the values below each other.
#[derive(Debug, Default)]
struct Fields(Vec<(String, String)>);

impl Fields {
    fn add(&mut self, key: &str, value: impl Display) {
        self.0.push((key.to_owned(), value.to_string()));
    }

    fn render(&self) -> String {
        let width = self.0.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        let lines = self
            .0
            .iter()
            .map(|(key, value)| format!("{key:width$}  {value}"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// `10 GiB (10737418240 bytes)`; small sizes only once.
fn size(size: ByteSize) -> String {
    if size.bytes() < 1024 {
        size.to_string()
    } else {
        format!("{size} ({} bytes)", size.bytes())
    }
}

fn size_or_unknown(known: Option<ByteSize>) -> String {
    known.map_or_else(|| "not known".into(), size)
}

/// What sort of volume it is, in a word.
fn volume_type(volume: &Volume) -> String {
    match &volume.origin {
        Some(origin) => origin.kind.to_string(),
        None => "volume".into(),
    }
}

/// Everything about a volume.
pub fn volume_text(volume: &Volume) -> String {
    let mut fields = Fields::default();
    fields.add("name", &volume.name);
    fields.add("id", volume.id);
    match &volume.origin {
        Some(o) => fields.add(
            "type",
            format!("{} of {} ({})", o.kind, o.parent_name, o.parent_id),
        ),
        None => fields.add("type", "volume"),
    }
    fields.add("size", size(volume.virtual_size));
    fields.add("allocated", size_or_unknown(volume.allocated));
    fields.add("exclusive", size_or_unknown(volume.exclusive));
    if let Some(fragments) = volume.fragments {
        fields.add("fragments", fragments);
    }
    if let Some(depth) = volume.depth {
        fields.add("depth", depth);
    }
    fields.add("provisioning", volume.provisioning);
    fields.add("created", rfc3339(volume.created, false));
    for attached in &volume.attachments {
        let access = match attached.access {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "read-write",
        };
        let shared = match attached.sharing {
            Sharing::Exclusive => "",
            Sharing::Shared => ", shared",
        };
        fields.add(
            "attached",
            format!("to {} ({access}{shared})", attached.holder),
        );
    }
    fields.render()
}

/// The heading of a list.
pub fn list_heading() -> String {
    format!(
        "{:<32} {:>10} {:>10} {:<8} {:<20} PARENT",
        "NAME", "SIZE", "ALLOCATED", "TYPE", "CREATED"
    )
}

/// One line of a list.
pub fn list_line(volume: &Volume) -> String {
    let allocated = volume
        .allocated
        .map_or_else(|| "-".into(), |a| a.to_string());
    let parent = volume
        .origin
        .as_ref()
        .map_or("-", |o| o.parent_name.as_str());
    format!(
        "{:<32} {:>10} {allocated:>10} {:<8} {:<20} {parent}",
        volume.name,
        volume.virtual_size,
        volume_type(volume),
        rfc3339(volume.created, false),
    )
}

/// What was made, in a line.
pub fn made_line(volume: &Volume) -> String {
    let text = format!(
        "{} ({}, {}",
        volume.name, volume.virtual_size, volume.provisioning
    );
    match &volume.origin {
        Some(o) => format!("{text}, {} of {})", o.kind, o.parent_name),
        None => format!("{text})"),
    }
}

/// Everything about a pool.
pub fn pool_text(pool: &dyn Pool, usage: &Usage) -> String {
    let policy = pool.policy();
    let mut fields = Fields::default();
    fields.add("pool", pool);
    fields.add("pressure", policy.pressure(usage));
    fields.add("total", size(usage.total));
    fields.add(
        "used",
        format!("{}, {:.1} %", size(usage.used), usage.used_percent()),
    );
    fields.add("free", size(usage.free));
    fields.add(
        "provisioned",
        format!(
            "{}, over-commit {:.2}",
            size(usage.provisioned),
            usage.overcommit()
        ),
    );
    if let Some(m) = usage.metadata {
        let percent = usage.metadata_percent();
        fields.add(
            "metadata",
            format!("{} of {}, {percent:.1} %", m.used, m.total),
        );
    }
    if let Some(time) = usage.time_to_full {
        // To the hour, or to the minute on the last day.
        let unit = if time.as_secs() > 86_400 { 3600 } else { 60 };
        let rounded = Duration::from_secs(time.as_secs() / unit * unit);
        let shown = humantime::format_duration(rounded);
        fields.add("full in", format!("{shown}, at the pace of late"));
    }
    fields.add("warn mark", format!("{} %", policy.warn_percent));
    fields.add("refuse mark", format!("{} %", policy.refuse_percent));
    fields.add(
        "over-commit limit",
        policy
            .overcommit_limit
            .map_or_else(|| "none".into(), |l| l.to_string()),
    );
    let mut capabilities = Fields::default();
    for (name, support) in pool.capabilities().iter() {
        capabilities.add(&format!("  {name}"), support);
    }
    format!(
        "{}\n\ncapabilities\n{}",
        fields.render(),
        capabilities.render()
    )
}

/// What an audit found.
pub fn audit_text(report: &AuditReport, would_repair: bool) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let bytes = finding
            .bytes
            .map_or_else(String::new, |b| format!(" ({b})"));
        let state = match (finding.repaired, would_repair) {
            (true, _) => ", repaired",
            (false, true) if repairable(finding.kind) => ", would be repaired",
            (false, _) => "",
        };
        text.push_str(&format!(
            "{}: {}{bytes}{state}\n  {}\n",
            finding.kind, finding.object, finding.detail
        ));
    }
    let left = report.findings.iter().filter(|f| !f.repaired).count();
    let verdict = match (report.is_clean(), left) {
        (true, 0) => "clean".to_owned(),
        (true, _) => format!("clean, {left} foreign"),
        (false, _) => format!("{left} findings left"),
    };
    text.push_str(&format!("{} volumes, {verdict}", report.volumes));
    text
}

/// What a collection of garbage gave back.
pub fn collected_text(collected: &Collected) -> String {
    format!(
        "{} freed, {} objects removed",
        collected.freed, collected.objects
    )
}

/// Whether a repair does something about such a finding.
pub fn repairable(kind: volmux::FindingKind) -> bool {
    use volmux::FindingKind;
    matches!(kind, FindingKind::Leftover | FindingKind::Unfinished)
}

/// A warning for a pool that fills up.
pub fn pressure_text(pool: &dyn Pool, usage: &Usage) -> Option<String> {
    let policy = pool.policy();
    let pressure = policy.pressure(usage);
    (pressure != Pressure::Normal).then(|| {
        let metadata = match usage.metadata {
            Some(_) => format!(", its metadata {:.1} %", usage.metadata_percent()),
            None => String::new(),
        };
        format!(
            "pool {pool} is {:.1} % full{metadata} (warn mark {} %, refuse mark {} %): \
             delete volumes or add space",
            usage.used_percent(),
            policy.warn_percent,
            policy.refuse_percent
        )
    })
}

/// A warning for a volume in too many pieces.
pub fn fragments_text(volume: &Volume) -> Option<String> {
    let fragments = volume
        .fragments
        .filter(|f| *f > Volume::FRAGMENTS_WARNING)?;
    Some(format!(
        "{} lies in {fragments} pieces, which slows its snapshots and clones down: \
         a copy lies in few",
        volume.name
    ))
}

#[cfg(test)]
mod tests {
    use volmux::{VolumeId, VolumeName};

    use super::*;

    #[test]
    fn long_names_push_the_columns_but_are_whole() {
        let name = VolumeName::new("x".repeat(100)).expect("name");
        let mut volume = Volume::new(name.clone(), VolumeId::random(), ByteSize::gib(1));
        volume.created = std::time::UNIX_EPOCH;
        let line = list_line(&volume);
        assert!(line.starts_with(name.as_str()));
        assert!(
            line.ends_with("     1 GiB          - volume   1970-01-01T00:00:00Z -"),
            "{line}"
        );
    }

    #[test]
    fn many_fragments_are_warned_of() {
        let name = VolumeName::new("a").expect("name");
        let mut volume = Volume::new(name, VolumeId::random(), ByteSize::gib(1));
        volume.fragments = Some(Volume::FRAGMENTS_WARNING);
        assert_eq!(fragments_text(&volume), None);
        volume.fragments = Some(Volume::FRAGMENTS_WARNING + 1);
        assert!(
            fragments_text(&volume)
                .expect("warning")
                .contains("10001 pieces")
        );
    }
}
