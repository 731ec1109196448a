//! What tgtd shows: the text that `tgtadm` prints.
//!
//! Part of it comes from initiators: what they call themselves (`InitiatorAlias`) is printed as
//! they sent it, line breaks and all, up to 1023 bytes with what stands around it. So who logs in
//! could write whole targets into it. Names of targets therefore are taken from the list of the
//! driver, where nothing else stands, sessions from the list of a target's connections; and a line
//! that looks like the beginning of a target, but is none that there is, or comes twice, is not
//! guessed about.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A target, as far as the list of all tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub id: i32,
    pub name: String,
    /// Whether it lets anybody in, and does what it is told.
    pub ready: bool,
    /// Seconds between two pings, if it sends any.
    pub ping_interval: Option<u32>,
    pub has_sessions: bool,
    pub units: Vec<Unit>,
    /// Whose secrets initiators prove; and the one that the target proves.
    pub accounts: Vec<String>,
    pub outgoing: Option<String>,
    /// Names and addresses of initiators that are let in.
    pub allowed: Vec<String>,
}

impl Target {
    /// The logical unit of that number.
    pub fn unit(&self, lun: u64) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.lun == lun)
    }

    /// Whether an account is bound to it.
    pub fn needs(&self, account: &str) -> bool {
        let outgoing = self.outgoing.as_deref() == Some(account);
        outgoing || self.accounts.iter().any(|name| name == account)
    }
}

/// A logical unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    pub lun: u64,
    pub id: String,
    pub serial: String,
    /// Size and block size, rounded as tgtd does it.
    pub size: String,
    pub read_only: bool,
    pub thin: bool,
    pub store: String,
    pub path: PathBuf,
}

/// A connection with a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub session: u64,
    pub connection: u32,
    pub initiator: String,
    pub address: Option<String>,
}

/// The targets of all drivers: number, name, and whether it is the iSCSI driver's. `None` if that
/// driver is not ready.
pub fn drivers(text: &[u8]) -> Option<Vec<(i32, String, bool)>> {
    let mut targets = Vec::new();
    let (mut ready, mut ours) = (false, false);
    for line in lines(text) {
        if let Some((id, name)) = line.strip_prefix(b"        ").and_then(target) {
            targets.push((id, name, ours));
        } else if let Some(driver) = line.strip_prefix(b"    ") {
            ours = driver.starts_with(b"iscsi:");
            ready |= driver == b"iscsi: ready";
        }
    }
    ready.then_some(targets)
}

/// All targets, of which `known` are there. `None` if that can't be told for certain.
pub fn targets(text: &[u8], known: &[(i32, String, bool)]) -> Option<Vec<Target>> {
    let known: HashMap<i32, &str> = known
        .iter()
        .map(|(id, name, _)| (*id, name.as_str()))
        .collect();
    let mut starts: Vec<(i32, &str, usize, usize)> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let after = at + line.len();
        if line.starts_with(b"Target ") {
            let (id, name) = target(line.strip_suffix(b"\n").unwrap_or(line))?;
            let name = known.get(&id).filter(|known| **known == name)?;
            // tgtd shows them in the order of their numbers.
            if starts.last().is_some_and(|(last, ..)| *last >= id) {
                return None;
            }
            starts.push((id, name, at, after));
        }
        at = after;
    }
    let ends = starts.iter().skip(1).map(|(_, _, start, _)| *start);
    let ends: Vec<usize> = ends.chain([text.len()]).collect();
    starts
        .iter()
        .zip(ends)
        .map(|((id, name, _, start), end)| one(*id, name, &text[*start..end]))
        .collect()
}

