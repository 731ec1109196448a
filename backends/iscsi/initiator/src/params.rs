//! What both sides agree on at login (RFC 7143 section 13).

use crate::error::{Error, ErrorKind, Result};
use crate::options::{Digest, Options};
use crate::text::{Keys, number};
use crate::wire::Digests;

/// Bytes of data that a PDU from the target may have.
pub const RECEIVED: usize = 256 << 10;
/// As long as nothing is agreed.
pub const DEFAULT: usize = 8192;
const BURST: u32 = 1 << 20;
const FIRST_BURST: u32 = 256 << 10;
/// The largest of all lengths.
const LONGEST: u32 = (1 << 24) - 1;

/// What was agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    pub digests: Digests,
    /// Bytes of data that a PDU to the target may have.
    pub most_sent: usize,
    /// Bytes that an R2T may ask for.
    pub max_burst: u32,
    /// Bytes that may be sent with and after a command, unasked.
    pub first_burst: u32,
    /// All but what goes with the command has to be asked for.
    pub initial_r2t: bool,
    /// Data may go with the command.
    pub immediate_data: bool,
    /// The portal group that was logged in to: a new session ends the old one only in the same.
    pub portal_group: Option<u32>,
}

impl Default for Params {
    /// As long as nothing is agreed.
    fn default() -> Params {
        Params {
            digests: Digests::default(),
            most_sent: DEFAULT,
            max_burst: 256 << 10,
            first_burst: 64 << 10,
            initial_r2t: true,
            immediate_data: true,
            portal_group: None,
        }
    }
}

fn offered_digest(wanted: Digest) -> &'static str {
    match wanted {
        Digest::Off => "None",
        Digest::Preferred => "CRC32C,None",
        Digest::Required => "CRC32C",
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "Yes" } else { "No" }
}

/// What is offered. Sessions for discovery have no data.
pub fn offer(options: &Options, discovery: bool) -> Keys {
    let mut keys = Keys::default();
    keys.add("HeaderDigest", offered_digest(options.header_digest));
    keys.add("DataDigest", offered_digest(options.data_digest));
    keys.add("MaxRecvDataSegmentLength", RECEIVED.to_string());
    keys.add("DefaultTime2Wait", "0");
    keys.add("DefaultTime2Retain", "0");
    keys.add("ErrorRecoveryLevel", "0");
    if discovery {
        return keys;
    }
    keys.add("InitialR2T", "No");
    keys.add("ImmediateData", "Yes");
    keys.add("MaxBurstLength", BURST.to_string());
    keys.add("FirstBurstLength", FIRST_BURST.to_string());
    keys.add("MaxOutstandingR2T", "1");
    keys.add("MaxConnections", "1");
    keys.add("DataPDUInOrder", "Yes");
    keys.add("DataSequenceInOrder", "Yes");
    keys
}

impl Params {
    /// Takes what the target answered or says, and returns what is to be answered to that. `offered` is
    /// what it has been offered so far.
    pub fn take(&mut self, said: &Keys, offered: &Keys, options: &Options) -> Result<Keys> {
        let mut answers = Keys::default();
        for (key, value) in &said.0 {
            let asked = offered.get(key).is_some();
            let answer = self.take_one(key, value, asked, options)?;
            if let Some(answer) = answer.filter(|_| !asked) {
                answers.add(key, answer);
            }
        }
        if self.first_burst > self.max_burst {
            // RFC 7143 section 13.14.
            return Err(Error::protocol(format!(
                "FirstBurstLength={} and MaxBurstLength={}",
                self.first_burst, self.max_burst
            )));
        }
        Ok(answers)
    }

