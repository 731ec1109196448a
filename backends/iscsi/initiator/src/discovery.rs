//! Which targets a portal has (RFC 7143 section 6.3 and appendix C).

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::error::{Error, ErrorKind, Result};
use crate::login::{LoggedIn, Purpose, log_in};
use crate::options::Options;
use crate::pdu::{CONTINUE, FINAL, Header, NO_TAG, field, opcode};
use crate::session::isid;
use crate::shared::logout;
use crate::text::Keys;
use crate::wire::encode;

/// Bytes of all that is told: some ten thousand targets.
const LONGEST: usize = 1 << 20;

const GOODBYE: Duration = Duration::from_secs(1);

/// There is one task at a time.
const TAG: u32 = 1;

/// A target that a portal tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// Its name.
    pub name: String,
    /// Where it is, as the portal says: `host:port,group`. None means: where it was asked.
    pub portals: Vec<String>,
}

/// Asks a portal for the targets that this initiator may see (SendTargets).
/// [`Options::target`] is ignored.
pub async fn discover(options: &Options) -> Result<Vec<DiscoveredTarget>> {
    let mut place = options.place();
    place.target = None;
    let asked = async {
        options.check()?;
        let isid = isid(options)?;
        let logged_in = log_in(options, isid, Purpose::Discovery).await?;
        ask(logged_in).await
    };
    let late = || {
        let reason = format!("no list of targets within {:?}", options.login_timeout);
        Err(Error::new(ErrorKind::TimedOut, reason))
    };
    let found = timeout(options.login_timeout, asked).await;
    found
        .unwrap_or_else(|_| late())
        .map_err(|error| error.at(place))
}

async fn ask(mut session: LoggedIn) -> Result<Vec<DiscoveredTarget>> {
    let mut all = BytesMut::new();
    let mut text = Keys::default();
    text.add("SendTargets", "All");
    let mut text = text.encode();
    let mut answer_to = NO_TAG;
    loop {
        let request = Header::new(opcode::TEXT_REQUEST, FINAL);
        let request = request.with(field::ITT, TAG).with(field::TTT, answer_to);
        session.send(request, &text).await?;
        session.cmd_sn = session.cmd_sn.wrapping_add(1);
        let (header, data) = session.answer(opcode::TEXT_RESPONSE).await?;
        all.extend_from_slice(&data);
        if all.len() > LONGEST {
            return Err(Error::protocol(format!(
                "a list of targets of more than {LONGEST} bytes"
            )));
        }
        answer_to = header.get(field::TTT);
        if header.flags() & FINAL != 0 && header.flags() & CONTINUE == 0 {
            break;
        }
        if answer_to == NO_TAG {
            return Err(Error::protocol(
                "a list of targets that goes on without a tag",
            ));
        }
        text.clear();
    }
    let found = targets(&Keys::parse(&all)?)?;
    // The list is whole; a target that does not say goodbye is left.
    let goodbye = logout().with(field::ITT, TAG);
    let _ = timeout(GOODBYE, async {
        session.send(goodbye, &[]).await?;
        session.answer(opcode::LOGOUT_RESPONSE).await
    })
    .await;
    Ok(found)
}

impl LoggedIn {
    async fn send(&mut self, header: Header, text: &[u8]) -> Result<()> {
        let header = header
            .with(field::CMD_SN, self.cmd_sn)
            .with(field::EXP_STAT_SN, self.stat_sn);
        let (before, after) = encode(header, text, self.params.digests);
        let bytes = [&before[..], text, &after].concat();
        Ok(self.receiver.stream().write_all(&bytes).await?)
    }

    /// What comes, but for pings that need no answer.
    async fn answer(&mut self, due: u8) -> Result<(Header, bytes::Bytes)> {
        loop {
            let pdu = self.receiver.next().await?;
            let (header, opcode) = (pdu.header, pdu.header.opcode());
            if opcode == opcode::NOP_IN && header.get(field::TTT) == NO_TAG {
                continue;
            }
            if opcode != due || header.get(field::ITT) != TAG {
                return Err(Error::protocol(format!(
                    "the target sent a PDU {opcode:#04x} with tag {:#x} where {due:#04x} is due",
                    header.get(field::ITT)
                )));
            }
            let stat_sn = header.get(field::STAT_SN);
            if stat_sn != self.stat_sn {
                return Err(Error::protocol(format!(
                    "the target's answers are numbered wrongly: StatSN {stat_sn} where {} is next",
                    self.stat_sn
                )));
            }
            self.stat_sn = stat_sn.wrapping_add(1);
            return Ok((header, pdu.data));
        }
    }
}

fn targets(keys: &Keys) -> Result<Vec<DiscoveredTarget>> {
    let mut targets: Vec<DiscoveredTarget> = Vec::new();
    for (key, value) in &keys.0 {
        match (&**key, targets.last_mut()) {
            ("TargetName", _) => targets.push(DiscoveredTarget {
                name: value.clone(),
                portals: Vec::new(),
            }),
            ("TargetAddress", Some(target)) => target.portals.push(value.clone()),
            ("TargetAddress", None) => {
                return Err(Error::protocol("the address of a target without a name"));
            }
            _ => {}
        }
    }
    Ok(targets)
}
