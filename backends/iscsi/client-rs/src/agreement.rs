//! What is offered at login, and what the target makes of it (RFC 7143 section 13).

use std::collections::HashMap;
use std::time::Duration;

use iscsi_client_rs::cfg::config::{
    AuthConfig, ChapConfig, Config, Extensions, Flow, Identity, Integrity, Limits, LoginConfig,
    Ordering, Recovery, RuntimeConfig, Timers, TransportHints, WriteFlow,
};
use iscsi_client_rs::cfg::enums::{Digest as Crc, SessionType, YesNo};
use volmux_iscsi_initiator::{Digest, Error, ErrorKind, Options, Result};

use crate::pdu::Digests;

/// Bytes of data that a PDU to the target may have if it says nothing.
const DEFAULT_SEGMENT: u32 = 8192;
const DEFAULT_BURST: u32 = 256 << 10;
const DEFAULT_FIRST_BURST: u32 = 64 << 10;
/// The largest of all lengths.
const LONGEST: u32 = (1 << 24) - 1;

/// Terms of a session: first as they are offered, then as the target has answered. The crate logs
/// in only if the target answers what it is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    pub digests: Digests,
    /// Bytes of data that a PDU may have, in both directions: the crate wants them to be the same.
    pub segment: u32,
    /// Bytes that an R2T may ask for.
    pub burst: u32,
    /// Bytes that go with a command, at most.
    pub first_burst: u32,
    pub immediate_data: bool,
    /// Seconds.
    time_to_wait: u32,
    time_to_retain: u32,
    /// A new session ends the old one only in the same portal group.
    pub portal_group: Option<String>,
}

/// Pairs of a text.
pub struct Keys(Vec<(String, String)>);

impl Keys {
    /// Reads the text of a response.
    pub fn parse(text: &[u8]) -> Result<Keys> {
        let wrong = || {
            let reason = "the target answers a login with a text that is not key=value";
            Error::new(ErrorKind::Protocol, reason)
        };
        let mut keys = Vec::new();
        for pair in text
            .split(|byte| *byte == 0)
            .filter(|pair| !pair.is_empty())
        {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
            keys.push((key.to_owned(), value.to_owned()));
        }
        Ok(Keys(keys))
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    pub fn extend(&mut self, more: Keys) {
        self.0.extend(more.0);
    }
}

impl Agreement {
    /// What is wanted.
    pub fn wanted(options: &Options) -> Agreement {
        Agreement {
            digests: Digests {
                header: options.header_digest != Digest::Off,
                data: options.data_digest != Digest::Off,
            },
            segment: 256 << 10,
            burst: 1 << 20,
            first_burst: 256 << 10,
            immediate_data: true,
            time_to_wait: 0,
            time_to_retain: 0,
            portal_group: None,
        }
    }

    /// What the target said to it. Offered again, that is answered by the same.
    pub fn answered(&self, keys: &Keys, options: &Options) -> Result<Agreement> {
        let number = |key: &str, least: u32, most: u32, default: u32| match keys.get(key) {
            // What is not understood is skipped by the crate as well.
            None | Some("NotUnderstood") => Ok(default.min(most)),
            Some(value) => {
                let number = value.parse().ok();
                let number = number.filter(|number| (least..=most).contains(number));
                number.ok_or_else(|| strange(key, value))
            }
        };
        let time = |key| number(key, 0, 3600, 0);
        Ok(Agreement {
            digests: Digests {
                header: digest("HeaderDigest", keys, options.header_digest)?,
                data: digest("DataDigest", keys, options.data_digest)?,
            },
            // It is told, not agreed on.
            segment: number("MaxRecvDataSegmentLength", 512, LONGEST, DEFAULT_SEGMENT)?,
            burst: number("MaxBurstLength", 512, self.burst, DEFAULT_BURST)?,
            first_burst: number(
                "FirstBurstLength",
                512,
                self.first_burst,
                DEFAULT_FIRST_BURST,
            )?,
            immediate_data: keys.get("ImmediateData") == Some("Yes"),
            time_to_wait: time("DefaultTime2Wait")?,
            time_to_retain: time("DefaultTime2Retain")?,
            portal_group: keys.get("TargetPortalGroupTag").map(str::to_owned),
        })
    }

