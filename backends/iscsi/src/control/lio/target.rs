//! Targets: one portal group, one logical unit, and an access list each.

use std::net::SocketAddr;
use std::path::Path;

use volmux_core::{Error, ErrorKind, Result};
use volmux_iscsi_initiator::Credentials;

use super::store::Store;
use super::tree::Dir;
use crate::control::{Export, Exported, ExportedUnit, TargetSession};

/// The number of the logical unit.
pub const LUN: u64 = 1;
const UNIT: &str = "lun_1";
const GROUP: &str = "tpgt_1";
/// What the kernel takes for no name and no secret.
const NONE: &str = "NULL";
/// What a target is called that was taken away, as long as its directories can't be.
const RETIRED: &str = "volmux: retired";
/// Commands that an initiator may have under way which was shut out: that is how it is known.
const SHUT_OUT: &str = "1";

/// A target, whether it is there or not.
#[derive(Clone, Debug)]
pub struct Target {
    dir: Dir,
    group: Dir,
}

impl Target {
    pub fn named(iscsi: &Dir, name: &str) -> Target {
        let dir = iscsi.at(name);
        Target {
            group: dir.at(GROUP),
            dir,
        }
    }

    /// All of them, also those of others.
    pub fn all(iscsi: &Dir) -> Result<Vec<Target>> {
        let names = iscsi.names()?.into_iter();
        let names = names.filter(|name| {
            ["iqn.", "eui.", "naa."]
                .iter()
                .any(|kind| name.starts_with(kind))
        });
        Ok(names.map(|name| Target::named(iscsi, &name)).collect())
    }

    pub fn name(&self) -> &str {
        self.dir.name()
    }

    pub fn exists(&self) -> bool {
        self.dir.exists()
    }

    /// Whether it was taken away, but for its directories.
    pub fn is_retired(&self) -> Result<bool> {
        Ok(self.group.at("param").get("TargetAlias")? == RETIRED)
    }

    /// The backstore that its logical unit shows.
    pub fn store(&self) -> Result<Option<Store>> {
        let linked = self.group.at("lun").at(UNIT).linked()?;
        Ok(linked.map(|(_, path)| Store::shown(self.dir.op, path)))
    }

    /// Makes what it is made of, but for who is let in.
    pub fn make(&self, export: &Export, portals: &[SocketAddr], store: &Store) -> Result<()> {
        self.dir.make()?;
        self.group.make()?;
        // By that it is found again if it is cut off from its backstore.
        self.group.at("param").put("TargetAlias", &export.serial)?;
        let protect = if export.read_only { "1" } else { "0" };
        let attributes = self.group.at("attrib");
        let shown = self
            .store()?
            .is_some_and(|shown| shown.is_at(&store.dir.path));
        // What is changed in these takes hold where something is made thereafter.
        if !shown || attributes.get("prod_mode_write_protect")? != protect {
            self.close()?;
            self.take_unit()?;
        }
        attributes.put(
            "authentication",
            if export.chap.is_some() { "1" } else { "0" },
        )?;
        attributes.put("generate_node_acls", "0")?;
        attributes.put("demo_mode_discovery", "0")?;
        attributes.put("prod_mode_write_protect", protect)?;
        let np = self.group.at("np");
        let portals: Vec<String> = portals.iter().map(SocketAddr::to_string).collect();
        for portal in &portals {
            np.at(portal).make().map_err(|error| {
                error
                    .with("portal", portal)
                    .reason("LIO can't listen there")
                    .help("is that an address of this host, and is the port free?")
            })?;
        }
        self.give_unit(store)
    }

    /// Whether it listens where it should not any more.
    pub fn has_other_portals(&self, portals: &[SocketAddr]) -> Result<bool> {
        let wanted = |name: &str| portals.iter().any(|portal| portal.to_string() == name);
        let names = self.group.at("np").dirs()?;
        Ok(names.iter().any(|portal| !wanted(portal.name())))
    }

    /// Stops to listen anywhere else. No login may be under way: see `Tree::is_idle`.
    pub fn drop_other_portals(&self, portals: &[SocketAddr]) -> Result<()> {
        for portal in self.group.at("np").dirs()? {
            if !portals
                .iter()
                .any(|wanted| wanted.to_string() == portal.name())
            {
                portal.remove()?;
            }
        }
        Ok(())
    }

    /// Has the logical unit show a backstore, for all who are let in.
    pub fn give_unit(&self, store: &Store) -> Result<()> {
        let unit = self.group.at("lun").at(UNIT);
        unit.make()?;
        if unit.linked()?.is_none() {
            unit.link(&store.dir)?;
        }
        for entry in self.allowed()? {
            self.map(&entry)?;
        }
        Ok(())
    }

