//! No secret is ever in an error, in what is shown for debugging, or in a log.

use std::io;
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::server::{Fault, PASSWORD};

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_secret_is_shown() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // For all threads, those of other tests too: none may log a secret.
    tracing::subscriber::set_global_default(subscriber).expect("the only one");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let shown = runtime.expect("a runtime").block_on(provoke());
    let log = log.0.lock().unwrap_or_else(PoisonError::into_inner);
    let log = String::from_utf8_lossy(&log);
    assert!(
        log.contains("vol_list at localhost"),
        "nothing was logged: {log}"
    );
    let encoded = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(format!("admin:{PASSWORD}"))
    };
    for secret in ["canary", &encoded] {
        for text in shown.iter().map(String::as_str).chain([log.as_ref()]) {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

/// Everything that goes wrong and can be shown.
async fn provoke() -> Vec<String> {
    let server = Server::new().await;
    let mut config = server.config();
    config.chap_user = Some("host".into());
    config.chap_secret_file = Some(server.secret("chap", "canary-secret-1"));
    config.mutual_chap_user = Some("array".into());
    config.mutual_chap_secret_file = Some(server.secret("mutual", "canary-secret-2"));
    let pool = TargetdPool::open(config.clone(), Arc::new(Closed))
        .await
        .expect("open");
    create(&pool, "a", 4).await;
    let attached = pool
        .attach_volume(&n("a"), attach(ONE, Access::ReadWrite))
        .await;
    let mut shown = vec![
        format!("{pool} {pool:?} {config:?}"),
        format!("{:?}", attached.expect("attached")),
    ];
    // The service tells them: of the password, of what is sent of it, and of the CHAP secrets.
    for said in [
        PASSWORD,
        "Basic YWRtaW46Y2FuYXJ5LXBhc3N3b3JkLTdkMWY=",
        "canary-secret-2",
    ] {
        server.fault("vol_list", Fault::Error(-1, format!("ValueError: {said}")));
        let failed = pool.volume(&n("a")).await.expect_err("it fails");
        assert!(failed.to_string().contains("a secret is in it"), "{failed}");
        shown.push(format!("{failed} {failed:?}"));
        for _ in 0..3 {
            let body =
                format!(r#"{{"id": 1, "result": [{{"name": "{said}", "size": "{said}"}}]}}"#);
            server.fault("vol_list", Fault::Body(body));
        }
        let failed = pool.volume(&n("a")).await.expect_err("it fails");
        shown.push(format!("{failed} {failed:?}"));
    }
    pool.detach_volume(&n("a"), &holder(ONE))
        .await
        .expect("detached");
    let told = Fault::Error(-1, "RTSLibError: canary-secret-1".into());
    for fault in [told, Fault::Status(401), Fault::Body("{\"canary".into())] {
        for _ in 0..3 {
            server.fault("initiator_set_auth", fault.clone());
        }
        let failed = pool
            .attach_volume(&n("a"), attach(ONE, Access::ReadWrite))
            .await;
        let failed = failed.expect_err("it fails");
        shown.push(format!("{failed} {failed:?}"));
    }
    shown
}
