//! From a connection to a session (RFC 7143 sections 6.2, 6.3 and 11.12).

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::chap;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{Options, address_of};
use crate::params::{self, DEFAULT, Params};
use crate::pdu::{CONTINUE, FINAL, Header, field, opcode};
use crate::text::Keys;
use crate::wire::{Digests, Receiver, encode};

/// Requests that a login takes at most. A good one takes two to six.
const ROUNDS: usize = 32;
/// Bytes of one answer, however many PDUs it comes in.
const LONGEST: usize = 64 << 10;
const REDIRECTIONS: usize = 4;

/// A session that was logged in to.
pub struct LoggedIn {
    pub receiver: Receiver<TcpStream>,
    pub params: Params,
    pub cmd_sn: u32,
    pub max_cmd_sn: u32,
    /// The number of the target's next answer.
    pub stat_sn: u32,
}

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Commands,
    Discovery,
}

/// Connects and logs in, where the target says.
pub async fn log_in(options: &Options, isid: [u8; 6], purpose: Purpose) -> Result<LoggedIn> {
    let mut portal = options.portal.clone();
    for _ in 0..=REDIRECTIONS {
        let mut login = Login::connect(options, &portal, isid, purpose).await?;
        match login.run().await {
            Ok(()) => return Ok(login.done()),
            Err(Refusal::Moved(to)) => {
                tracing::info!(from = portal, to, "the target is at another portal");
                address_of(&to)
                    .map_err(|_| Error::protocol(format!("the target is moved to {to:?}")))?;
                portal = to;
            }
            Err(Refusal::Failed(error)) => return Err(error),
        }
    }
    Err(Error::protocol(format!(
        "redirected more than {REDIRECTIONS} times"
    )))
}

enum Refusal {
    Moved(String),
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Failed(error)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Security = 0,
    Operational = 1,
    Full = 3,
}

/// What the target answered to one request.
struct Answer {
    keys: Keys,
    /// It goes to the next stage.
    next: Option<Stage>,
}

struct Login<'a> {
    options: &'a Options,
    isid: [u8; 6],
    purpose: Purpose,
    receiver: Receiver<TcpStream>,
    params: Params,
    offered: Keys,
    stage: Stage,
    rounds: usize,
    cmd_sn: u32,
    max_cmd_sn: u32,
    stat_sn: Option<u32>,
}

