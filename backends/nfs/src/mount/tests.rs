//! What is mounted, and what mount.nfs says.

use proptest::prelude::*;

use super::*;

/// As Linux 6.1 shows them; the last but one lies over another.
const MOUNTINFO: &str = "\
22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
40 22 0:34 / /srv/a rw,relatime shared:9 - nfs4 nas:/srv/a rw,vers=4.2,rsize=1048576,hard,proto=tcp,timeo=600,sec=sys,local_lock=none,addr=10.0.0.1
41 22 0:35 / /srv/three\\040b rw,relatime - nfs nas:/srv/b\\040c ro,vers=3,hard,port=2050,nolock,local_lock=all,addr=10.0.0.1
42 22 0:36 /sub /srv/bind rw,relatime - nfs4 nas:/srv/d rw,vers=4.1,hard,local_lock=none
43 22 0:37 / /srv/soft rw,relatime - nfs4 nas:/srv/e rw,vers=4.0,soft,local_lock=none
44 22 0:38 / /srv/over rw,relatime - tmpfs tmpfs rw
garbage
";

fn wanted(change: impl FnOnce(&mut NfsConfig), export: &str) -> Wanted {
    let mut config = NfsConfig::new("nas", export);
    change(&mut config);
    Wanted::new(&config)
}

fn found(wanted: &Wanted) -> Option<PathBuf> {
    let all = mounted(MOUNTINFO);
    let found = all.iter().find(|mounted| wanted.is_met_by(mounted));
    found.map(|mounted| mounted.path.clone())
}

#[test]
fn mounts_are_found() {
    assert_eq!(mounted(MOUNTINFO).len(), 6);
    let a = |change: fn(&mut NfsConfig)| found(&wanted(change, "/srv/a"));
    assert_eq!(a(|_| ()), Some("/srv/a".into()));
    assert_eq!(found(&wanted(|_| (), "/srv/a/")), Some("/srv/a".into()));
    assert_eq!(a(|c| c.vers = Some("4.2".into())), Some("/srv/a".into()));
    assert_eq!(a(|c| c.vers = Some("4".into())), Some("/srv/a".into()));
    assert_eq!(a(|c| c.vers = Some("4.1".into())), None);
    assert_eq!(a(|c| c.vers = Some("3".into())), None);
    assert_eq!(a(|c| c.port = Some(2049)), Some("/srv/a".into()));
    assert_eq!(a(|c| c.port = Some(2050)), None);
    assert_eq!(a(|c| c.sec = Some("sys".into())), Some("/srv/a".into()));
    assert_eq!(a(|c| c.sec = Some("krb5p".into())), None);
    assert_eq!(a(|c| c.proto = Some("tcp".into())), Some("/srv/a".into()));
    assert_eq!(a(|c| c.proto = Some("rdma".into())), None);
    assert_eq!(a(|c| c.host = "other".into()), None);
    assert_eq!(found(&wanted(|_| (), "/srv")), None);
}

#[test]
fn mounts_that_are_not_good_enough_are_not_used() {
    let b = |change: fn(&mut NfsConfig)| found(&wanted(change, "/srv/b c"));
    assert_eq!(b(|_| ()), None, "read-only, and without locks");
    assert_eq!(b(|c| c.force = true), None, "read-only");
    assert_eq!(b(|c| c.read_only = true), Some("/srv/three b".into()));
    assert_eq!(found(&wanted(|_| (), "/srv/d")), None, "a part of it");
    let soft = |change: fn(&mut NfsConfig)| found(&wanted(change, "/srv/e"));
    assert_eq!(soft(|_| ()), None);
    assert_eq!(soft(|c| c.force = true), Some("/srv/soft".into()));
    assert_eq!(soft(|c| c.read_only = true), Some("/srv/soft".into()));
}

#[test]
fn options_are_those_that_were_asked_for() {
    let plain = wanted(|_| (), "/");
    assert_eq!((&*plain.source, &*plain.label), ("nas:/", "nfs://nas/"));
    assert_eq!(plain.options, "nosuid,nodev,noexec,hard");
    let many = wanted(
        |c| {
            c.vers = Some("3".into());
            c.port = Some(20490);
            c.nconnect = Some(4);
            c.nolock = true;
            c.soft = true;
        },
        "/srv/a",
    );
    assert_eq!(many.label, "nfs://nas:20490/srv/a");
    assert_eq!(
        many.options,
        "nosuid,nodev,noexec,soft,vers=3,port=20490,nconnect=4,nolock"
    );
    assert_ne!(many.identity(), wanted(|_| (), "/srv/a").identity());
}

#[test]
fn complaints_have_a_kind() {
    for (said, kind) in [
        (
            "mount.nfs: Failed to resolve server nowhere: Name or service not known\n",
            ErrorKind::NotFound,
        ),
        (
            "mount.nfs: access denied by server while mounting 127.0.0.1:/x\n",
            ErrorKind::PermissionDenied,
        ),
        (
            "mount.nfs: mounting 127.0.0.1:/nix failed, reason given by server: No such file or directory\n",
            ErrorKind::NotFound,
        ),
        (
            "mount.nfs: Protocol not supported\n",
            ErrorKind::Unsupported,
        ),
        (
            "mount.nfs: Connection refused for 127.0.0.1:/x on /mnt\n",
            ErrorKind::Unavailable,
        ),
        ("mount.nfs: something new\n", ErrorKind::Unavailable),
        ("", ErrorKind::Unavailable),
    ] {
        let error = failure(said);
        assert_eq!(error.kind(), kind, "{said}");
        let reason = error.get("reason").expect("a reason");
        assert!(!reason.contains("mount.nfs: ") && !reason.is_empty());
    }
}

proptest! {
    #[test]
    fn any_text_can_be_looked_at(text in "\\PC*", line in "[0-9 /a-z,:\\\\-]{0,80}") {
        let _ = mounted(&text);
        let _ = mounted(&line);
        let _ = unescaped(&text);
        let _ = failure(&text);
    }

    #[test]
    fn what_is_escaped_is_read_back(text in "[a-z \\t\\n\\\\0-9]*") {
        let escaped: String = text
            .chars()
            .map(|c| match c {
                ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(c)),
                c => c.to_string(),
            })
            .collect();
        prop_assert_eq!(unescaped(&escaped), text);
    }
}
