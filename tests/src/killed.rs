//! Killing a worker (`crash-worker`), and holding the pool against the worker's log: by
//! `tests/crash.rs` on directories, by `tests/lvm_crash.rs` in volume groups, and by
//! `tests/lvm_power.rs`, which kills its whole machine.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;
use volmux::{AuditOptions, FindingKind, Pool};

use crate::crash::{Images, Op};

/// A worker that runs.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    log: NamedTempFile,
}

impl Worker {
    /// Starts the program on `pool`; returns when it has begun its first operation. The names of
    /// its volumes begin with `prefix`.
    ///
    /// # Panics
    /// If it does not come so far.
    pub fn start(program: &Path, pool: &str, seed: u64, prefix: &str) -> Worker {
        let log = NamedTempFile::new().expect("a log");
        let mut child = Command::new(program)
            .arg(pool)
            .arg(log.path())
            .args([&seed.to_string(), prefix])
            .stdin(Stdio::null())
            .spawn()
            .expect("the worker starts");
        // From the first operation on, else a slow start would be all that is ever hit.
        while std::fs::metadata(log.path()).expect("the log").len() == 0 {
            let ended = child.try_wait().expect("wait");
            assert!(ended.is_none(), "the worker died");
            std::thread::sleep(Duration::from_millis(1));
        }
        Worker { child, log }
    }

    /// Kills it, and returns its log.
    ///
    /// # Panics
    /// If it had ended by itself: an operation failed.
    pub fn kill(mut self) -> String {
        self.child.kill().expect("kill");
        let status = self.child.wait().expect("wait");
        let log = std::fs::read_to_string(self.log.path()).expect("the log");
        assert!(status.code().is_none(), "{status}\n{log}");
        log
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a log says of the pool.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// What it held before the operation in flight.
    pub before: Images,
    /// What it would hold after it.
    pub after: Images,
    /// The operation in flight.
    pub op: Option<Op>,
}

impl Expected {
    /// From what the pool held at first, and the worker's log.
    ///
    /// # Panics
    /// If the log says that an operation failed.
    pub fn new(start: &Images, log: &str) -> Expected {
        let mut before = start.clone();
        let mut op = None;
        for line in log.lines() {
            if let Some(begun) = line.strip_prefix("begin ") {
                op = Some(begun.parse::<Op>().expect("an operation"));
            } else {
                let must_succeed = "an operation that must succeed failed";
                assert_eq!(line, "done", "{must_succeed}:\n{log}");
                before.apply(&op.take().expect("done with what was begun"));
            }
        }
        let mut after = before.clone();
        if let Some(op) = &op {
            after.apply(op);
        }
        Expected { before, after, op }
    }

    /// Asserts that the pool holds what it held before the operation in flight, or after it.
    ///
    /// # Panics
    /// If it does not.
    pub fn assert_holds(&self, found: &Images) {
        let (before, after, op) = (&self.before, &self.after, self.op.as_ref());
        if found == before || found == after {
            return;
        }
        // Of a write or discard that was not acknowledged, any part may have happened.
        if let Some(Op::Write { name, .. } | Op::Discard { name, .. }) = op {
            let mut rest = found.clone();
            let torn = rest.0.remove(name).expect("the volume is there");
            let old = &before.0[name].data;
            let new = &after.0[name].data;
            let old_or_new = torn.data.len() == old.len()
                && (0..old.len()).all(|i| torn.data[i] == old[i] || torn.data[i] == new[i]);
            assert!(old_or_new, "{op:?} left {name} neither old nor new");
            let mut expected = before.clone();
            expected.0.remove(name);
            assert_eq!(names(&rest), names(&expected), "{op:?}");
            assert!(rest == expected, "{op:?} changed another volume");
            return;
        }
        assert_eq!(names(found), names(before), "{op:?}: volumes");
        for (name, image) in &found.0 {
            assert!(*image == before.0[name], "{op:?}: content of {name}");
        }
    }
}

fn names(images: &Images) -> Vec<&str> {
    images.0.keys().map(String::as_str).collect()
}

/// Asserts that `pool` holds what is expected, and that an audit clears it of what is left over:
/// `tidy` sees what it holds whenever an audit finds nothing. Returns that.
///
/// # Panics
/// If it does not.
pub async fn check(pool: &dyn Pool, expected: &Expected, tidy: impl Fn(&Images)) -> Images {
    let found = Images::of(pool).await;
    expected.assert_holds(&found);
    let first = audit(pool, false).await;
    if first.is_empty() {
        tidy(&found);
    }
    let repaired = audit(pool, true).await;
    assert_eq!(first.len(), repaired.len(), "{first:?} {repaired:?}");
    assert_eq!(audit(pool, false).await, Vec::<String>::new());
    assert!(Images::of(pool).await == found, "an audit changed it");
    tidy(&found);
    found
}

/// What an audit finds, apart from what volmux did not make.
async fn audit(pool: &dyn Pool, repair: bool) -> Vec<String> {
    let report = pool.audit(AuditOptions { repair }).await.expect("audit");
    let findings = report.findings.into_iter();
    let own = findings.filter(|f| f.kind != FindingKind::Foreign);
    own.map(|finding| {
        assert_eq!(finding.repaired, repair, "{finding:?}");
        format!("{:?} {}", finding.kind, finding.object)
    })
    .collect()
}