impl<'a> Login<'a> {
    async fn connect(
        options: &'a Options,
        portal: &str,
        isid: [u8; 6],
        purpose: Purpose,
    ) -> Result<Login<'a>> {
        let (host, port) = address_of(portal)?;
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        Ok(Login {
            options,
            isid,
            purpose,
            receiver: Receiver::new(stream, DEFAULT),
            params: Params::default(),
            offered: Keys::default(),
            stage: Stage::Security,
            rounds: 0,
            cmd_sn: 1,
            max_cmd_sn: 1,
            stat_sn: None,
        })
    }

    fn done(mut self) -> LoggedIn {
        self.receiver.digests = self.params.digests;
        self.receiver.most = params::RECEIVED;
        LoggedIn {
            receiver: self.receiver,
            params: self.params,
            cmd_sn: self.cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
            stat_sn: self.stat_sn.unwrap_or_default(),
        }
    }

    async fn run(&mut self) -> std::result::Result<(), Refusal> {
        let mut keys = Keys::default();
        keys.add("InitiatorName", &self.options.initiator);
        match self.purpose {
            Purpose::Discovery => keys.add("SessionType", "Discovery"),
            Purpose::Commands => {
                keys.add("SessionType", "Normal");
                keys.add(
                    "TargetName",
                    self.options.target.as_deref().unwrap_or_default(),
                );
            }
        }
        match self.options.chap.is_some() {
            true => self.prove(keys).await?,
            false => self.without_proof(keys).await?,
        }
        let mut keys = match self.stage {
            Stage::Full => return Ok(()),
            _ => params::offer(self.options, self.purpose == Purpose::Discovery),
        };
        self.stage = Stage::Operational;
        self.offered.0.extend(keys.0.iter().cloned());
        loop {
            let answer = self.ask(&keys, Some(Stage::Full)).await?;
            keys = self
                .params
                .take(&answer.keys, &self.offered, self.options)?;
            match answer.next {
                Some(Stage::Full) => return Ok(()),
                Some(stage) => return Err(self.strange(stage).into()),
                // What it began with is answered once.
                None => self.offered.0.extend(keys.0.iter().cloned()),
            }
        }
    }

    async fn without_proof(&mut self, mut keys: Keys) -> std::result::Result<(), Refusal> {
        keys.add("AuthMethod", "None");
        loop {
            let answer = self.ask(&keys, Some(Stage::Operational)).await?;
            if answer
                .keys
                .get("AuthMethod")
                .is_some_and(|method| method != "None")
            {
                let reason = "the target wants to know who this is (CHAP), and no secret was given";
                return Err(Error::new(ErrorKind::Unauthenticated, reason).into());
            }
            keys = self.params.take(&answer.keys, &keys, self.options)?;
            if let Some(stage) = answer.next {
                return self.enter(stage).map_err(Refusal::from);
            }
        }
    }

    async fn prove(&mut self, mut keys: Keys) -> std::result::Result<(), Refusal> {
        let unproven =
            |reason: &str| Refusal::Failed(Error::new(ErrorKind::Unauthenticated, reason));
        let Some(own) = &self.options.chap else {
            return Ok(());
        };
        let options = self.options;
        let algorithms = &options.chap_algorithms;
        keys.add("AuthMethod", "CHAP");
        let answer = self.ask(&keys, None).await?;
        self.params.take(&answer.keys, &keys, self.options)?;
        if answer.next.is_some() || answer.keys.get("AuthMethod") != Some("CHAP") {
            return Err(unproven("the target does not ask who this is (no CHAP)"));
        }
        let mut keys = Keys::default();
        keys.add("CHAP_A", chap::offer(algorithms));
        let asked = self.ask(&keys, None).await?;
        if asked.next.is_some() {
            return Err(unproven("the target goes on without CHAP"));
        }
        let mutual = self.options.mutual_chap.as_ref();
        let (keys, question) = chap::answer(&asked.keys, algorithms, own, mutual)?;
        let mut answer = self.ask(&keys, Some(Stage::Operational)).await?;
        if let (Some(question), Some(mutual)) = (question, mutual) {
            question.check(&answer.keys, mutual)?;
        }
        loop {
            if let Some(stage) = answer.next {
                return self.enter(stage).map_err(Refusal::from);
            }
            answer = self.ask(&Keys::default(), Some(Stage::Operational)).await?;
        }
    }

    fn enter(&mut self, stage: Stage) -> Result<()> {
        if stage == Stage::Security {
            return Err(self.strange(stage));
        }
        self.stage = stage;
        Ok(())
    }

    fn strange(&self, next: Stage) -> Error {
        Error::protocol(format!(
            "the target goes from stage {:?} to {next:?}",
            self.stage
        ))
    }

    /// Sends one request, and takes the whole answer.
    async fn ask(
        &mut self,
        keys: &Keys,
        next: Option<Stage>,
    ) -> std::result::Result<Answer, Refusal> {
        let mut text = BytesMut::new();
        self.send(&keys.encode(), next).await?;
        loop {
            let pdu = self.receiver.next().await?;
            let header = pdu.header;
            let (opcode, tag) = (header.opcode(), header.get(field::ITT));
            if opcode != opcode::LOGIN_RESPONSE || tag != 0 {
                let reason = format!("a login is answered by a PDU {opcode:#04x}, tag {tag:#x}");
                return Err(Error::protocol(reason).into());
            }
            let status = u16::from_be_bytes([header.0[36], header.0[37]]);
            if status != 0 {
                return Err(refusal(status, &pdu.data));
            }
            self.numbers(&header)?;
            text.extend_from_slice(&pdu.data);
            if text.len() > LONGEST {
                let reason = format!("an answer to a login of more than {LONGEST} bytes");
                return Err(Error::protocol(reason).into());
            }
            if header.flags() & CONTINUE == 0 {
                let keys = Keys::parse(&text)?;
                keys.check_once()?;
                let next = self.transition(&header, next)?;
                return Ok(Answer { keys, next });
            }
            self.send(&[], None).await?;
        }
    }

    /// Where the target goes, which is where it was asked to go or not at all.
    fn transition(&self, header: &Header, asked: Option<Stage>) -> Result<Option<Stage>> {
        let flags = header.flags();
        if flags >> 2 & 3 != self.stage as u8 {
            let reason = format!("the target answers in another stage (flags {flags:#04x})");
            return Err(Error::protocol(reason));
        }
        let stage = match flags & 3 {
            _ if flags & FINAL == 0 => return Ok(None),
            1 => Stage::Operational,
            3 => Stage::Full,
            _ => Stage::Security,
        };
        match asked {
            Some(asked) if (stage as u8) <= asked as u8 => Ok(Some(stage)),
            // It went on although that was not asked for: whoever asked has to refuse.
            None if self.options.chap.is_some() => Ok(Some(stage)),
            _ => Err(self.strange(stage)),
        }
    }

    fn numbers(&mut self, header: &Header) -> Result<()> {
        let stat_sn = header.get(field::STAT_SN);
        if self.stat_sn.is_some_and(|due| due != stat_sn) {
            return Err(Error::protocol(format!("StatSN {stat_sn} in a login")));
        }
        self.stat_sn = Some(stat_sn.wrapping_add(1));
        self.max_cmd_sn = header.get(field::MAX_CMD_SN);
        Ok(())
    }

    async fn send(&mut self, text: &[u8], next: Option<Stage>) -> Result<()> {
        self.rounds += 1;
        if self.rounds > ROUNDS {
            return Err(Error::protocol(format!(
                "a login of more than {ROUNDS} requests"
            )));
        }
        let stages = (self.stage as u8) << 2 | next.map_or(0, |next| FINAL | next as u8);
        let mut header = Header::new(opcode::LOGIN_REQUEST | opcode::IMMEDIATE, stages)
            .with(field::CMD_SN, self.cmd_sn)
            .with(field::EXP_STAT_SN, self.stat_sn.unwrap_or_default());
        header.0[8..14].copy_from_slice(&self.isid);
        // TSIH stays 0: that of a new session, also of one that takes the place of another.
        let (before, after) = encode(header, text, Digests::default());
        let bytes = [&before[..], text, &after].concat();
        Ok(self.receiver.stream().write_all(&bytes).await?)
    }
}

