//! What the target shows, held against what the store says.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep};
use volmux_core::{
    Access, AttachOptions, AuditOptions, ErrorKind, Finding, FindingKind, Result, Volume, VolumeId,
};

use super::names::volume_of;
use super::pool::Inner;
use super::stale::GRACE;
use crate::control::Exported;

const OP: &str = "audit";
/// How long the store and the target may differ while somebody is attached or detached.
const CHANGE: Duration = Duration::from_secs(2);

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    /// A volume is open, and nobody is logged in.
    Dead {
        name: volmux_core::VolumeName,
        opener: AttachOptions,
    },
    /// A target shows what is attached to nobody for that.
    Leftover {
        target: String,
        sessions: Vec<String>,
    },
    /// Somebody has the volume attached, and the target does not let him in, or lets in others.
    Different {
        name: volmux_core::VolumeName,
        access: Access,
    },
    /// A target of such a name that is not of a volume.
    Foreign { target: String },
}

/// Finds, and if asked removes, what does not fit.
pub async fn exports(inner: &Inner, options: AuditOptions) -> Result<Vec<Finding>> {
    let begun = Instant::now();
    let mut problems = look(inner).await?;
    // Somebody may be on his way in or out.
    while let Some(patience) = problems.iter().map(Problem::patience).max()
        && begun.elapsed() < patience
    {
        sleep(Duration::from_millis(100)).await;
        let now = look(inner).await?;
        problems.retain(|problem| now.contains(problem));
    }
    let mut findings = Vec::new();
    for problem in problems {
        let repaired = match options.repair {
            true => repair(inner, &problem).await,
            false => Ok(false),
        };
        match repaired {
            Ok(repaired) => findings.push(problem.finding(repaired)),
            // Whoever had the volume may have just let it go, or it was deleted: then nothing is wrong.
            Err(error) if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::NotFound) => {
                if look(inner).await?.contains(&problem) {
                    findings.push(problem.finding(false));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(findings)
}

async fn look(inner: &Inner) -> Result<Vec<Problem>> {
    let exported = inner
        .control
        .list(OP, &format!("{}:", inner.prefix))
        .await?;
    let (volumes, whole) = readable(inner).await;
    let by_id: HashMap<VolumeId, &Volume> = volumes.iter().map(|v| (v.id, v)).collect();
    let by_target: HashMap<&str, &Exported> =
        exported.iter().map(|e| (e.target.as_str(), e)).collect();
    let mut problems = Vec::new();
    for shown in &exported {
        let Some((id, access)) = volume_of(&inner.prefix, &shown.target) else {
            problems.push(Problem::Foreign {
                target: shown.target.clone(),
            });
            continue;
        };
        let attached = |volume: &&Volume| volume.attachments.iter().any(|a| a.access == access);
        // It may be of a volume that can't be read, which the store's own audit tells.
        if !whole && !by_id.contains_key(&id) {
            continue;
        }
        if by_id.get(&id).filter(|volume| attached(volume)).is_none() {
            let sessions = shown
                .sessions
                .iter()
                .map(|session| session.initiator.clone());
            problems.push(Problem::Leftover {
                target: shown.target.clone(),
                sessions: sessions.collect(),
            });
        }
    }
    for volume in volumes
        .iter()
        .filter(|volume| !volume.attachments.is_empty())
    {
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let wanted = inner.export_of(volume, access, Default::default());
            let shown = by_target.get(wanted.target.as_str());
            if !wanted.initiators.is_empty() && !shown.is_some_and(|e| fits(e, &wanted.initiators))
            {
                problems.push(Problem::Different {
                    name: volume.name.clone(),
                    access,
                });
            }
        }
        let dead = inner.not_logged_in(OP, volume).await?;
        problems.extend(dead.into_iter().map(|opener| Problem::Dead {
            name: volume.name.clone(),
            opener,
        }));
    }
    Ok(problems)
}

/// The volumes that can be read, and whether these are all.
async fn readable(inner: &Inner) -> (Vec<Volume>, bool) {
    let all: Vec<Result<Volume>> = inner.store.list_volumes().collect().await;
    let found = all.len();
    let volumes: Vec<Volume> = all.into_iter().flatten().collect();
    let whole = volumes.len() == found;
    (volumes, whole)
}

fn fits(shown: &Exported, initiators: &[String]) -> bool {
    shown.unit.is_some()
        && shown.initiators.len() == initiators.len()
        && initiators
            .iter()
            .all(|initiator| shown.initiators.contains(initiator))
}

/// Puts it right if it is still so. What its volume's lock keeps others from is looked at again.
async fn repair(inner: &Inner, problem: &Problem) -> Result<bool> {
    match problem {
        Problem::Foreign { .. } => Ok(false),
        Problem::Dead { name, opener } => {
            inner.bury(OP, name, std::slice::from_ref(opener)).await?;
            Ok(true)
        }
        Problem::Different { name, access } => {
            let volume = inner.look(OP, name).await?;
            if let Some(one) = volume.attachments.iter().find(|a| a.access == *access) {
                inner.renew(OP, name, one).await?;
            }
            Ok(true)
        }
        Problem::Leftover { target, .. } => {
            let Some((id, access)) = volume_of(&inner.prefix, target) else {
                return Ok(false);
            };
            let _lock = inner.locks.lock(OP, id).await?;
            let (volumes, whole) = readable(inner).await;
            let attached = |volume: &Volume| {
                volume.id == id && volume.attachments.iter().any(|a| a.access == access)
            };
            let known = volumes.iter().any(|volume| volume.id == id);
            if (whole || known) && !volumes.iter().any(attached) {
                inner.control.unexport(OP, target).await?;
            }
            Ok(whole || known)
        }
    }
}

impl Problem {
    /// How long it may be the passing state of something that goes on.
    fn patience(&self) -> Duration {
        match self {
            Problem::Foreign { .. } => Duration::ZERO,
            Problem::Dead { .. } => GRACE,
            Problem::Leftover { .. } | Problem::Different { .. } => CHANGE,
        }
    }

    fn finding(self, repaired: bool) -> Finding {
        let (kind, object, detail) = match self {
            Problem::Dead { name, opener } => (
                FindingKind::Leftover,
                name.to_string(),
                format!(
                    "it is open as {}, and nobody is logged in there any more",
                    opener.holder
                ),
            ),
            Problem::Leftover { target, sessions } if sessions.is_empty() => (
                FindingKind::Leftover,
                target,
                "the target shows what is attached to nobody".into(),
            ),
            Problem::Leftover { target, sessions } => (
                FindingKind::Leftover,
                target,
                format!(
                    "the target shows what is attached to nobody, and these are logged in: {}",
                    sessions.join(", ")
                ),
            ),
            Problem::Different { name, access } => (
                FindingKind::Unfinished,
                name.to_string(),
                format!(
                    "it is attached, and the target does not show it to those who have it for {}",
                    match access {
                        Access::ReadOnly => "reading",
                        Access::ReadWrite => "writing",
                    }
                ),
            ),
            Problem::Foreign { target } => (
                FindingKind::Foreign,
                target,
                "a target whose name begins as those of this pool do, and that is not of a volume"
                    .into(),
            ),
        };
        Finding {
            kind,
            object,
            detail,
            bytes: None,
            repaired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::names::target;

    #[test]
    fn whom_a_target_lets_in_has_to_be_those_who_have_it() {
        let shown = |initiators: &[&str]| Exported {
            target: target("iqn.2026-11.a:b", VolumeId::random(), Access::ReadWrite),
            unit: Some(crate::control::ExportedUnit {
                lun: 1,
                path: "/x".into(),
                serial: String::new(),
                size: Some(0),
                read_only: false,
            }),
            initiators: initiators.iter().map(|name| (*name).to_owned()).collect(),
            sessions: Vec::new(),
        };
        let wanted = ["iqn.a".to_owned(), "iqn.b".to_owned()];
        assert!(fits(&shown(&["iqn.b", "iqn.a"]), &wanted));
        for other in [
            &["iqn.a"][..],
            &["iqn.a", "iqn.c"],
            &["iqn.a", "iqn.b", "iqn.c"],
        ] {
            assert!(!fits(&shown(other), &wanted), "{other:?}");
        }
        let mut without = shown(&["iqn.a", "iqn.b"]);
        without.unit = None;
        assert!(!fits(&without, &wanted));
    }
}
