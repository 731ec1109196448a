//! What operations are made of. Each can be cut off anywhere: what it leaves is taken for what it
//! is.

use std::os::unix::ffi::OsStrExt;

use sha2::{Digest, Sha256};
use volmux_core::{Error, ErrorKind, Result};
use volmux_iscsi_initiator::Credentials;

use super::show::{self, Connection, Target, Unit};
use super::wire::{Action, Client, Code, Mode, Request};
use super::{LUN, Step, accounts};
use crate::control::{Export, ExportedUnit};

/// How often lists are asked for that change meanwhile.
const LOOKS: usize = 5;
/// Who does not answer this many pings, each so many seconds after the other, is given up.
const PINGS: u32 = 4;
const PING_INTERVAL: u32 = 3;

impl Client<'_> {
    /// The targets of all drivers: number, name, whether it is one of iSCSI.
    ///
    /// # Errors
    /// `Unavailable` if tgtd serves no iSCSI; those of [`ask`](Self::ask).
    pub async fn drivers(&self) -> Result<Vec<(i32, String, bool)>> {
        let shown = self.ask(Request::new(Mode::Driver, Action::Show)).await?;
        show::drivers(&shown.good("show its drivers")?).ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, self.op)
                .reason("tgtd's iSCSI driver is not ready")
                .help("see tgtd's log, and start it again")
        })
    }

    /// The number of the target of that name.
    ///
    /// # Errors
    /// As [`drivers`](Self::drivers).
    pub async fn number(&self, name: &str) -> Result<Option<i32>> {
        let mut targets = self.drivers().await?.into_iter();
        Ok(targets
            .find(|(_, other, _)| other == name)
            .map(|(id, ..)| id))
    }

    /// All iSCSI targets.
    ///
    /// # Errors
    /// `Corrupt` if an initiator puts lines into the list that look like those of targets; as
    /// [`drivers`](Self::drivers).
    pub async fn targets(&self) -> Result<Vec<Target>> {
        let mut known = self.drivers().await?;
        for _ in 0..LOOKS {
            let shown = self
                .ask(Request::new(Mode::Target, Action::Show).of(-1))
                .await?;
            let shown = shown.good("show its targets")?;
            if let Some(mut targets) = show::targets(&shown, &known) {
                targets
                    .retain(|target| known.iter().any(|(id, _, ours)| *id == target.id && *ours));
                return Ok(targets);
            }
            known = self.drivers().await?;
        }
        Err(Error::new(ErrorKind::Corrupt, self.op)
            .reason("the list of targets is not tgtd's alone: an initiator's alias has line breaks")
            .help("look for it with tgtadm --mode target --op show, and end its session"))
    }

    /// The connections of a target, also closed ones whose commands are not done.
    ///
    /// # Errors
    /// Those of [`ask`](Self::ask).
    pub async fn connections(&self, id: i32) -> Result<Vec<Connection>> {
        let shown = self
            .ask(Request::new(Mode::Connection, Action::Show).of(id))
            .await?;
        match shown.code {
            Code::NO_TARGET => Ok(Vec::new()),
            _ => Ok(show::connections(&shown.good("show connections")?)),
        }
    }

    /// Makes a target, or changes the one that there is, until it is as it should be.
    ///
    /// # Errors
    /// `AlreadyExists` for an account that has another secret and is needed elsewhere;
    /// `PermissionDenied` if tgtd may not write what is to be written; those of [`ask`](Self::ask).
    pub async fn export(&self, export: &Export) -> Result<Step<ExportedUnit>> {
        let targets = self.targets().await?;
        let all = accounts::all(self).await?;
        let credentials = [&export.chap, &export.mutual_chap];
        for credentials in credentials.into_iter().flatten() {
            accounts::check(self, credentials, &all, &targets, &export.target).await?;
        }
        if let Some(target) = targets.iter().find(|target| target.name == export.target) {
            return match difference(target, export, &all) {
                None => self.let_in(target, export).await,
                Some(_) => self.remove(target.id).await,
            };
        }
        for credentials in credentials.into_iter().flatten() {
            accounts::ensure(self, credentials, &accounts::all(self).await?).await?;
        }
        let user =
            |credentials: &Option<_>| credentials.as_ref().map(|c: &Credentials| c.name.clone());
        let plan = Target {
            id: 0,
            name: export.target.clone(),
            ready: true,
            ping_interval: Some(PING_INTERVAL),
            has_sessions: false,
            units: vec![unit(export)],
            accounts: user(&export.chap).into_iter().collect(),
            outgoing: user(&export.mutual_chap),
            allowed: Vec::new(),
        };
        self.make(&plan).await?;
        // Before anybody is let in.
        let (targets, all) = (self.targets().await?, accounts::all(self).await?);
        let made = targets.iter().find(|target| target.name == export.target);
        let what = made.map_or(Some("target"), |made| difference(made, export, &all));
        let kind = match what {
            None => return Ok(Step::Next),
            Some("access") => ErrorKind::PermissionDenied,
            Some(_) => ErrorKind::Unavailable,
        };
        Err(Error::new(kind, self.op)
            .with("path", export.path.display())
            .reason(format!(
                "what tgtd made of it is not what was asked for: its {} differs",
                what.unwrap_or_default()
            ))
            .help("see whether tgtd may write it, whether others change it, and tgtd's log"))
    }

    /// Has the initiators of an export, and only they, be let in to a target that is as it should
    /// be.
    async fn let_in(&self, target: &Target, export: &Export) -> Result<Step<ExportedUnit>> {
        let wanted = |name: &str| export.initiators.iter().any(|initiator| initiator == name);
        match self.show_out(target, |name| !wanted(name)).await? {
            Step::Done(()) => {}
            Step::Next => return Ok(Step::Next),
            Step::Wait => return Ok(Step::Wait),
        }
        for initiator in &export.initiators {
            if !target.allowed.contains(initiator) {
                self.allow(target.id, initiator).await?;
            }
        }
        let unit = unit(export);
        Ok(Step::Done(ExportedUnit {
            size: Some(export.size),
            ..exported(&unit)
        }))
    }

    async fn allow(&self, id: i32, initiator: &str) -> Result<()> {
        let request = Request::new(Mode::Target, Action::Bind).of(id);
        let request = request.text(&[b"initiator-name=", initiator.as_bytes()]);
        let answer = self.ask(request).await?;
        answer
            .good_or(Code::NAME_BOUND, "let an initiator in")
            .map(drop)
    }

    /// Takes some off the list of who is let in, and closes their connections, until these are
    /// gone: they stay until all of their commands are done.
    ///
    /// # Errors
    /// Those of [`ask`](Self::ask).
    pub async fn show_out(&self, target: &Target, out: impl Fn(&str) -> bool) -> Result<Step<()>> {
        for name in target.allowed.iter().filter(|name| out(name)) {
            for key in ["initiator-name=", "initiator-address="] {
                let request = Request::new(Mode::Target, Action::Unbind).of(target.id);
                let request = request.text(&[key.as_bytes(), name.as_bytes()]);
                let answer = self.ask(request).await?;
                answer.good_or(Code::NAME_NOT_BOUND, "keep an initiator out")?;
            }
        }
        let mut step = Step::Done(());
        for connection in self.connections(target.id).await? {
            if !out(&connection.initiator) {
                continue;
            }
            let mut request = Request::new(Mode::Connection, Action::Delete).of(target.id);
            (request.session, request.connection) = (connection.session, connection.connection);
            let answer = self.ask(request).await?;
            if answer.code != Code::NO_SESSION {
                answer.good_or(Code::NO_CONNECTION, "close a connection")?;
            }
            step = Step::Wait;
        }
        Ok(step)
    }

    /// Removes a target, unless its logical units have commands to do.
    ///
    /// # Errors
    /// Those of [`ask`](Self::ask).
    pub async fn remove<T>(&self, id: i32) -> Result<Step<T>> {
        // So that no more commands come, and those that there are come to an end.
        let off = Request::new(Mode::Target, Action::Update)
            .of(id)
            .text(&[b"state=offline"]);
        let off = self.ask(off).await?;
        off.good_or(Code::NO_TARGET, "take a target off line")?;
        let mut request = Request::new(Mode::Target, Action::Delete).of(id);
        request.force = true;
        let answer = self.ask(request).await?;
        match answer.code {
            Code::UNIT_ACTIVE | Code::TARGET_ACTIVE => Ok(Step::Wait),
            _ => {
                answer.good_or(Code::NO_TARGET, "remove a target")?;
                Ok(Step::Next)
            }
        }
    }

    /// Makes again what was removed, and lets in who may.
    ///
    /// # Errors
    /// As [`export`](Self::export).
    pub async fn restore(&self, before: &Target) -> Result<()> {
        if before.allowed.is_empty() || before.unit(LUN).is_none() {
            return Ok(());
        }
        let id = self.make(before).await?;
        for initiator in &before.allowed {
            self.allow(id, initiator).await?;
        }
        Ok(())
    }

    /// Makes a target that lets nobody in.
    async fn make(&self, plan: &Target) -> Result<i32> {
        let id = self.new_target(&plan.name).await?;
        for setting in [
            format!("nop_count={PINGS}"),
            format!("nop_interval={PING_INTERVAL}"),
        ] {
            let request = Request::new(Mode::Target, Action::Update).of(id);
            let answer = self.ask(request.text(&[setting.as_bytes()])).await?;
            answer.good("ping initiators")?;
        }
        for unit in &plan.units {
            if unit.lun == LUN {
                self.new_unit(id, unit).await?;
            }
        }
        for account in &plan.accounts {
            accounts::bind(self, id, account, false).await?;
        }
        if let Some(account) = &plan.outgoing {
            accounts::bind(self, id, account, true).await?;
        }
        Ok(id)
    }

    async fn new_target(&self, name: &str) -> Result<i32> {
        for _ in 0..LOOKS {
            // tgtd makes an identifier of it, and leaves 28 bits for that. 1 to 65535 is what
            // people choose by hand.
            let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
            let id = i32::from_be_bytes([a & 0x0f, b | 1, c, d]);
            let request = Request::new(Mode::Target, Action::New).of(id);
            let request = request.text(&[b"targetname=", name.as_bytes()]);
            let answer = self.ask(request).await?;
            if answer.good_or(Code::TARGET_EXISTS, "make a target")? {
                return Ok(id);
            }
        }
        Err(Error::new(ErrorKind::Busy, self.op).reason("others make the same target"))
    }

    async fn new_unit(&self, id: i32, unit: &Unit) -> Result<()> {
        let mut request = Request::new(Mode::Unit, Action::New).of(id);
        request.lun = LUN;
        let path = unit.path.as_os_str().as_bytes();
        let request = request.text(&[b"path=", path, b",bstype=rdwr,blocksize=512"]);
        let made = self.ask(request).await?.good("make a logical unit");
        made.map_err(|error| error.with("path", unit.path.display()))?;
        let mut request = Request::new(Mode::Unit, Action::Update).of(id);
        request.lun = LUN;
        // tgtd itself has set that if it may only read: never set it back.
        let access: &[u8] = if unit.read_only { b",readonly=1" } else { b"" };
        let thin: &[u8] = if unit.thin { b"1" } else { b"0" };
        let request = request.text(&[
            // The vendor stays tgt's: it tells what its sense data mean.
            b"product_id=VOLUME,thin_provisioning=",
            thin,
            b",scsi_id=",
            unit.id.as_bytes(),
            b",scsi_sn=",
            unit.serial.as_bytes(),
            access,
        ]);
        self.ask(request)
            .await?
            .good("describe a logical unit")
            .map(drop)
    }

    /// Deletes accounts that nobody needs. It is as good to do that another time.
    pub async fn clean(&self) {
        let clean = async { accounts::clean(self, &self.targets().await?).await };
        if let Err(error) = clean.await {
            tracing::warn!(%error, "accounts are left over in tgtd");
        }
    }
}

