use std::fs;
use std::os::unix::fs::PermissionsExt;

use futures::TryStreamExt;

use super::*;

const HEAD: &str = r#"<superblock uuid="" time="1" transaction="2" data_block_size="128">"#;

/// Runs a stand-in for a tool, and gives what comes out of its list.
async fn listed(script: &str, range: ByteRange) -> Result<Vec<ByteRange>> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tool");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
    // Another thread may be starting a child that still has the script open for writing.
    let tool = loop {
        match Tool::start("extents", &path, &[], Path::new("/dev/x")) {
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {}
            started => break started.expect("start"),
        }
    };
    let (sink, source) = mpsc::channel(2);
    let list = List::new(Subject::Device(1));
    let work = tokio::spawn(async move { pump(tool, list, range, &sink).await });
    received("extents", source, work).try_collect().await
}

fn everything() -> ByteRange {
    ByteRange::new(0, u64::MAX)
}

/// A dump of `count` chunks that don't touch.
fn many(count: u64, mapped: u64) -> String {
    format!(
        "echo '{HEAD}'\necho '<device dev_id=\"1\" mapped_blocks=\"{mapped}\">'\n\
         seq 0 3 {} | sed 's:.*:<single_mapping origin_block=\"&\" data_block=\"0\" time=\"0\"/>:'\n\
         echo '</device>'\necho '</superblock>'",
        (count - 1) * 3
    )
}

#[tokio::test]
async fn a_long_list_comes_out_whole() {
    let found = listed(&many(10_000, 10_000), everything())
        .await
        .expect("whole");
    assert_eq!(found.len(), 10_000);
    assert_eq!(found[9999], ByteRange::new(9999 * 3 * 65_536, 65_536));
}

#[tokio::test]
async fn a_short_range_ends_the_tool_early() {
    let script = format!(
        "{}\nsleep 1000",
        many(10, 10).replace("echo '</device>'", "exec sleep 1000")
    );
    let range = ByteRange::from_to(65_536 * 3 + 5, 65_536 * 6 + 7);
    let found = listed(&script, range).await.expect("what is in the range");
    let expected = [
        ByteRange::from_to(65_536 * 3 + 5, 65_536 * 4),
        ByteRange::from_to(65_536 * 6, 65_536 * 6 + 7),
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_list_that_is_not_whole_is_an_error() {
    let good = many(5, 5);
    for (script, kind) in [
        (many(5, 6), ErrorKind::Corrupt),
        (many(5, 4), ErrorKind::Corrupt),
        (
            good.replace("echo '</superblock>'", ""),
            ErrorKind::Unavailable,
        ),
        (
            good.replace("echo '</superblock>'", "printf '</superbl'"),
            ErrorKind::Unavailable,
        ),
        (
            good.replace("echo '</superblock>'", "kill -9 $$"),
            ErrorKind::Unavailable,
        ),
        (format!("{good}\nexit 3"), ErrorKind::Unavailable),
        (
            good.replace("dev_id=\"1\"", "dev_id=\"2\""),
            ErrorKind::Unsupported,
        ),
        (
            format!("echo '{HEAD}'; echo '</superblock>'"),
            ErrorKind::NotFound,
        ),
        (
            good.replace("echo '</device>'", "echo '<what/>'"),
            ErrorKind::Unsupported,
        ),
        (
            good.replace("echo '</device>'", "echo '\\0377'"),
            ErrorKind::Unsupported,
        ),
        (
            good.replace("echo '</device>'", "head -c 9999 /dev/zero"),
            ErrorKind::Unsupported,
        ),
        ("true".into(), ErrorKind::Unavailable),
    ] {
        let error = listed(&script, everything()).await.expect_err(&script);
        assert_eq!(error.kind(), kind, "{script}: {error:?}");
    }
}

#[tokio::test]
async fn what_the_tool_complains_of_is_told_but_not_all_of_it() {
    let script = "echo 'no current metadata snap' >&2; yes >&2 & sleep 0.1; kill $!; exit 1";
    let error = listed(script, everything()).await.expect_err("failed");
    assert_eq!(
        error.get("reason"),
        Some("no current metadata snap"),
        "{error:?}"
    );
    let script = "echo 'Unable to find mapping tree for snap2 (9)' >&2; exit 1";
    let error = listed(script, everything()).await.expect_err("failed");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_tool_is_given_nothing_of_the_environment() {
    let script = format!(
        "[ \"$(env | grep -vc -e LC_ALL=C -e ^PWD= -e ^_= -e SHLVL)\" = 0 ] || exit 7\n{}",
        many(1, 1)
    );
    listed(&script, everything()).await.expect("only LC_ALL");
}

#[tokio::test]
async fn a_panic_is_an_error_of_the_stream() {
    let (sink, source) = mpsc::channel(2);
    let work = tokio::spawn(async move {
        let extents = vec![ByteRange::new(0, 1)];
        sink.send(extents).await.expect("somebody listens");
        panic!("meant to happen in this test");
    });
    let items: Vec<Result<ByteRange>> = received("extents", source, work).collect().await;
    assert!(items[0].is_ok());
    assert_eq!(
        items[1].as_ref().expect_err("a panic").kind(),
        ErrorKind::Internal
    );
    assert_eq!(items.len(), 2);
}
