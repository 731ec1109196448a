//! Who had a volume open, and has gone between the store's answer and the look at who it was.

use async_trait::async_trait;
use volmux::iscsi::IscsiBackend;
use volmux::layers::{Fault, FaultPlan, Faulty, When};
use volmux::nfs::DirBackend;
use volmux::{Backend, ErrorKind, PoolUrl, Registry, Result};

use super::*;

/// Directory pools that find a volume in use so often, which nobody uses.
#[derive(Debug)]
struct Used(u64);

#[async_trait]
impl Backend for Used {
    fn schemes(&self) -> &'static [&'static str] {
        &["dir"]
    }

    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        let busy = |call| {
            let fault = Fault::fail(call, When::Before).of("delete_volume");
            fault.with_kind(ErrorKind::Busy)
        };
        let plan = FaultPlan::explicit((1..=self.0).map(busy));
        let pool: Arc<dyn Pool> = Faulty::new(DirBackend.open(url).await?, plan);
        Ok(pool)
    }
}

async fn deleted(scene: &Scene, found_in_use: u64) -> Result<()> {
    let stores = Registry::new().with(Used(found_in_use));
    let registry = Registry::new().with(IscsiBackend::new(stores));
    let pool = registry.open(&scene.url()).await.expect("the array opens");
    create(pool.as_ref(), "a", MIB).await;
    pool.delete_volume(&n("a")).await
}

#[test]
fn what_is_in_use_no_more_is_tried_again_and_what_still_is_is_told() {
    let scene = Scene::new();
    on(async {
        deleted(&scene, 1).await.expect("it is free by now");
        let error = deleted(&scene, 2).await.expect_err("somebody else uses it");
        assert_eq!(error.kind(), ErrorKind::Busy, "{}", told(&error));
    });
}
