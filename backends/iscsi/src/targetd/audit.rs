//! What interrupted work leaves on the array.

use std::collections::BTreeMap;

use volmux_core::{
    Access, AuditReport, ByteSize, Collected, Finding, FindingKind, Result, VolumeName,
};

use super::array::Array;
use super::calls::{ListedExport, ListedVolume};
use super::{copy, exports, names};

pub(super) async fn audit(array: &Array, repair: bool) -> Result<AuditReport> {
    const OP: &str = "audit";
    let volumes = array.list(OP).await?;
    let all = array.exports(OP).await?;
    let mut report = AuditReport::default();
    for volume in &volumes {
        match VolumeName::new(&volume.name) {
            _ if names::is_hidden(&volume.name) => {
                report.findings.push(hidden(array, volume, repair).await);
            }
            Ok(_) => {
                report.volumes += 1;
                report.findings.extend(attached(array, volume, &all));
            }
            Err(_) => report.findings.push(finding(
                FindingKind::Foreign,
                &volume.name,
                "this can't be the name of a volume".into(),
            )),
        }
    }
    report.findings.extend(strangers(array, &volumes, &all));
    Ok(report)
}

/// Gives back what copies left long ago.
pub(super) async fn collect(array: &Array) -> Result<Collected> {
    const OP: &str = "collect_garbage";
    let mut collected = Collected::default();
    for volume in array.list(OP).await? {
        if names::is_left_over(&volume.name) {
            copy::remove(array, OP, &volume.name).await?;
            collected.objects += 1;
        }
    }
    Ok(collected)
}

fn finding(kind: FindingKind, object: &str, detail: String) -> Finding {
    Finding {
        kind,
        object: object.to_owned(),
        detail,
        bytes: None,
        repaired: false,
    }
}

/// What a copy needs, or needed.
async fn hidden(array: &Array, volume: &ListedVolume, repair: bool) -> Finding {
    let old = names::is_left_over(&volume.name);
    let detail = match old {
        true => "a copy that was cut short left it behind",
        false => "a copy needs it, or was cut short: after three days it counts as left over",
    };
    let mut found = finding(FindingKind::Leftover, &volume.name, detail.into());
    found.bytes = Some(ByteSize::new(volume.size));
    if old && repair {
        match copy::remove(array, "audit", &volume.name).await {
            Ok(()) => found.repaired = true,
            Err(error) => found.detail = format!("{detail}; it can't be removed: {error}"),
        }
    }
    found
}

/// Attachments that can't be meant.
fn attached(array: &Array, volume: &ListedVolume, all: &[ListedExport]) -> Vec<Finding> {
    let mut found = Vec::new();
    let attachments = exports::attachments(array, &volume.uuid, all);
    let writers = attachments
        .iter()
        .filter(|a| a.access == Access::ReadWrite)
        .map(|a| a.holder.as_str());
    let writers: Vec<&str> = writers.collect();
    if writers.len() > 1 {
        found.push(finding(
            FindingKind::Unfinished,
            &volume.name,
            format!(
                "several may write to it: detach all but one of {}",
                writers.join(", ")
            ),
        ));
    }
    let mut luns: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for export in all.iter().filter(|export| export.vol_uuid == volume.uuid) {
        luns.entry(&export.initiator_wwn)
            .or_default()
            .push(export.lun);
    }
    for (initiator, luns) in luns.iter().filter(|(_, luns)| luns.len() > 1) {
        found.push(finding(
            FindingKind::Unfinished,
            &volume.name,
            format!("{initiator} has it under the numbers {luns:?}: to detach it ends them all"),
        ));
    }
    found
}

/// Exports that are said to be of this pool, of what it does not have.
fn strangers<'a>(
    array: &'a Array,
    volumes: &'a [ListedVolume],
    all: &'a [ListedExport],
) -> impl Iterator<Item = Finding> + 'a {
    let known = |export: &ListedExport| volumes.iter().any(|v| v.uuid == export.vol_uuid);
    let ours = |export: &&ListedExport| export.pool == array.config.pool;
    let strange = all.iter().filter(ours).filter(move |e| !known(e));
    strange.map(|export| {
        // Of two thin pools in one group targetd takes all exports for those of one of them
        // (`lvm.py`, `dev2pool_name`): it may well be in use.
        finding(
            FindingKind::Foreign,
            &export.vol_name,
            format!(
                "it is exported to {}, and not in the pool: it may be of another pool in the same \
                 volume group",
                export.initiator_wwn
            ),
        )
    })
}