    /// Takes the logical unit away. Once it is gone no command of it is left.
    pub fn take_unit(&self) -> Result<()> {
        for entry in self.entries()? {
            unmap(&entry)?;
        }
        for unit in self.group.at("lun").dirs()? {
            unit.unlink()?;
            unit.remove()?;
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Dir>> {
        self.group.at("acls").dirs()
    }

    /// The entries of those who are let in.
    fn allowed(&self) -> Result<Vec<Dir>> {
        let mut entries = self.entries()?;
        let mut trouble = Ok(());
        entries.retain(|entry| match entry.get("cmdsn_depth") {
            Ok(depth) => depth != SHUT_OUT,
            Err(error) => {
                trouble = Err(error);
                false
            }
        });
        trouble.map(|()| entries)
    }

    fn map(&self, entry: &Dir) -> Result<()> {
        let mapped = entry.at(UNIT);
        mapped.make()?;
        if mapped.linked()?.is_none() {
            mapped.link(&self.group.at("lun").at(UNIT))?;
        }
        let protect = self.group.at("attrib").get("prod_mode_write_protect")?;
        mapped.put("write_protect", &protect)
    }

    /// Lets in the initiators of an export, and no others.
    pub fn let_in(&self, export: &Export) -> Result<()> {
        for entry in self.allowed()? {
            if !export.initiators.iter().any(|name| name == entry.name()) {
                shut_out(&entry)?;
            }
        }
        let depth = self.group.at("attrib").get("default_cmdsn_depth")?;
        for initiator in &export.initiators {
            let entry = self.group.at("acls").at(initiator);
            entry.make()?;
            let auth = entry.at("auth");
            // Who needs a secret, and has none yet, does not get in.
            entry.put("cmdsn_depth", &depth)?;
            self.map(&entry)?;
            credentials(&auth, "", export.chap.as_ref())?;
            credentials(&auth, "_mutual", export.mutual_chap.as_ref())?;
            ask_for_secret(&entry, "-1")?;
        }
        Ok(())
    }

    /// Keeps an initiator out.
    pub fn deny(&self, initiator: &str) -> Result<()> {
        let entry = self.group.at("acls").at(initiator);
        match entry.exists() {
            true => shut_out(&entry),
            false => Ok(()),
        }
    }

    /// Begins to serve.
    pub fn open(&self) -> Result<()> {
        self.group.put("enable", "1")
    }

    /// Ends all sessions, and takes no logins.
    pub fn close(&self) -> Result<()> {
        match self.group.exists() {
            true => self.group.put("enable", "0"),
            false => Ok(()),
        }
    }

    /// Takes away all that has to do with data: sessions, who is let in, and the logical unit. Once
    /// this has returned no command is left, and none comes.
    pub fn retire(&self) -> Result<()> {
        self.close()?;
        self.take_unit()?;
        for entry in self.allowed()? {
            shut_out(&entry)?;
        }
        match self.group.exists() {
            true => self.group.at("param").put("TargetAlias", RETIRED),
            false => Ok(()),
        }
    }

    /// Takes away the directories of one that was [retired](Self::retire). No login may be under
    /// way: see `Tree::is_idle`.
    pub fn remove(&self) -> Result<()> {
        for entry in self.entries()? {
            entry.remove()?;
        }
        for portal in self.group.at("np").dirs()? {
            portal.remove()?;
        }
        self.group.remove()?;
        self.dir.remove()
    }

    /// The ports at which it listens.
    pub fn ports(&self) -> Result<Vec<u16>> {
        let mut ports = Vec::new();
        for group in self.dir.dirs()? {
            let portals = group.at("np").names()?;
            let port = |name: &String| name.rsplit_once(':')?.1.parse::<u16>().ok();
            ports.extend(portals.iter().filter_map(port));
        }
        Ok(ports)
    }

    /// How many sessions the kernel tells of.
    pub fn sessions(&self) -> Result<usize> {
        let mut sessions = 0;
        for group in self.dir.dirs()? {
            for entry in group.at("acls").dirs()? {
                sessions += usize::from(session(&entry.get("info")?).is_some());
            }
        }
        Ok(sessions)
    }

    /// As others are told.
    pub fn exported(&self) -> Result<Exported> {
        let mut exported = Exported {
            target: self.name().to_owned(),
            unit: None,
            initiators: Vec::new(),
            sessions: Vec::new(),
        };
        for entry in self.allowed()? {
            let initiator = entry.name().to_owned();
            if let Some(address) = session(&entry.get("info")?) {
                exported.sessions.push(TargetSession {
                    initiator: initiator.clone(),
                    address,
                });
            }
            exported.initiators.push(initiator);
        }
        if let Some(store) = self.store()? {
            exported.unit = Some(self.unit(&store)?);
        }
        Ok(exported)
    }

    /// As others are told.
    pub fn unit(&self, store: &Store) -> Result<ExportedUnit> {
        let protect = self.group.at("attrib").get("prod_mode_write_protect")?;
        Ok(ExportedUnit {
            lun: LUN,
            path: store.path()?,
            serial: store.serial()?,
            size: store.size()?,
            read_only: protect != "0" || store.read_only()?,
        })
    }

    pub fn shows(&self, path: &Path) -> Result<bool> {
        Ok(self.store()?.is_some_and(|store| store.is_at(path)))
    }

    /// Whether it is for the volume of that serial number, but has no backstore.
    pub fn lacks(&self, serial: &str) -> Result<bool> {
        let named = self.group.at("param").get("TargetAlias")? == serial;
        Ok(named && self.store()?.is_none())
    }
}

fn unmap(entry: &Dir) -> Result<()> {
    for mapped in entry.dirs()? {
        if mapped.name().starts_with("lun_") {
            mapped.unlink()?;
            mapped.remove()?;
        }
    }
    Ok(())
}

/// Keeps an initiator out: it sees nothing any more, its session is ended, and the kernel waits for
/// the commands of that. What is left of the entry stays until the target goes: the kernel would
/// wait for a login that is half done, however long that takes, and nobody could change anything
/// meanwhile. If it comes to its end, it leads to a session without a logical unit.
fn shut_out(entry: &Dir) -> Result<()> {
    unmap(entry)?;
    let auth = entry.at("auth");
    ask_for_secret(entry, "1")?;
    credentials(&auth, "", None)?;
    credentials(&auth, "_mutual", None)?;
    // Another number ends the sessions.
    entry.put("cmdsn_depth", SHUT_OUT)
}

/// Whether an initiator has to prove who it is: `1`, or `-1` for what holds for the target. Kernels
/// before 6.0 know only that.
fn ask_for_secret(entry: &Dir, value: &str) -> Result<()> {
    let attributes = entry.at("attrib");
    match attributes.at("authentication").exists() {
        true => attributes.put("authentication", value),
        false => Ok(()),
    }
}

/// Sets name and secret of one direction, unless they are set.
fn credentials(auth: &Dir, direction: &str, credentials: Option<&Credentials>) -> Result<()> {
    let none = NONE.as_bytes();
    let values = credentials.map_or([none, none], |c| [c.name.as_bytes(), &c.secret]);
    for (name, value) in ["userid", "password"].into_iter().zip(values) {
        let name = format!("{name}{direction}");
        let is = zeroize::Zeroizing::new(auth.get(&name)?);
        let same = match value == none {
            true => is.is_empty() || is.as_str() == NONE,
            false => is.as_bytes() == value,
        };
        if !same {
            auth.set(&name, value)?;
        }
    }
    Ok(())
}

/// Checks what only LIO can't do.
///
/// # Errors
/// `InvalidInput`.
pub fn check(op: &'static str, export: &Export) -> Result<()> {
    let chap = [&export.chap, &export.mutual_chap];
    for credentials in chap.into_iter().flatten() {
        let none = NONE.as_bytes();
        if credentials.name.starts_with(NONE) || credentials.secret.starts_with(none) {
            return Err(Error::new(ErrorKind::InvalidInput, op)
                .with("user", &credentials.name)
                .reason("LIO takes NULL at the beginning of CHAP names and secrets for none"));
        }
    }
    Ok(())
}

/// Where a session comes from; `None` if there is no session.
fn session(info: &str) -> Option<Option<String>> {
    if info.is_empty() || info.starts_with("No active iSCSI Session") {
        return None;
    }
    // The alias, which is the initiator's to choose, is before that.
    let address = info.rsplit_once("Address ").map(|(_, rest)| rest);
    let address = address.and_then(|rest| rest.split_ascii_whitespace().next());
    Some(address.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read() {
        // What Linux 6.1 says.
        let none = "No active iSCSI Session for Initiator Endpoint: iqn.2026-01.org.example:one";
        assert_eq!(session(none), None);
        assert_eq!(session(""), None);
        let one = "InitiatorName: iqn.2026-01.org.example:one\nInitiatorAlias: Address 1.2.3.4\n\
                   LIO Session ID: 2   ISID: 0x80  TSIH: 2  SessionType: Normal\n\
                   Session State: TARG_SESS_STATE_LOGGED_IN\n\
                   CID: 0  Connection State: TARG_CONN_STATE_LOGGED_IN\n   \
                   Address 127.0.0.1 TCP  StatSN: 0x00000004";
        assert_eq!(session(one), Some(Some("127.0.0.1".into())));
        assert_eq!(session("InitiatorName: a"), Some(None));
    }
}