/// In what a target is not what an export says; nothing is said about initiators.
fn difference(target: &Target, export: &Export, accounts: &[String]) -> Option<&'static str> {
    let wanted = unit(export);
    let Some(is) = target.unit(LUN) else {
        return Some("logical unit");
    };
    let right = |bound: Option<&String>, wanted: &Option<Credentials>| {
        let name = wanted.as_ref().map(|wanted| &wanted.name);
        let known = wanted
            .as_ref()
            .is_none_or(|wanted| accounts::is_right(accounts, wanted));
        bound == name && known
    };
    let differences = [
        (target.ready, "state"),
        (target.ping_interval == Some(PING_INTERVAL), "ping interval"),
        (is.path == wanted.path, "path"),
        (is.serial == wanted.serial, "serial number"),
        (is.id == wanted.id && is.size == wanted.size, "size"),
        (is.read_only == wanted.read_only, "access"),
        (is.thin == wanted.thin && is.store == wanted.store, "kind"),
        (target.accounts.len() <= 1, "accounts"),
        (right(target.accounts.first(), &export.chap), "account"),
        (
            right(target.outgoing.as_ref(), &export.mutual_chap),
            "own account",
        ),
    ];
    let mut differences = differences.into_iter();
    differences.find_map(|(same, what)| (!same).then_some(what))
}

