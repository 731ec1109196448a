//! What nobody waits for any more is stopped there too.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde_json::json;
use tokio::sync::Notify;
use volmux::{ByteSize, Control, CopyOptions, CreateOptions, ErrorKind, Pool};

use crate::common::{alive, wait_until};
use crate::host::{Host, PROGRAM, name, open};

/// Tells that it runs, waits for the end of its standard input as volmux does, and tells of that.
const WAITS: &str = "cd \"${0%/*}\"; echo > runs; cat >/dev/null; echo > stopped";

#[tokio::test]
async fn a_dropped_call_is_stopped_there() {
    let host = Host::start();
    let here = host.pool_by(WAITS).await;
    let web = name("web");
    let call = here.volume(&web);
    tokio::select! {
        found = call => panic!("{found:?}"),
        () = until(&host, "runs") => {}
    }
    host.written("stopped");
    here.usage().await.expect("the connection is still there");
}

/// Waits without keeping the runtime.
async fn until(host: &Host, file: &str) {
    while !host.place.path(file).exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_dropped_list_is_stopped_there() {
    let host = Host::start();
    let here = host.pool_by(WAITS).await;
    let mut list = here.list_volumes();
    tokio::select! {
        item = list.next() => panic!("{item:?}"),
        () = until(&host, "runs") => {}
    }
    drop(list);
    host.written("stopped");
}

#[tokio::test]
async fn a_deadline_ends_a_call_and_the_program_there() {
    let host = Host::start();
    let mut config = host.config();
    config.program = host.program(WAITS);
    config.deadline = Duration::from_secs(15);
    config.work_deadline = Duration::from_secs(15);
    // On a busy machine connecting may take longer than that.
    let mut opened = open(config.clone()).await;
    for _ in 0..10 {
        if opened
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::TimedOut)
        {
            opened = open(config.clone()).await;
        }
    }
    let here = opened.expect("open");
    let (web, copy) = (name("web"), name("copy"));
    let mut list = here.list_volumes();
    let (found, listed, copied) = tokio::join!(
        here.volume(&web),
        list.next(),
        here.copy_volume(&web, &copy, CopyOptions::default())
    );
    for error in [
        found.expect_err("volume"),
        listed.expect("one").expect_err("list"),
        copied.expect_err("copy"),
    ] {
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(
            error.get("host").is_some() && error.is_retryable(),
            "{error}"
        );
    }
    host.written("stopped");
}

#[tokio::test]
async fn a_cancelled_copy_cleans_up_there_and_is_waited_for() {
    let host = Host::start();
    let error = json!({
        "schema": "volmux.error.v1", "kind": "TimedOut", "op": "copy_volume",
        "context": {"reason": "stopped"}, "cause": [], "retryable": true,
    });
    let body = r#"cd "${0%/*}"
echo '{"schema":"volmux.progress.v1","what":"copy","done":1,"total":9}' >&2
cat >/dev/null
echo 'standard input has ended: stopping and cleaning up' >&2
echo > cleaned
echo 'ERROR' >&2
exit 22"#;
    let body = body.replace("ERROR", &error.to_string());
    let here = host.pool_by(&body).await;
    let begun = Arc::new(Notify::new());
    let told = begun.clone();
    let control = Control::new().with_progress(move |_| told.notify_one());
    let options = CopyOptions {
        control: control.clone(),
    };
    let (a, b) = (name("a"), name("b"));
    let stop = async {
        begun.notified().await;
        control.cancel();
    };
    let (copied, ()) = tokio::join!(here.copy_volume(&a, &b, options), stop);
    let error = copied.expect_err("cancelled");
    assert_eq!(
        (error.kind(), error.op()),
        (ErrorKind::TimedOut, "copy_volume")
    );
    assert_eq!(error.get("reason"), Some("cancelled by the caller"));
    assert!(host.place.path("cleaned").exists(), "it was waited for");
}

#[tokio::test]
async fn the_program_itself_stops_with_its_caller() {
    let host = Host::start();
    let options = CreateOptions::thin(ByteSize::mib(1));
    let there = host.there().await;
    there
        .create_volume(&name("web"), options)
        .await
        .expect("create");
    // It would serve the volume for ever.
    let body = format!(
        "cd \"${{0%/*}}\"; echo $$ > pid; mv pid runs
         exec '{PROGRAM}' --stop-at-eof -p '{}' export web --socket socket",
        host.place.url()
    );
    let here = host.pool_by(&body).await;
    let web = name("web");
    tokio::select! {
        found = here.volume(&web) => panic!("{found:?}"),
        () = until(&host, "socket") => {}
    }
    let pid = host.written("runs");
    wait_until("the program ends", || !alive(pid.trim()));
    assert!(!host.place.path("socket").exists(), "it has cleaned up");
}
