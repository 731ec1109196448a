//! CHAP accounts of tgtd.
//!
//! An account is a name and a secret. Names are tgtd's: there is one account a name, whatever
//! number of targets it is bound to. tgtd never tells a secret, nor whether one is right. So that
//! an account with another secret is noticed, each has a second one beside it, which nothing is
//! ever bound to: its name holds a salted hash of the secret, cut to 64 bits (only who may also
//! read tgtd's memory gets to see it). What an account's neighbour does not confirm is taken for
//! unknown.

use std::fmt::Write;

use sha2::{Digest, Sha256};
use volmux_core::{Error, ErrorKind, Result};
use volmux_iscsi_initiator::Credentials;
use zeroize::Zeroizing;

use super::show;
use super::show::Target;
use super::wire::{Action, Client, Code, Mode, Request};

pub const PREFIX: &str = "volmux-mark:";
/// Digits: eight of the salt, sixteen of the hash.
const DIGITS: usize = 24;

/// All accounts.
///
/// # Errors
/// Those of [`Client::ask`].
pub async fn all(client: &Client<'_>) -> Result<Vec<String>> {
    let shown = client
        .ask(Request::new(Mode::Account, Action::Show))
        .await?;
    Ok(show::accounts(&shown.good("show its accounts")?))
}

/// Whether there is an account of that name with that secret, as far as its neighbour tells.
pub fn is_right(all: &[String], credentials: &Credentials) -> bool {
    let marks: Vec<&str> = all
        .iter()
        .filter_map(|account| mark_of(account, &credentials.name))
        .collect();
    let [mark] = marks[..] else { return false };
    let salt = mark.get(..8).unwrap_or_default();
    all.contains(&credentials.name) && mark == digits(salt, credentials)
}

/// Checks that an account can be made, or made anew with another secret: that no target but `own`
/// needs the one that there is.
///
/// # Errors
/// `AlreadyExists` if one does; those of [`Client::ask`].
pub async fn check(
    client: &Client<'_>,
    credentials: &Credentials,
    all: &[String],
    targets: &[Target],
    own: &str,
) -> Result<()> {
    let name = &credentials.name;
    if !all.contains(name) || is_right(all, credentials) {
        return Ok(());
    }
    let mut others = targets.iter().filter(|target| target.name != own);
    let user = match others.find(|target| target.needs(name)) {
        Some(target) => format!("target {}", target.name),
        None if is_for_discovery(client, name).await? => "discovery".into(),
        None => return Ok(()),
    };
    Err(Error::new(ErrorKind::AlreadyExists, client.op)
        .with("user", name)
        .reason(format!(
            "tgtd may have that account with another secret, and {user} needs it"
        ))
        .help("give a new secret a new name: tgtd has one secret a name"))
}

/// Makes an account, unless it is there with that secret. One with another secret, or which was not
/// made by this, is made anew: see [`check`].
///
/// # Errors
/// Those of [`Client::ask`].
pub async fn ensure(client: &Client<'_>, credentials: &Credentials, all: &[String]) -> Result<()> {
    if is_right(all, credentials) {
        return Ok(());
    }
    let name = &credentials.name;
    if all.contains(name) {
        delete(client, name).await?;
    }
    for mark in all.iter().filter(|other| mark_of(other, name).is_some()) {
        delete(client, mark).await?;
    }
    // In this order: an account that has a neighbour never is older than it.
    let salt = uuid::Uuid::new_v4().simple().to_string();
    let mark = format!("{PREFIX}{name}:{}", digits(&salt[..8], credentials));
    let random = uuid::Uuid::new_v4().simple().to_string();
    new(client, &mark, random.as_bytes()).await?;
    new(client, name, &credentials.secret).await
}

/// Deletes the accounts that were made by [`ensure`] and that no target needs any more.
///
/// # Errors
/// Those of [`Client::ask`].
pub async fn clean(client: &Client<'_>, targets: &[Target]) -> Result<()> {
    let all = all(client).await?;
    let marks = all
        .iter()
        .filter_map(|account| Some((account, marked(account)?)));
    for (mark, name) in marks {
        if targets.iter().any(|target| target.needs(name)) || is_for_discovery(client, name).await?
        {
            continue;
        }
        if all.iter().any(|account| account == name) {
            delete(client, name).await?;
        }
        delete(client, mark).await?;
    }
    Ok(())
}

/// Binds an account to a target.
///
/// # Errors
/// Those of [`Client::ask`].
pub async fn bind(client: &Client<'_>, target: i32, name: &str, outgoing: bool) -> Result<()> {
    let mut request = Request::new(Mode::Account, Action::Bind).of(target);
    request.outgoing = outgoing;
    let request = request.text(&[b"user=", name.as_bytes()]);
    client.ask(request).await?.good("bind an account").map(drop)
}

async fn is_for_discovery(client: &Client<'_>, name: &str) -> Result<bool> {
    let shown = client.ask(Request::new(Mode::System, Action::Show)).await?;
    Ok(show::is_for_discovery(&shown.good("show its state")?, name))
}

async fn new(client: &Client<'_>, name: &str, secret: &[u8]) -> Result<()> {
    let request = Request::new(Mode::Account, Action::New);
    let request = request.text(&[b"user=", name.as_bytes(), b",password=", secret]);
    client.ask(request).await?.good("make an account").map(drop)
}

async fn delete(client: &Client<'_>, name: &str) -> Result<()> {
    let request = Request::new(Mode::Account, Action::Delete);
    let answer = client
        .ask(request.text(&[b"user=", name.as_bytes()]))
        .await?;
    answer
        .good_or(Code::NO_ACCOUNT, "delete an account")
        .map(drop)
}

/// The digits of the neighbour of `name`, if `account` is that.
fn mark_of<'a>(account: &'a str, name: &str) -> Option<&'a str> {
    let digits = account
        .strip_prefix(PREFIX)?
        .strip_prefix(name)?
        .strip_prefix(':')?;
    is_digits(digits).then_some(digits)
}

/// Whose neighbour an account is.
fn marked(account: &str) -> Option<&str> {
    let (name, digits) = account.strip_prefix(PREFIX)?.rsplit_once(':')?;
    is_digits(digits).then_some(name)
}

fn is_digits(digits: &str) -> bool {
    digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn digits(salt: &str, credentials: &Credentials) -> String {
    let length = (credentials.name.len() as u64).to_be_bytes();
    let parts = [
        salt.as_bytes(),
        &length,
        credentials.name.as_bytes(),
        &credentials.secret,
    ];
    let hashed = parts
        .iter()
        .fold(Sha256::new(), |hash, part| hash.chain_update(part));
    let hash = Zeroizing::new(<[u8; 32]>::from(hashed.finalize()));
    hash[..8].iter().fold(salt.to_owned(), |mut digits, byte| {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}