/// The logical unit that an export asks for.
fn unit(export: &Export) -> Unit {
    Unit {
        lun: LUN,
        id: identification(&export.serial, export.size),
        serial: export.serial.clone(),
        size: format!("{} MB, Block size: 512", megabytes(export.size)),
        read_only: export.read_only,
        thin: export.thin,
        store: "rdwr".into(),
        path: export.path.clone(),
    }
}

/// 36 hexadecimal digits. The last 32 of them are what initiators know the unit by (a designator of
/// type NAA, SPC-3 7.6.3.6), and the same for all units with that serial number; the others tell
/// sizes apart.
fn identification(serial: &str, size: u64) -> String {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let size = Sha256::digest(size.to_be_bytes());
    let serial = Sha256::digest(serial.as_bytes());
    hex(&size[..2]) + &hex(&serial[..16])
}

/// As tgtd rounds them: of 1000 000 bytes, and a little.
fn megabytes(size: u64) -> u64 {
    let blocks = size / 512;
    blocks.wrapping_sub((blocks / 625).wrapping_sub(974)) / 1950
}

/// What others are told of a logical unit.
pub fn exported(unit: &Unit) -> ExportedUnit {
    ExportedUnit {
        lun: unit.lun,
        path: unit.path.clone(),
        serial: unit.serial.clone(),
        size: None,
        read_only: unit.read_only,
    }
}
