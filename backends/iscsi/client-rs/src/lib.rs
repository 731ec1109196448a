//! A second transport of iSCSI pools, on the crate `iscsi-client-rs` 0.0.9.
//!
//! **Whoever links this crate falls under the AGPL as a whole** (see NOTICE). It is in no package
//! of volmux: a program that accepts that hands [`ClientRs`] to the iSCSI backend, and opens pools
//! with the option `transport=iscsi-client-rs`.
//!
//! It sends commands, reads and writes, with CHAP by MD5 and with digests, and a broken connection
//! is made anew. What else [`Native`](volmux_iscsi::transport::Native) does is refused before
//! anything is sent: listing targets, mutual CHAP, resets.
//!
//! `iscsi-client-rs` is used where it does its work, and worked around where it does not:
//! - Each session has a thread with a runtime of its own: on a runtime with several threads
//!   the crate loses answers to writes.
//! - Its login takes only a target that answers exactly what it was offered, and does not tell why
//!   it failed. So each login is rehearsed up to its last step on a connection that is then
//!   closed: what the target answers there is what is offered in earnest.
//! - Commands, data and command window are this crate's; what it passes on is checked. Nothing is
//!   sent twice unless its caller allows that.
//!
//! What can't be mended, and what it leads to:
//! - No command can be aborted: one that is not answered in time ends the session. The next one
//!   has the same ISID, so the target ends the old one first (RFC 7143 section 6.3.5).
//! - A target that moves a login to another portal, or takes more than one request to come to
//!   terms, is refused. tgt does the latter if its segments are not of the default length.
//! - A target that asks for a logout, or sends any asynchronous message, is left at once.
//! - A rejected request is not seen: its command times out, and so ends the session. So does one
//!   that the target answers in the moment after it asked for its data.
//! - A target that means harm can fill memory with what it sends while it takes nothing, for up to
//!   twice [`Options::keep_alive`]: PDUs of up to 16 MiB come into memory before their lengths can
//!   be refused, up to 32 wait for each command that is being written, and pings are answered by
//!   as many tasks as there are pings, until a quarter of a second later the session ends.
//! - The CHAP secret stays in memory for as long as the session, and is not wiped.
//! - At the levels `debug` and `trace`, the target `iscsi_client_rs` of a subscriber of `tracing`
//!   sees the headers of PDUs, and the texts of logins.

mod agreement;
mod establish;
mod link;
mod pdu;
mod session;
mod task;

use std::sync::Arc;

use async_trait::async_trait;
use volmux_iscsi::transport::{Abilities, Connector, ScsiTransport};
use volmux_iscsi_initiator::{ChapAlgorithm, DiscoveredTarget, Error, ErrorKind, Options, Result};

/// Makes sessions by `iscsi-client-rs`.
///
/// Errors are those of [`Connector`]. The sessions can be used from any runtime, and from none.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientRs;

#[async_trait]
impl Connector for ClientRs {
    fn name(&self) -> &'static str {
        "iscsi-client-rs"
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            discovery: false,
            mutual_chap: false,
            digests: true,
            reset: false,
            reconnect: true,
        }
    }

    async fn login(&self, options: Options) -> Result<Arc<dyn ScsiTransport>> {
        let (portal, target) = (options.portal.clone(), options.target.clone());
        let session = match check(&options) {
            Ok(()) => session::Session::login(options).await,
            Err(error) => Err(error),
        };
        let session = session.map_err(|error| error.between(portal, target))?;
        Ok(Arc::new(session))
    }

    async fn discover(&self, options: &Options) -> Result<Vec<DiscoveredTarget>> {
        Err(refused("list targets").between(&options.portal, None))
    }
}

/// What this transport can't do.
fn refused(what: &str) -> Error {
    let reason = format!("the transport iscsi-client-rs can't {what}: use transport=native");
    Error::new(ErrorKind::Refused, reason)
}

/// Fails for what can't work, or what the crate would do otherwise than asked.
fn check(options: &Options) -> Result<()> {
    options.check()?;
    if options.target.is_none() {
        let reason = "which target is not told";
        return Err(Error::new(ErrorKind::InvalidInput, reason));
    }
    if options.mutual_chap.is_some() {
        return Err(refused("have the target prove who it is (mutual CHAP)"));
    }
    let Some(own) = &options.chap else {
        return Ok(());
    };
    if !options.chap_algorithms.contains(&ChapAlgorithm::Md5) {
        return Err(refused("do CHAP without MD5"));
    }
    match std::str::from_utf8(&own.secret) {
        Ok(_) => Ok(()),
        Err(_) => Err(refused("take CHAP secrets that are not UTF-8")),
    }
}
