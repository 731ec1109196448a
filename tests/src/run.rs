//! Running one case.

use std::time::Duration;

use volmux::Support;

use crate::cases::unsupported::assert_unsupported;
use crate::{CASES, Case, Ctx, Expect, PoolSettings, Storage};

/// A case that takes longer than this hangs. It is far above what any case takes, also in the lab.
const HANGS_AFTER: Duration = Duration::from_secs(1200);

/// Runs a test's future to its end, with threads to run others beside it.
///
/// # Panics
/// If there is no room for a thread.
pub fn on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(future)
}

/// Runs the case called `name` on a pool of its own.
///
/// # Panics
/// If the case fails, or there is none of that name.
pub fn run_case(name: &str, make_storage: &dyn Fn() -> Box<dyn Storage>, expect: Expect) {
    let case = CASES
        .iter()
        .find(|case| case.name == name)
        .unwrap_or_else(|| panic!("there is no case {name}"));
    // Before the runtime, whose threads must inherit this thread's mounts.
    let storage = make_storage();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let fixture = storage.make_pool(PoolSettings::default()).await;
        let ctx = Ctx::new(expect, storage.as_ref(), fixture);
        let run = async {
            let missing: Vec<&str> = missing_needs(case, &expect).collect();
            if missing.is_empty() {
                (case.run)(&ctx).await;
            }
            for capability in missing {
                assert_unsupported(&ctx, capability).await;
            }
            ctx.assert_sound().await;
        };
        if tokio::time::timeout(HANGS_AFTER, run).await.is_err() {
            panic!("case {name} hangs");
        }
    });
}

/// The capabilities that the case needs and the pool is not expected to have.
fn missing_needs(case: &Case, expect: &Expect) -> impl Iterator<Item = &'static str> {
    let capabilities = expect.capabilities;
    case.needs.iter().copied().filter(move |need| {
        let mut known = capabilities.iter();
        known.any(|(name, support)| name == *need && support == Support::None)
    })
}
