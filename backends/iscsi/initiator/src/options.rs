//! What a session is to be like.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Place, Result};

/// A name and a secret of CHAP (RFC 1994, RFC 7143 section 12.1.3). The secret is wiped from memory
/// when dropped, and never shown.
#[derive(Clone)]
pub struct Credentials {
    /// The name; at most 255 bytes.
    pub name: String,
    /// The secret; 1 to 255 bytes. RFC 7143 wants 12 or more, most targets 12 to 16.
    pub secret: Zeroizing<Vec<u8>>,
}

impl Credentials {
    /// These.
    pub fn new(name: impl Into<String>, secret: impl Into<Vec<u8>>) -> Credentials {
        Credentials {
            name: name.into(),
            secret: Zeroizing::new(secret.into()),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How secrets are proven (RFC 7143 section 12.1.3, and what IANA registered since).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChapAlgorithm {
    /// MD5: the one that all targets have.
    Md5 = 5,
    /// SHA-1.
    Sha1 = 6,
    /// SHA-256: LIO has it since Linux 5.11. tgt 1.0.85 takes it for SHA-1.
    Sha256 = 7,
}

/// Whether PDUs carry CRC32C digests (RFC 7143 section 13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Digest {
    /// None are offered, and none taken.
    #[default]
    Off,
    /// If the target wants to.
    Preferred,
    /// A target without is [`Refused`](ErrorKind::Refused).
    Required,
}

/// What a session is to be like. See [`Options::new`] for what is set.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// `host:port`; a numeric IPv6 address stands in brackets. Without a port it is 3260.
    pub portal: String,
    /// The target's name (`iqn.…`, `eui.…`, `naa.…`). [`discover`](crate::discover) needs none.
    pub target: Option<String>,
    /// The name of this initiator.
    pub initiator: String,
    /// Proves to the target who this is. A target that does not ask for it is refused: it is not the
    /// one that was meant.
    pub chap: Option<Credentials>,
    /// Has the target prove who it is; needs `chap`, and another secret.
    pub mutual_chap: Option<Credentials>,
    /// What is offered for that, the most wanted first; by default MD5 alone. Some targets (tgt, ctld of
    /// FreeBSD) refuse lists that begin with, or hold, what they don't know.
    pub chap_algorithms: Vec<ChapAlgorithm>,
    /// Digests of headers.
    pub header_digest: Digest,
    /// Digests of data.
    pub data_digest: Digest,
    /// Within which a connection is made and a login done, redirections included. 15 s.
    pub login_timeout: Duration,
    /// Within which a command is answered, reconnecting included. 60 s. It takes up to
    /// `keep_alive`, and 5 s at most, longer to have the target stop what it did not answer in time.
    pub command_timeout: Duration,
    /// A connection that is idle for so long is tried by a ping (NOP-Out), which has to be answered
    /// within as long again. 5 s.
    pub keep_alive: Duration,
    /// Commands that are with the target at a time, at most; also the target has a limit. 128.
    pub queue_depth: usize,
    /// Identifies this session among those of the initiator (the qualifier of its ISID). A session of
    /// the same initiator, target and qualifier takes the place of the one before. By chance.
    pub isid_qualifier: Option<u16>,
}

impl Options {
    /// A session of `initiator` with `portal`, without a target.
    pub fn new(portal: impl Into<String>, initiator: impl Into<String>) -> Options {
        Options {
            portal: portal.into(),
            target: None,
            initiator: initiator.into(),
            chap: None,
            mutual_chap: None,
            chap_algorithms: vec![ChapAlgorithm::Md5],
            header_digest: Digest::Off,
            data_digest: Digest::Off,
            login_timeout: Duration::from_secs(15),
            command_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(5),
            queue_depth: 128,
            isid_qualifier: None,
        }
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            portal: self.portal.clone(),
            target: self.target.clone(),
            lun: None,
        }
    }

    /// Fails with [`InvalidInput`](ErrorKind::InvalidInput) for what can't work. Whoever logs in by them
    /// does that too.
    pub fn check(&self) -> Result<()> {
        let wrong = |reason: String| Err(Error::new(ErrorKind::InvalidInput, reason));
        for (what, name) in [
            ("initiator", Some(&self.initiator)),
            ("target", self.target.as_ref()),
        ] {
            let Some(name) = name else { continue };
            let printable = name.bytes().all(|byte| byte > b' ' && byte != 0x7f);
            if name.is_empty() || name.len() > 223 || !printable {
                return wrong(format!(
                    "{what} name {name:?}: 1 to 223 bytes without spaces"
                ));
            }
        }
        for credentials in [&self.chap, &self.mutual_chap].into_iter().flatten() {
            let (name, secret) = (&credentials.name, &credentials.secret);
            if name.is_empty() || name.len() > 255 || name.bytes().any(|byte| byte < b' ') {
                return wrong(
                    "CHAP names have 1 to 255 bytes, none of them control characters".into(),
                );
            }
            if secret.is_empty() || secret.len() > 255 {
                return wrong("CHAP secrets have 1 to 255 bytes".into());
            }
        }
        if self.chap.is_some() && self.chap_algorithms.is_empty() {
            return wrong("CHAP without an algorithm".into());
        }
        match (&self.chap, &self.mutual_chap) {
            (None, Some(_)) => return wrong("mutual CHAP needs CHAP".into()),
            (Some(own), Some(other)) if own.secret == other.secret => {
                // RFC 7143 section 9.2.1: or whoever is asked can answer with what he was answered.
                return wrong("the secrets of both directions must differ".into());
            }
            _ => {}
        }
        if !(1..=4096).contains(&self.queue_depth) {
            return wrong(format!(
                "queue_depth is 1 to 4096, not {}",
                self.queue_depth
            ));
        }
        self.address().map(drop)
    }

    /// Host and port to connect to; a numeric IPv6 address is without its brackets.
    ///
    /// Fails with [`InvalidInput`](ErrorKind::InvalidInput) if the portal is not `host:port`.
    pub fn address(&self) -> Result<(String, u16)> {
        address_of(&self.portal)
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`; with a portal group `,1` behind as targets tell it.
pub(crate) fn address_of(portal: &str) -> Result<(String, u16)> {
    let wrong = || {
        let reason = format!("portal {portal:?} is not host:port");
        Error::new(ErrorKind::InvalidInput, reason)
    };
    let address = portal.split(',').next().unwrap_or_default();
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            (
                host,
                rest.strip_prefix(':').or(rest.is_empty().then_some("3260")),
            )
        }
        None => match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, Some("3260")),
        },
    };
    let port = port.and_then(|port| port.parse().ok()).ok_or_else(wrong)?;
    let plain = !host.is_empty() && !host.chars().any(|c| c.is_whitespace() || c.is_control());
    match plain && port != 0 && (address.starts_with('[') || !host.contains(':')) {
        true => Ok((host.to_owned(), port)),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_are_read() {
        for (portal, host, port) in [
            ("a", "a", 3260),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("[::1]:3261,1", "::1", 3261),
            ("[fe80::1%eth0]", "fe80::1%eth0", 3260),
            ("a.b:3260,2", "a.b", 3260),
        ] {
            assert_eq!(address_of(portal).expect(portal), (host.to_owned(), port));
        }
        for portal in [
            "", ":", "a:", "a:0", "a:65536", "::1", "[::1", "[::1]x", "a b:1", "[]:1",
        ] {
            let error = address_of(portal).expect_err(portal);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", Credentials::new("me", "secret"));
        assert!(shown.contains("me") && !shown.contains("secret"), "{shown}");
    }
}