/// What a status says (RFC 7143 section 11.13.5).
fn refusal(status: u16, data: &[u8]) -> Refusal {
    if status >> 8 == 1 {
        let address = Keys::parse(data).ok();
        let address = address.and_then(|keys| keys.get("TargetAddress").map(str::to_owned));
        return match address {
            Some(address) => Refusal::Moved(address),
            None => Error::protocol("the target is moved, and does not say where").into(),
        };
    }
    let (kind, reason) = match status {
        0x0201 => (
            ErrorKind::Unauthenticated,
            "the target does not take name and secret",
        ),
        0x0202 => (ErrorKind::Refused, "this initiator may not use the target"),
        0x0203 => (ErrorKind::NotFound, "the portal has no such target"),
        0x0204 => (ErrorKind::NotFound, "the target was removed"),
        0x0205 => (
            ErrorKind::Refused,
            "the target has no version of the protocol in common",
        ),
        0x0206 => (
            ErrorKind::Refused,
            "the target takes no more connections of the session",
        ),
        0x0207 => (ErrorKind::Refused, "the target misses a parameter"),
        0x0208 => (ErrorKind::Refused, "the session can't have this portal"),
        0x0209 => (ErrorKind::Refused, "the target has no such sessions"),
        0x0301 => (ErrorKind::Lost, "the target is not in service now"),
        0x0302 => (
            ErrorKind::Lost,
            "the target has no room for another session now",
        ),
        _ if status >> 8 == 3 => (ErrorKind::Lost, "the target has a fault"),
        _ => (ErrorKind::Refused, "the target refuses the login"),
    };
    Error::new(kind, format!("{reason} (login status {status:04x})")).into()
}