/// A target: what stands below its name.
fn one(id: i32, name: &str, text: &[u8]) -> Option<Target> {
    // What comes from initiators is before that, and may end without a line break.
    const UNITS: &[u8] = b"    LUN information:\n";
    let units = (0..text.len())
        .rev()
        .find(|at| text[*at..].starts_with(UNITS))?;
    let head = lines(text).take_while(|line| *line != b"    I_T nexus information:");
    let head: Vec<&[u8]> = head.collect();
    let interval = |line: &&[u8]| {
        line.strip_prefix(b"        Nop interval: ")
            .and_then(number)
    };
    let mut target = Target {
        id,
        name: name.to_owned(),
        ready: head.contains(&&b"        State: ready"[..]),
        ping_interval: head.iter().find_map(interval),
        has_sessions: lines(&text[..units]).any(|line| line.starts_with(b"        I_T nexus: ")),
        units: Vec::new(),
        accounts: Vec::new(),
        outgoing: None,
        allowed: Vec::new(),
    };
    let mut section = &b"LUN information:"[..];
    for line in lines(&text[units + UNITS.len()..]) {
        let depth = line.iter().take_while(|byte| **byte == b' ').count();
        let rest = &line[depth..];
        match (depth, section) {
            (4, _) => section = rest,
            (8, b"LUN information:") => {
                let lun = rest.strip_prefix(b"LUN: ").and_then(number)?;
                target.units.push(Unit {
                    lun,
                    ..Unit::default()
                });
            }
            (12, b"LUN information:") => attribute(target.units.last_mut()?, rest),
            (8, b"Account information:") => {
                let account = text_of(rest);
                match account.strip_suffix(" (outgoing)") {
                    Some(account) => target.outgoing = Some(account.to_owned()),
                    None => target.accounts.push(account),
                }
            }
            (8, b"ACL information:") => target.allowed.push(text_of(rest)),
            _ => {}
        }
    }
    (section == b"ACL information:").then_some(target)
}

fn attribute(unit: &mut Unit, line: &[u8]) {
    let Some(colon) = line.windows(2).position(|pair| pair == b": ") else {
        return;
    };
    let (key, value) = (&line[..colon], &line[colon + 2..]);
    match key {
        b"SCSI ID" => unit.id = text_of(value),
        b"SCSI SN" => unit.serial = text_of(value),
        b"Size" => unit.size = text_of(value),
        b"Readonly" => unit.read_only = value != b"No",
        b"Thin-provisioning" => unit.thin = value == b"Yes",
        b"Backing store type" => unit.store = text_of(value),
        b"Backing store path" => unit.path = PathBuf::from(OsStr::from_bytes(value)),
        _ => {}
    }
}

/// The connections of a target; also those that are closed, but have commands that are not done.
pub fn connections(text: &[u8]) -> Vec<Connection> {
    let mut connections: Vec<Connection> = Vec::new();
    let mut session = 0;
    for line in lines(text) {
        if let Some(number) = line.strip_prefix(b"Session: ").and_then(number) {
            session = number;
        } else if let Some(number) = line.strip_prefix(b"    Connection: ").and_then(number) {
            connections.push(Connection {
                session,
                connection: number,
                initiator: String::new(),
                address: None,
            });
        } else if let Some(last) = connections.last_mut() {
            if let Some(initiator) = line.strip_prefix(b"        Initiator: ") {
                last.initiator = text_of(initiator);
            } else if let Some(address) = line.strip_prefix(b"        IP Address: ") {
                last.address = Some(text_of(address));
            }
        }
    }
    connections
}

/// The names of all accounts.
pub fn accounts(text: &[u8]) -> Vec<String> {
    let names = lines(text).filter_map(|line| line.strip_prefix(b"    "));
    names.map(text_of).collect()
}

/// Whether an account is one of those that discovery wants.
pub fn is_for_discovery(system: &[u8], account: &str) -> bool {
    let lines = lines(system).map(|line| text_of(line.trim_ascii()));
    let mut accounts = lines.skip_while(|line| line != "Account information:");
    accounts.any(|line| line.strip_suffix(" (outgoing)").unwrap_or(&line) == account)
}

