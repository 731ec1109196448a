//! Names and initiators that mean harm, and processes that do the same at once.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use volmux_core::ErrorKind;
use volmux_iscsi::control::{Export, TargetControl};
use volmux_iscsi_initiator::Credentials;

use crate::scsi;
use crate::server::Server;
use crate::{MIB, ONE, OP, SERIAL, TARGET, TWO, export, within};

#[tokio::test]
async fn names_that_could_be_taken_for_something_else_are_refused() {
    let server = Server::start();
    let control = server.control();
    let path = server.file("disk", MIB);
    let good = || export(&path, MIB);
    let initiator = |name: &str| Export {
        initiators: vec![name.into()],
        ..good()
    };
    let chap = |name: &str, secret: &str| Export {
        chap: Some(Credentials::new(name, secret)),
        ..good()
    };
    let comma = server.file("disk,bstype=null", MIB);
    let line = server.file("disk\nTarget 1: iqn.2026-01.org.example:a", MIB);
    let exports = [
        Export {
            target: "iqn.a,targetname=iqn.b".into(),
            ..good()
        },
        Export {
            target: "iqn.a_b".into(),
            ..good()
        },
        Export {
            target: String::new(),
            ..good()
        },
        Export {
            target: format!("iqn.{}", "a".repeat(220)),
            ..good()
        },
        Export {
            serial: "1,readonly=0".into(),
            ..good()
        },
        Export {
            serial: "1\n".into(),
            ..good()
        },
        Export {
            serial: String::new(),
            ..good()
        },
        Export {
            serial: "1".repeat(37),
            ..good()
        },
        Export {
            size: MIB + 512,
            ..good()
        },
        Export { size: 0, ..good() },
        Export {
            path: "disk".into(),
            ..good()
        },
        Export {
            path: "/dev/null".into(),
            ..good()
        },
        Export {
            path: comma,
            ..good()
        },
        Export {
            path: line,
            ..good()
        },
        initiator("iqn.a:initiator-address=ALL"),
        initiator("ALL"),
        initiator("iqn.a\n"),
        initiator("iqn.a b"),
        chap("a,password=b", "secret"),
        chap("", "secret"),
        chap("a b", "secret"),
        chap("volmux-mark:a", "secret"),
        chap("a", ""),
        chap("a", "sec\0ret"),
        Export {
            mutual_chap: Some(Credentials::new("a", "other")),
            ..chap("a", "secret")
        },
        Export {
            mutual_chap: Some(Credentials::new("b", "secret")),
            ..chap("a", "secret")
        },
        Export {
            mutual_chap: Some(Credentials::new("b", "secret")),
            ..good()
        },
    ];
    within(async {
        for export in &exports {
            for error in [
                control.export(OP, export).await.map(drop),
                control.resize(OP, export).await.map(drop),
            ] {
                let error = error.expect_err(&format!("{export:?}"));
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{export:?}: {error}");
                assert!(!error.to_string().contains("secret="), "{error}");
            }
        }
        for name in ["", "iqn.a\n", "a"] {
            let error = control.unexport(OP, name).await.expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let error = control.deny(OP, TARGET, name).await.expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        let missing = Export {
            path: path.with_file_name("none"),
            ..good()
        };
        let error = control.export(OP, &missing).await.expect_err("missing");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert_eq!(control.list(OP, "").await.expect("a list"), []);
        // What is unusual, but allowed.
        let odd = server.file("a b=%d ü (outgoing)", MIB);
        let mut odd = export(&odd, MIB);
        odd.serial = "z".repeat(36);
        odd.chap = Some(Credentials::new(
            "user=a(outgoing):",
            "a secret, =%s \"".repeat(10),
        ));
        control.export(OP, &odd).await.expect("odd names");
        let mut options = server.options(TARGET, ONE);
        options.chap = odd.chap.clone();
        assert_eq!(scsi::serial(&scsi::login(options).await).await, odd.serial);
        assert_eq!(
            control.list(OP, "").await.expect("a list")[0]
                .unit
                .as_ref()
                .expect("a unit")
                .path,
            odd.path
        );
    })
    .await;
}

/// Logs in under an alias with line breaks.
async fn log_in(server: &Server, target: &str, alias: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.portal()).await.expect("tgtd");
    let keys = format!(
        "InitiatorName={TWO}\0InitiatorAlias={alias}\0TargetName={target}\0\
         SessionType=Normal\0AuthMethod=None\0"
    );
    let [_, high, middle, low] = (keys.len() as u32).to_be_bytes();
    let mut request = vec![0; 48];
    (request[0], request[1]) = (0x43, 0x87);
    request[5..8].copy_from_slice(&[high, middle, low]);
    (request[8], request[13]) = (0x80, 1);
    request.extend_from_slice(keys.as_bytes());
    request.resize(request.len().next_multiple_of(4), 0);
    stream.write_all(&request).await.expect("sent");
    let mut answer = [0; 48];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(answer[36..38], [0, 0], "logged in");
    stream
}

