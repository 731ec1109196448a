//! What is the matter with a thin pool, for whoever has to see to it.

use volmux_core::{Error, ErrorKind};

use crate::dm::{PoolMode, PoolStatus};

/// Why a thin pool does not do what it is asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    kind: ErrorKind,
    pool: String,
    reason: &'static str,
    help: String,
}

impl Trouble {
    /// As the error of an operation.
    pub fn error(self, op: &'static str) -> Error {
        Error::new(self.kind, op)
            .with("pool", self.pool)
            .reason(self.reason)
            .help(self.help)
    }
}

/// Why a pool of this status does not keep what it is told. `None` if it does: one without free
/// space keeps what it has taken.
pub fn of(group: &str, pool: &str, status: PoolStatus) -> Option<Trouble> {
    let trouble = |kind, reason, help| Trouble {
        kind,
        pool: format!("{group}/{pool}"),
        reason,
        help,
    };
    let repair = format!(
        "stop what writes to the pool; deactivate it (`lvchange -an {group}/{pool}`), repair its \
         metadata (`lvconvert --repair {group}/{pool}`, which runs thin_check and thin_repair), \
         activate it, and check what was written lately"
    );
    let state = match status {
        PoolStatus::Failed => {
            let reason = "the thin pool has failed: the kernel refuses all requests to it";
            return Some(trouble(ErrorKind::Corrupt, reason, repair));
        }
        PoolStatus::Ok(state) => state,
    };
    let full = state.metadata.used >= state.metadata.total;
    if full && (state.needs_check || state.mode == PoolMode::ReadOnly) {
        let reason = "the thin pool's metadata is full: changes to it were thrown away";
        let help = format!(
            "{repair}; then extend the metadata: `lvextend --poolmetadatasize +SIZE {group}/{pool}`"
        );
        return Some(trouble(ErrorKind::Corrupt, reason, help));
    }
    if state.needs_check {
        let reason = "the thin pool threw changes away: its metadata needs a check";
        return Some(trouble(ErrorKind::Corrupt, reason, repair));
    }
    if state.mode == PoolMode::ReadOnly {
        let reason = "the thin pool's metadata is read-only: nothing new is kept";
        let help = format!("see the kernel's log for why. If it is damaged: {repair}");
        return Some(trouble(ErrorKind::Unavailable, reason, help));
    }
    None
}

/// A write found no free chunk.
pub fn out_of_space(group: &str, pool: &str) -> Trouble {
    Trouble {
        kind: ErrorKind::NoSpace,
        pool: format!("{group}/{pool}"),
        reason: "the thin pool has no free space left",
        help: format!(
            "extend it (`lvextend -L +SIZE {group}/{pool}`), or delete volumes; then write again"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(line: &str) -> Option<ErrorKind> {
        let status = PoolStatus::parse(line).expect("a status");
        of("vg", "pool", status).map(|trouble| trouble.kind)
    }

    #[test]
    fn each_state_of_a_pool_has_its_cause() {
        let ok = "1 112/1024 9/1024 - rw discard_passdown queue_if_no_space - 256";
        assert_eq!(kind(ok), None);
        assert_eq!(
            kind("1 112/1024 9/9 - out_of_data_space x error_if_no_space -"),
            None
        );
        assert_eq!(
            kind("1 112/1024 9/1024 - ro x y -"),
            Some(ErrorKind::Unavailable)
        );
        assert_eq!(
            kind("1 112/1024 9/1024 - ro x y needs_check"),
            Some(ErrorKind::Corrupt)
        );
        assert_eq!(kind("Fail"), Some(ErrorKind::Corrupt));
        let full = PoolStatus::parse("1 1024/1024 9/1024 - ro x y needs_check").expect("status");
        let error = of("vg", "pool", full).expect("trouble").error("flush");
        let help = error.get("help").expect("help");
        assert!(help.contains("lvconvert --repair vg/pool"), "{help}");
        assert!(help.contains("--poolmetadatasize"), "{help}");
        let full = out_of_space("vg", "pool").error("write_at");
        assert!(full.get("help").expect("help").contains("lvextend"));
    }
}