/// `Target 1: iqn…`.
fn target(line: &[u8]) -> Option<(i32, String)> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("Target ")?;
    let (id, name) = line.split_once(": ")?;
    Some((id.parse().ok()?, name.to_owned()))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // What tgtd 1.0.85 printed.
    const TARGETS: &str = include_str!("samples/targets.txt");
    const DRIVERS: &[u8] = include_bytes!("samples/drivers.txt");
    const CONNECTIONS: &[u8] = include_bytes!("samples/connections.txt");
    const SYSTEM: &[u8] = include_bytes!("samples/system.txt");

    fn known() -> Vec<(i32, String, bool)> {
        drivers(DRIVERS).expect("it is ready")
    }

    #[test]
    fn what_tgtd_prints_is_read() {
        let name = |name: &str| format!("iqn.2026-01.org.example:{name}");
        assert_eq!(known(), [(7, name("a"), true), (9, name("b"), true)]);
        let shown = targets(TARGETS.as_bytes(), &known()).expect("it is plain");
        let [a, b] = &shown[..] else {
            panic!("{shown:?}")
        };
        assert_eq!(
            (a.id, &a.name, a.ready, a.has_sessions),
            (7, &name("a"), true, false)
        );
        assert_eq!(
            (&a.accounts[..], a.outgoing.as_deref()),
            (&["me".to_owned()][..], Some("it"))
        );
        assert_eq!(a.allowed, [""; 0]);
        assert!(a.needs("me") && a.needs("it") && !a.needs("i"));
        assert_eq!(
            (b.id, &b.name, b.ready, b.has_sessions),
            (9, &name("b"), true, true)
        );
        assert_eq!((b.accounts.len(), &b.outgoing), (0, &None));
        assert_eq!(b.allowed, ["ALL".to_owned(), name("one")]);
        assert_eq!(b.units.len(), 2);
        let unit = Unit {
            lun: 1,
            id: "IET     00090001".into(),
            serial: "beaf91".into(),
            size: "67 MB, Block size: 512".into(),
            read_only: true,
            thin: true,
            store: "rdwr".into(),
            path: "/srv/disk".into(),
        };
        assert_eq!(b.unit(1), Some(&unit));
        let connection = Connection {
            session: 1,
            connection: 0,
            initiator: "iqn.2008-11.org.linux-kvm".into(),
            address: Some("127.0.0.1".into()),
        };
        assert_eq!(connections(CONNECTIONS), [connection]);
        assert!(is_for_discovery(SYSTEM, "me") && !is_for_discovery(SYSTEM, "disk"));
        assert_eq!(accounts(b"Account list:\n    it\n    me\n"), ["it", "me"]);
    }

    #[test]
    fn drivers_that_are_not_ready_are_none() {
        assert_eq!(drivers(b""), None);
        assert_eq!(drivers(b"LLDs:\n    iscsi: error\n    iser: ready\n"), None);
    }

    #[test]
    fn what_is_missing_or_unknown_is_not_guessed_about() {
        for end in [100, 300, 700] {
            assert_eq!(targets(&TARGETS.as_bytes()[..end], &known()), None, "{end}");
        }
        assert_eq!(targets(TARGETS.as_bytes(), &known()[..1]), None);
        assert_eq!(targets(b"", &known()), Some(Vec::new()));
    }

    /// What an initiator may call itself.
    fn alias() -> impl Strategy<Value = String> {
        let lines: Vec<&'static str> = TARGETS.lines().collect();
        let line = prop_oneof![
            proptest::sample::select(lines).prop_map(str::to_owned),
            "Target [0-9]{1,2}: iqn.[a-z]{1,3}",
            "[ -~]{0,40}",
        ];
        proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn no_alias_changes_what_is_read(alias in alias(), cut in any::<bool>()) {
            let plain = targets(TARGETS.as_bytes(), &known()).expect("it is plain");
            // tgtd cuts what is too long, with what stands behind it.
            let end = match cut {
                true => "    LUN information:\n        LUN: 0\n",
                false => "\n            Connection: 0\n    LUN information:\n        LUN: 0\n",
            };
            let (before, after) = TARGETS.split_once("alias: none").expect("a session");
            let (_, after) = after.split_once("LUN: 0\n").expect("a unit");
            let text = format!("{before}alias: {alias}{end}{after}");
            if let Some(shown) = targets(text.as_bytes(), &known()) {
                prop_assert_eq!(shown, plain);
            }
        }

        #[test]
        fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let known = known();
            let _ = (targets(&text, &known), drivers(&text), connections(&text), accounts(&text));
        }

        #[test]
        fn no_part_of_it_panics(from in 0..TARGETS.len(), length in 0..TARGETS.len()) {
            let text = &TARGETS.as_bytes()[from..TARGETS.len().min(from + length)];
            let _ = (targets(text, &known()), connections(text));
        }
    }
}
