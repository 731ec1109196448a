//! What may be told to a target program: nothing that it could take for something else.

use volmux_core::{Error, ErrorKind, Result};
use volmux_iscsi_initiator::Credentials;

use super::Export;

/// Characters of a unit serial number.
const MOST_SERIAL: usize = 36;
/// Bytes of an iSCSI name (RFC 7143 section 4.2.7.2).
const MOST_NAME: usize = 223;
const MOST_CHAP: usize = 255;

/// Checks all that an export says, but for its path.
///
/// # Errors
/// `InvalidInput`.
pub(super) fn check(op: &'static str, export: &Export) -> Result<()> {
    let wrong = |reason: String| {
        let error = Error::new(ErrorKind::InvalidInput, op).with("target", &export.target);
        Err(error.reason(reason))
    };
    name(op, "target", &export.target)?;
    for initiator in &export.initiators {
        name(op, "initiator", initiator)?;
    }
    let serial = &export.serial;
    let printable = serial
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if serial.is_empty() || serial.len() > MOST_SERIAL || !printable {
        return wrong(format!(
            "serial number {serial:?}: 1 to {MOST_SERIAL} letters, digits and hyphens"
        ));
    }
    if export.size == 0 || !export.size.is_multiple_of(512) {
        return wrong(format!(
            "{} bytes are no number of 512-byte blocks",
            export.size
        ));
    }
    for credentials in [&export.chap, &export.mutual_chap].into_iter().flatten() {
        chap(op, credentials)?;
    }
    match (&export.chap, &export.mutual_chap) {
        (None, Some(_)) => wrong("mutual CHAP needs CHAP".into()),
        (Some(own), Some(other)) if own.secret == other.secret => {
            wrong("the secrets of both directions must differ".into())
        }
        _ => Ok(()),
    }
}

/// Checks an iSCSI name. The characters are those that RFC 7143 section 4.2.7.1 leaves after
/// normalization, and the underscore and capitals that are met all the same.
///
/// # Errors
/// `InvalidInput`.
pub(super) fn name(op: &'static str, what: &'static str, name: &str) -> Result<()> {
    let kind = ["iqn.", "eui.", "naa."]
        .iter()
        .any(|kind| name.starts_with(kind));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:-_".contains(&byte);
    if kind && name.len() <= MOST_NAME && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, op)
        .with(what, name)
        .reason("an iSCSI name is iqn.…, eui.… or naa.…, of letters, digits, and . : - _"))
}

fn chap(op: &'static str, credentials: &Credentials) -> Result<()> {
    let (name, secret) = (&credentials.name, &credentials.secret);
    let wrong = |reason: &str| {
        Err(Error::new(ErrorKind::InvalidInput, op)
            .with("user", name)
            .reason(reason))
    };
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b',';
    if name.is_empty() || name.len() > MOST_CHAP || !name.bytes().all(plain) {
        return wrong(
            "a CHAP name is 1 to 255 printable ASCII characters, without spaces and commas",
        );
    }
    if secret.is_empty() || secret.len() > MOST_CHAP {
        return wrong("a CHAP secret has 1 to 255 bytes");
    }
    if secret.iter().any(|byte| *byte < b' ' || *byte == 0x7f) {
        return wrong("a CHAP secret has no control characters");
    }
    Ok(())
}