    /// How the crate is told that.
    pub fn config(&self, options: &Options) -> Result<Config> {
        let (host, port) = options.address()?;
        let auth = match &options.chap {
            None => AuthConfig::None,
            Some(own) => AuthConfig::Chap(ChapConfig {
                username: own.name.clone(),
                secret: String::from_utf8_lossy(&own.secret).into_owned(),
            }),
        };
        let crc = |on| if on { Crc::CRC32C } else { Crc::None };
        let login = LoginConfig {
            identity: Identity {
                session_type: SessionType::Normal,
                initiator_name: options.initiator.clone(),
                initiator_alias: String::new(),
                target_name: options.target.clone().unwrap_or_default(),
                // With Yes digests are sent in the wrong byte order, on any machine.
                is_x86: YesNo::No,
            },
            auth,
            integrity: Integrity {
                header_digest: crc(self.digests.header),
                data_digest: crc(self.digests.data),
            },
            flow: Flow {
                max_recv_data_segment_length: self.segment,
                max_burst_length: self.burst,
                first_burst_length: self.first_burst,
            },
            write_flow: WriteFlow {
                // So nothing but immediate data comes unasked.
                initial_r2t: YesNo::Yes,
                immediate_data: self.immediate_data.into(),
                max_outstanding_r2t: 1,
            },
            ordering: Ordering {
                data_pdu_in_order: YesNo::Yes,
                data_sequence_in_order: YesNo::Yes,
            },
            recovery: Recovery {
                error_recovery_level: 0,
            },
            timers: Timers {
                default_time2wait: Duration::from_secs(self.time_to_wait.into()),
                default_time2retain: Duration::from_secs(self.time_to_retain.into()),
            },
            limits: Limits { max_connections: 1 },
            extensions: Extensions {
                task_reporting: None,
                iscsi_protocol_level: None,
                custom: HashMap::new(),
            },
            transport: TransportHints {
                target_address: match host.contains(':') {
                    true => format!("[{host}]:{port}"),
                    false => format!("{host}:{port}"),
                },
                portal_group_tag: 0,
            },
        };
        Ok(Config {
            login,
            runtime: RuntimeConfig {
                max_sessions: 1,
                // It would end sessions that are idle for as long. Waits end otherwise here.
                timeout_connection: Duration::from_secs(1 << 30),
            },
        })
    }
}

fn strange(key: &str, value: &str) -> Error {
    let reason = format!("the target wants {key}={value}");
    Error::new(ErrorKind::Protocol, reason)
}

fn digest(key: &str, keys: &Keys, wanted: Digest) -> Result<bool> {
    match (keys.get(key), wanted) {
        (Some("CRC32C"), Digest::Preferred | Digest::Required) => Ok(true),
        (_, Digest::Required) => {
            let reason = format!("the target has no {key}, which was asked for");
            Err(Error::new(ErrorKind::Refused, reason))
        }
        (None | Some("None" | "Reject" | "NotUnderstood"), _) => Ok(false),
        (Some(other), _) => Err(strange(key, other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(options: &Options, said: &str) -> Result<Agreement> {
        let keys = Keys::parse(said.replace(' ', "\0").as_bytes())?;
        Agreement::wanted(options).answered(&keys, options)
    }

    #[test]
    fn what_is_answered_is_offered() {
        let mut options = Options::new("[::1]:1", "iqn.2000-01.test:me");
        options.data_digest = Digest::Preferred;
        let said = "HeaderDigest=None DataDigest=CRC32C MaxRecvDataSegmentLength=65536 \
            InitialR2T=Yes ImmediateData=No MaxBurstLength=65536 FirstBurstLength=4096 \
            DefaultTime2Wait=2 DefaultTime2Retain=20 TargetPortalGroupTag=1 X-of.theirs=3";
        let agreed = taken(&options, said).expect("fine");
        let due = Agreement {
            digests: Digests {
                header: false,
                data: true,
            },
            segment: 65536,
            burst: 65536,
            first_burst: 4096,
            immediate_data: false,
            time_to_wait: 2,
            time_to_retain: 20,
            portal_group: Some("1".into()),
        };
        assert_eq!(agreed, due);
        let config = agreed.config(&options).expect("fine");
        assert_eq!(config.login.transport.target_address, "[::1]:1");
        assert_eq!(config.login.integrity.data_digest, Crc::CRC32C);
        assert_eq!(config.login.flow.max_recv_data_segment_length, 65536);
    }

    #[test]
    fn of_what_is_not_answered_the_least_holds() {
        let agreed = taken(&Options::new("a", "iqn.2000-01.test:me"), "").expect("fine");
        assert_eq!((agreed.segment, agreed.burst), (8192, 256 << 10));
        assert_eq!(
            (agreed.first_burst, agreed.immediate_data),
            (64 << 10, false)
        );
        assert_eq!(agreed.digests, Digests::default());
    }

    #[test]
    fn nonsense_is_refused() {
        let mut options = Options::new("a", "iqn.2000-01.test:me");
        for said in [
            "MaxBurstLength=0",
            "MaxBurstLength=16777215",
            "FirstBurstLength=x",
            "MaxRecvDataSegmentLength=16777216",
            "HeaderDigest=CRC32C",
            "DefaultTime2Wait=-1",
            "nonsense",
        ] {
            let error = taken(&options, said).expect_err(said);
            assert_eq!(error.kind(), ErrorKind::Protocol, "{said}");
        }
        options.header_digest = Digest::Required;
        for said in [
            "HeaderDigest=None",
            "HeaderDigest=Reject",
            "DataDigest=None",
        ] {
            let error = taken(&options, said).expect_err(said);
            assert_eq!(error.kind(), ErrorKind::Refused, "{said}");
        }
    }
}