#[tokio::test]
async fn an_initiator_can_not_write_into_the_list_of_targets() {
    let server = Server::start();
    let control = server.control();
    let export = export(&server.file("disk", MIB), MIB);
    // A target of others, who let everybody in.
    server.admin("--mode target --op new --tid 1 --targetname iqn.2026-01.org.example:open");
    server.admin("--mode target --op bind --tid 1 --initiator-address ALL");
    let open = "iqn.2026-01.org.example:open";
    let unit = format!(
        "    LUN information:\n        LUN: 1\n            SCSI SN: {SERIAL}\n            \
         Backing store path: {}\n    ACL information:\n        {ONE}\n",
        export.path.display()
    );
    within(async {
        control.export(OP, &export).await.expect("an export");
        let before = control.list(OP, TARGET).await.expect("a list");
        let harmless = [
            "a alias: b".to_owned(),
            "a".repeat(3000),
            format!("x\n{unit}"),
            "x\n        I_T nexus: 9\n            Initiator: iqn.a alias: none\n".into(),
        ];
        for alias in &harmless {
            let stream = log_in(&server, open, alias).await;
            assert_eq!(
                control.list(OP, TARGET).await.expect("a list"),
                before,
                "{alias}"
            );
            let shown = control.list(OP, open).await.expect("a list").remove(0);
            assert_eq!(shown.sessions.len(), 1, "{alias}");
            assert_eq!(
                (shown.unit, shown.initiators),
                (None, vec!["ALL".to_owned()]),
                "{alias}"
            );
            control.export(OP, &export).await.expect("still");
            drop(stream);
        }
        let id = server.admin("--mode target --op show");
        let id = id
            .lines()
            .find_map(|line| line.strip_suffix(&format!(": {TARGET}")));
        let id = id
            .expect("a target")
            .strip_prefix("Target ")
            .expect("its number")
            .to_owned();
        for alias in [
            format!("x\nTarget {id}: {TARGET}\n{unit}"),
            format!("x\nTarget 3: iqn.2026-01.org.example:none\n{unit}"),
            "x\nTarget ".into(),
        ] {
            let stream = log_in(&server, open, &alias).await;
            let error = control
                .list(OP, TARGET)
                .await
                .expect_err("it can't be told");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            let error = control
                .export(OP, &export)
                .await
                .expect_err("it can't be told");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            // Nobody is kept from shutting others out.
            control.deny(OP, TARGET, ONE).await.expect("denied");
            control.unexport(OP, TARGET).await.expect("it goes");
            drop(stream);
            let start = std::time::Instant::now();
            while let Err(error) = control.export(OP, &export).await {
                assert!(start.elapsed().as_secs() < 20, "{error}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_may_do_the_same_at_once() {
    let server = Server::start();
    let path = server.file("disk", MIB);
    within(async {
        let worker = |number: usize| {
            let control = server.control();
            let mut export = export(&path, MIB);
            export.target = format!("{TARGET}.{}", number % 3);
            let secret = format!("secret-of-{}", number % 3);
            export.chap = Some(Credentials::new(format!("user-{}", number % 3), secret));
            tokio::spawn(async move {
                for _ in 0..5 {
                    control.export(OP, &export).await.expect("an export");
                    control.list(OP, TARGET).await.expect("a list");
                    if number.is_multiple_of(2) {
                        control.unexport(OP, &export.target).await.expect("it goes");
                    }
                }
                control.export(OP, &export).await.expect("an export");
            })
        };
        let workers: Vec<_> = (0..6).map(worker).collect();
        for worker in workers {
            worker.await.expect("no panic");
        }
        let control = server.control();
        assert_eq!(control.list(OP, TARGET).await.expect("a list").len(), 3);
        for number in 0..3 {
            let mut options = server.options(&format!("{TARGET}.{number}"), ONE);
            let secret = format!("secret-of-{number}");
            options.chap = Some(Credentials::new(format!("user-{number}"), secret));
            scsi::login(options).await;
        }
    })
    .await;
}

/// Cut off anywhere, as by a caller that has no more time.
#[tokio::test]
async fn what_was_dropped_is_done_when_it_is_called_again() {
    let server = Server::start();
    let control = server.control();
    let mut export = export(&server.file("disk", MIB), MIB);
    export.chap = Some(Credentials::new("user", "the secret"));
    within(async {
        for round in 0..60_u64 {
            let pause = std::time::Duration::from_micros(150 * (round % 30));
            let cut = async |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>>| {
                // Done or not: both are fine.
                let _ = tokio::time::timeout(pause, work).await;
            };
            cut(Box::pin(async {
                control.export(OP, &export).await.expect("an export");
            }))
            .await;
            control.export(OP, &export).await.expect("an export");
            let mut options = server.options(TARGET, ONE);
            options.chap = export.chap.clone();
            scsi::login(options).await;
            cut(Box::pin(async {
                control.unexport(OP, TARGET).await.expect("it goes");
            }))
            .await;
            if round % 2 == 0 {
                control.unexport(OP, TARGET).await.expect("it goes");
                assert_eq!(control.list(OP, TARGET).await.expect("a list"), []);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let server = Server::start();
    let path = server.file("disk", MIB);
    // Its own tests' programs can be started by anybody from here.
    let directory: PathBuf = path.parent().expect("a directory").into();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).expect("open");
    let socket = directory.join("control.0");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).expect("closed");
    let copy = directory.join("tests");
    // Also if it was built again meanwhile.
    std::fs::copy("/proc/self/exe", &copy).expect("a copy");
    for mode in [0o600, 0o777] {
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(mode)).expect("a mode");
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command
            .arg(&copy)
            .args(["--ignored", "--exact", "hostile::as_somebody_else"]);
        let output = command
            .env("VOLMUX_SOCKET", &socket)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        // So that it is seen to have been run.
        std::io::Write::write_all(&mut std::io::stdout(), &output.stdout).expect("told");
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{mode:o}: {said}"
        );
    }
}

#[tokio::test]
#[ignore = "needs another user: who_may_not_is_told_so runs it"]
async fn as_somebody_else() {
    let socket = std::env::var_os("VOLMUX_SOCKET").expect("a socket");
    let control = volmux_iscsi::control::tgt::Tgt::new(Some(socket.into()));
    let error = control.check(OP).await.expect_err("not allowed");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(error.get("help").is_some(), "{error}");
}
