//! The target's side of a login: it agrees to what it is offered, within its terms.

use std::io;

use crate::connection::Connection;
use crate::wire::*;

/// What the target wants, and then what was agreed.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The longest data segment that the target takes.
    pub segment: u32,
    /// The longest that the initiator takes.
    pub initiator_segment: u32,
    pub burst: u32,
    pub first_burst: u32,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    pub r2ts: u32,
    /// Of headers, and of data, if the initiator offers them.
    pub digests: (bool, bool),
    /// Commands at a time.
    pub window: u32,
    /// Answers that are given whatever was offered.
    pub forced: Vec<(&'static str, &'static str)>,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            segment: 8192,
            initiator_segment: 8192,
            burst: 262_144,
            first_burst: 65_536,
            initial_r2t: true,
            immediate_data: true,
            r2ts: 1,
            digests: (false, false),
            window: 32,
            forced: Vec::new(),
        }
    }
}

/// Keys that are told and not answered.
const TOLD: [&str; 5] = [
    "InitiatorName",
    "InitiatorAlias",
    "TargetName",
    "SessionType",
    "MaxRecvDataSegmentLength",
];

pub fn value<'a>(keys: &'a [(String, String)], key: &str) -> Option<&'a str> {
    keys.iter()
        .find(|(name, _)| name == key)
        .map(|(_, value)| value.as_str())
}

/// The stages that a login request names: the one it is of, and the next one.
pub fn stages(request: &Pdu) -> (u8, u8) {
    (request.head[1] >> 2 & 3, request.head[1] & 3)
}

impl Connection {
    pub fn login(&mut self) -> io::Result<()> {
        self.login_on(&Terms::default())
    }

    /// A whole login without authentication.
    pub fn login_on(&mut self, terms: &Terms) -> io::Result<()> {
        loop {
            let (request, keys) = self.login_request()?;
            let answers = self.agree(terms, &keys);
            if self.login_answer(&request, &text(&answers))? {
                self.digests = self.terms.digests;
                return Ok(());
            }
        }
    }

    /// The next login request with all of its text.
    pub fn login_request(&mut self) -> io::Result<(Pdu, Vec<(String, String)>)> {
        let mut whole = Vec::new();
        loop {
            let request = self.receive()?;
            assert_eq!(request.opcode(), LOGIN, "{request:02x?}");
            assert!(request.immediate(), "a login request is immediate");
            self.start_at(request.get(NUMBER));
            whole.extend_from_slice(&request.data);
            if request.head[1] & CONTINUED == 0 {
                return Ok((request, pairs(&whole)));
            }
            assert!(
                !request.is_final(),
                "the text goes on, so the stage can't end"
            );
            let (stage, _) = stages(&request);
            self.login_response(&request, stage << 2, &[])?;
        }
    }

    /// Answers with this text, and goes on to the next stage if the initiator wants to. Says
    /// whether the login is done.
    pub fn login_answer(&mut self, request: &Pdu, text: &[u8]) -> io::Result<bool> {
        let (stage, next) = stages(request);
        let transit = request.is_final();
        let flags = if transit {
            FINAL | stage << 2 | next
        } else {
            stage << 2
        };
        self.login_response(request, flags, text)?;
        Ok(transit && next == 3)
    }

    /// A login response with these flags.
    pub fn login_response(&mut self, request: &Pdu, flags: u8, text: &[u8]) -> io::Result<()> {
        let response = answer_to(request, flags);
        self.send(response.with(text))
    }

    /// Ends the login with this status: its class, and its detail.
    pub fn refuse(&mut self, status: u16, text: &[u8]) -> io::Result<()> {
        let (request, _) = self.login_request()?;
        let [class, detail] = status.to_be_bytes();
        let (stage, _) = stages(&request);
        let response = answer_to(&request, stage << 2)
            .byte(36, class)
            .byte(37, detail);
        self.send(response.with(text))
    }

    /// Answers to these keys; what comes of them is kept.
    pub fn agree(&mut self, terms: &Terms, keys: &[(String, String)]) -> Vec<(String, String)> {
        self.terms.window = terms.window;
        if let Some(segment) = value(keys, "MaxRecvDataSegmentLength") {
            self.terms.initiator_segment = segment.parse().expect("a number");
            self.terms.segment = terms.segment;
        }
        let mut answers = Vec::new();
        for (key, offer) in keys {
            if !TOLD.contains(&key.as_str()) {
                answers.push((key.clone(), self.agree_on(terms, key, offer)));
            } else if key == "MaxRecvDataSegmentLength" {
                answers.push((key.clone(), terms.segment.to_string()));
            } else if key == "SessionType" && offer == "Normal" {
                answers.push(("TargetPortalGroupTag".into(), "1".into()));
            }
        }
        // Not before its stage: the first request may be one about security only.
        if value(keys, "MaxRecvDataSegmentLength").is_some() {
            for (key, forced) in &terms.forced {
                answers.retain(|(name, _)| name != key);
                answers.push(((*key).into(), (*forced).into()));
            }
        }
        answers
    }

    fn agree_on(&mut self, terms: &Terms, key: &str, offer: &str) -> String {
        let number = || offer.parse::<u32>().expect("a number");
        let yes_or_no = |yes: bool| if yes { "Yes" } else { "No" }.to_owned();
        match key {
            "AuthMethod" => {
                assert!(
                    offer.split(',').any(|offer| offer == "None"),
                    "{offer} untold"
                );
                "None".into()
            }
            "HeaderDigest" => {
                let (agreed, answer) = digest(terms.digests.0, offer);
                self.terms.digests.0 = agreed;
                answer
            }
            "DataDigest" => {
                let (agreed, answer) = digest(terms.digests.1, offer);
                self.terms.digests.1 = agreed;
                answer
            }
            "MaxBurstLength" => {
                self.terms.burst = number().min(terms.burst);
                self.terms.burst.to_string()
            }
            "FirstBurstLength" => {
                self.terms.first_burst = number().min(terms.first_burst);
                self.terms.first_burst.to_string()
            }
            "MaxOutstandingR2T" => {
                self.terms.r2ts = number().min(terms.r2ts);
                self.terms.r2ts.to_string()
            }
            "InitialR2T" => {
                self.terms.initial_r2t = offer == "Yes" || terms.initial_r2t;
                yes_or_no(self.terms.initial_r2t)
            }
            "ImmediateData" => {
                self.terms.immediate_data = offer == "Yes" && terms.immediate_data;
                yes_or_no(self.terms.immediate_data)
            }
            "DefaultTime2Wait" => offer.into(),
            "DefaultTime2Retain" | "ErrorRecoveryLevel" => "0".into(),
            "MaxConnections" => "1".into(),
            "DataPDUInOrder" | "DataSequenceInOrder" => "Yes".into(),
            "iSCSIProtocolLevel" => "1".into(),
            _ => "NotUnderstood".into(),
        }
    }
}

/// Whether there is a digest, and the answer.
fn digest(wanted: bool, offer: &str) -> (bool, String) {
    let offers = |what| offer.split(',').any(|offer| offer == what);
    match (wanted, offers("CRC32C"), offers("None")) {
        (true, true, _) => (true, "CRC32C".into()),
        (_, _, true) => (false, "None".into()),
        _ => (false, "Reject".into()),
    }
}

fn answer_to(request: &Pdu, flags: u8) -> Pdu {
    let mut response = Pdu::to(request, LOGIN_RESPONSE, flags).word(TRANSFER_TAG, 0);
    response.head[8..14].copy_from_slice(&request.head[8..14]);
    // The session's handle comes with the last response, or with every one: both are done.
    response.byte(15, 7)
}