    /// What to answer if the target began with this key.
    fn take_one(
        &mut self,
        key: &str,
        value: &str,
        asked: bool,
        options: &Options,
    ) -> Result<Option<String>> {
        if value == "Reject" || (asked && matches!(value, "NotUnderstood" | "Irrelevant")) {
            return match key {
                "HeaderDigest" => agreed_digest(key, "None", options.header_digest).map(|_| None),
                "DataDigest" => agreed_digest(key, "None", options.data_digest).map(|_| None),
                // The defaults hold.
                _ => Ok(None),
            };
        }
        let wrong = || Error::protocol(format!("the target wants {key}={value}"));
        let within = |least: u32| {
            let found = number(value).filter(|value| (least..=LONGEST).contains(value));
            found.ok_or_else(wrong)
        };
        let yes = || match value {
            "Yes" => Ok(true),
            "No" => Ok(false),
            _ => Err(wrong()),
        };
        let answer = match key {
            "HeaderDigest" | "DataDigest" if !asked => {
                let none = value.split(',').any(|one| one == "None");
                if none { "None".into() } else { "Reject".into() }
            }
            "HeaderDigest" => {
                self.digests.header = agreed_digest(key, value, options.header_digest)?;
                return Ok(None);
            }
            "DataDigest" => {
                self.digests.data = agreed_digest(key, value, options.data_digest)?;
                return Ok(None);
            }
            "MaxRecvDataSegmentLength" => {
                self.most_sent = within(512)? as usize;
                return Ok(None);
            }
            "MaxBurstLength" => {
                self.max_burst = within(512)?.min(BURST);
                self.max_burst.to_string()
            }
            "FirstBurstLength" => {
                self.first_burst = within(512)?.min(FIRST_BURST);
                self.first_burst.to_string()
            }
            // The outcome is the OR of both, and of the next the AND; ours are No and Yes.
            "InitialR2T" => {
                self.initial_r2t = yes()?;
                yes_no(self.initial_r2t).into()
            }
            "ImmediateData" => {
                self.immediate_data = yes()?;
                yes_no(self.immediate_data).into()
            }
            "DataPDUInOrder" | "DataSequenceInOrder" => {
                let in_order = yes()?;
                if asked && !in_order {
                    return Err(wrong());
                }
                "Yes".into()
            }
            "ErrorRecoveryLevel" | "MaxConnections" | "MaxOutstandingR2T" => {
                let least = if key == "ErrorRecoveryLevel" { 0 } else { 1 };
                let value = number(value).ok_or_else(wrong)?;
                if value < least || (asked && value > least) {
                    return Err(wrong());
                }
                least.to_string()
            }
            "DefaultTime2Wait" | "DefaultTime2Retain" => {
                number(value).ok_or_else(wrong)?;
                value.to_owned()
            }
            // Told, not asked.
            "TargetPortalGroupTag" => {
                self.portal_group = Some(number(value).ok_or_else(wrong)?);
                return Ok(None);
            }
            "TargetAlias" | "TargetAddress" | "TargetName" => {
                return Ok(None);
            }
            "AuthMethod" | "CHAP_A" | "CHAP_I" | "CHAP_C" | "CHAP_N" | "CHAP_R" => return Ok(None),
            "IFMarker" | "OFMarker" => "No".into(),
            _ => "NotUnderstood".into(),
        };
        Ok(Some(answer))
    }
}

fn agreed_digest(key: &str, value: &str, wanted: Digest) -> Result<bool> {
    match (value, wanted) {
        ("CRC32C", Digest::Preferred | Digest::Required) => Ok(true),
        ("None", Digest::Off | Digest::Preferred) => Ok(false),
        ("None", Digest::Required) => Err(Error::new(
            ErrorKind::Refused,
            format!("the target has no {key}, which was asked for"),
        )),
        _ => Err(Error::protocol(format!(
            "the target answers {key}={value}, which it was not offered"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(options: &Options, said: &str) -> Result<(Params, Keys)> {
        let said = Keys::parse(said.replace(' ', "\0").as_bytes())?;
        let mut params = Params::default();
        let answers = params.take(&said, &offer(options, false), options)?;
        Ok((params, answers))
    }

    #[test]
    fn what_is_agreed_holds() {
        let mut options = Options::new("portal", "iqn.2000-01.test:me");
        options.data_digest = Digest::Preferred;
        let said = "HeaderDigest=None DataDigest=CRC32C MaxRecvDataSegmentLength=65536 InitialR2T=Yes \
            ImmediateData=No MaxBurstLength=0x10000 FirstBurstLength=4096 MaxOutstandingR2T=1 \
            TargetPortalGroupTag=1 X-of.theirs=3 ErrorRecoveryLevel=0";
        let (params, answers) = taken(&options, said).expect("fine");
        let due = Params {
            digests: Digests {
                header: false,
                data: true,
            },
            most_sent: 65536,
            max_burst: 65536,
            first_burst: 4096,
            initial_r2t: true,
            immediate_data: false,
            portal_group: Some(1),
        };
        assert_eq!(params, due);
        assert_eq!(answers.0, [("X-of.theirs".into(), "NotUnderstood".into())]);
    }

    #[test]
    fn nonsense_is_refused() {
        let options = Options::new("portal", "iqn.2000-01.test:me");
        for said in [
            "MaxBurstLength=0",
            "MaxBurstLength=16777216",
            "MaxBurstLength=512 FirstBurstLength=1024",
            "HeaderDigest=CRC32C",
            "MaxRecvDataSegmentLength=1",
            "MaxRecvDataSegmentLength=x",
            "InitialR2T=Maybe",
            "DataPDUInOrder=No",
            "ErrorRecoveryLevel=2",
            "MaxOutstandingR2T=0",
        ] {
            let error = taken(&options, said).expect_err(said);
            assert_eq!(error.kind(), ErrorKind::Protocol, "{said}");
        }
        let mut options = options;
        options.header_digest = Digest::Required;
        for said in [
            "HeaderDigest=None",
            "HeaderDigest=Reject",
            "HeaderDigest=NotUnderstood",
        ] {
            let error = taken(&options, said).expect_err(said);
            assert_eq!(error.kind(), ErrorKind::Refused, "{said}");
        }
    }
}
