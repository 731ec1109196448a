//! From options to a session: a rehearsal, and the crate's own login.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use iscsi_client_rs::cfg::config::{Config, login_keys_operational, login_keys_security};
use iscsi_client_rs::client::client::ClientConnection;
use iscsi_client_rs::client::pool_sessions::Pool;
use iscsi_client_rs::models::common::Builder;
use iscsi_client_rs::models::data_fromat::PduRequest;
use iscsi_client_rs::models::login::common::Stage;
use iscsi_client_rs::models::login::request::{LoginRequest, LoginRequestBuilder};
use iscsi_client_rs::models::login::response::LoginResponse;
use iscsi_client_rs::state_machine::common::{StateMachine, StateMachineCtx, Transition};
use iscsi_client_rs::state_machine::login::common::{LoginCtx, LoginStepOut};
use iscsi_client_rs::state_machine::login::login_chap::{ChapA, ChapAnswer, ChapSecurity};
use tokio_util::sync::CancellationToken;
use volmux_iscsi_initiator::{Error, ErrorKind, Options, Result};

use crate::agreement::{Agreement, Keys};
use crate::pdu::HEADER;
use crate::refused;

/// Bytes of text that an answer may have.
const LONGEST: usize = 64 << 10;
/// The only connection of a session.
const CID: u16 = 0;
/// Flags of a login response (RFC 7143 section 11.13.1).
const TRANSIT: u8 = 0x80;
const CONTINUED: u8 = 0x40;
const OPERATIONAL: u8 = 1;

/// A session that was logged in to, and the crate's counters of it.
pub struct Established {
    /// It answers the target's pings.
    pub pool: Arc<Pool>,
    pub tsih: u16,
    pub connection: Arc<ClientConnection>,
    pub agreement: Agreement,
    pub tags: Arc<AtomicU32>,
    /// The next CmdSN.
    pub cmd_sn: Arc<AtomicU32>,
    /// The number of the target's next answer.
    pub stat_sn: Arc<AtomicU32>,
}

/// Connects and logs in.
pub async fn establish(options: &Options, isid: [u8; 6]) -> Result<Established> {
    let wanted = Agreement::wanted(options);
    let agreement = rehearse(options, &wanted, isid).await?;
    let config = agreement.config(options)?;
    let cancel = CancellationToken::new();
    let pool = Arc::new(Pool::with_cancel(&config, cancel.clone()));
    pool.attach_self();
    let connection = connect(&config, cancel.child_token()).await?;
    let target = config.login.identity.target_name.as_str();
    let logged_in = pool.login_and_insert(target.into(), isid, CID, connection.clone());
    let tsih = logged_in.await.map_err(|error| failed(&error))?;
    let counters = pool
        .execute_with(tsih, CID, |connection, tags, cmd_sn, stat_sn| Counters {
            connection,
            tags,
            cmd_sn,
            stat_sn,
        })
        .await
        .map_err(|error| failed(&error))?;
    Ok(Established {
        pool,
        tsih,
        connection: counters.connection,
        agreement,
        tags: counters.tags,
        cmd_sn: counters.cmd_sn,
        stat_sn: counters.stat_sn,
    })
}

async fn connect(config: &Config, cancel: CancellationToken) -> Result<Arc<ClientConnection>> {
    let connected = ClientConnection::connect(config.clone(), cancel).await;
    connected.map_err(|error| Error::new(ErrorKind::Lost, format!("not connected: {error:#}")))
}

/// Why the crate's own login failed, as far as it tells.
fn failed(error: &anyhow::Error) -> Error {
    let why = format!("{error:#}");
    let answered = ["login response", "negotiation", "TSIH"];
    match answered.iter().any(|part| why.contains(part)) {
        // tgt, for example, takes two requests if its segments are not of the default length.
        true => refused(&format!(
            "come to terms with the target in one request ({why})"
        )),
        false => Error::new(ErrorKind::Lost, why),
    }
}

/// Hands out what the crate keeps to itself.
struct Counters {
    connection: Arc<ClientConnection>,
    tags: Arc<AtomicU32>,
    cmd_sn: Arc<AtomicU32>,
    stat_sn: Arc<AtomicU32>,
}

impl StateMachineCtx<Counters, Counters> for Counters {
    async fn execute(&mut self, _cancel: &CancellationToken) -> anyhow::Result<Counters> {
        Ok(Counters {
            connection: self.connection.clone(),
            tags: self.tags.clone(),
            cmd_sn: self.cmd_sn.clone(),
            stat_sn: self.stat_sn.clone(),
        })
    }
}

/// Logs in but for the last step, so that no session comes of it, and returns what the target says.
/// A session that had this ISID before has ended then, at the latest when the crate has logged in.
async fn rehearse(options: &Options, wanted: &Agreement, isid: [u8; 6]) -> Result<Agreement> {
    let config = wanted.config(options)?;
    let cancel = CancellationToken::new();
    // Closes the connection, however this ends.
    let _closed = cancel.clone().drop_guard();
    let connection = connect(&config, cancel).await?;
    let mut login = LoginCtx::new(connection, isid, CID, 0);
    let mut keys = match options.chap.is_some() {
        true => prove(&mut login).await?,
        false => without_proof(&mut login, &login_keys_security(&config)).await?,
    };
    let request = LoginRequestBuilder::new(isid, 0).csg(Stage::Operational);
    let answer = ask(&mut login, request, &login_keys_operational(&config)).await?;
    keys.extend(answer.keys);
    wanted.answered(&keys, options)
}

/// The stage of security without a proof. The crate leaves it out, and then tgt leaves the session
/// that had this ISID before as it is: what that has left to do could overtake what comes next.
async fn without_proof(login: &mut LoginCtx<'static>, text: &[u8]) -> Result<Keys> {
    let request = LoginRequestBuilder::new(login.isid, 0)
        .transit()
        .csg(Stage::Security)
        .nsg(Stage::Operational);
    let answer = ask(login, request, text).await?;
    let method = answer.keys.get("AuthMethod");
    if method.is_some_and(|method| method != "None") {
        let reason = "the target wants to know who this is (CHAP), and no secret was given";
        return Err(unproven(reason));
    }
    secured(answer)
}

/// The keys of an answer that ends the stage of security.
fn secured(answer: Answer) -> Result<Keys> {
    match answer.goes_to {
        Some(OPERATIONAL) => Ok(answer.keys),
        _ => Err(refused("do a login in which security takes more requests")),
    }
}

fn unproven(reason: &str) -> Error {
    Error::new(ErrorKind::Unauthenticated, reason)
}

/// The stage of security. The crate goes through it without looking at what the target says.
async fn prove(login: &mut LoginCtx<'static>) -> Result<Keys> {
    let first = stepped(ChapSecurity.step(login).await, login)?;
    if first.goes_to.is_some() || first.keys.get("AuthMethod") != Some("CHAP") {
        return Err(unproven("the target does not ask who this is (no CHAP)"));
    }
    let asked = stepped(ChapA.step(login).await, login)?;
    if asked.goes_to.is_some() {
        return Err(unproven("the target goes on without CHAP"));
    }
    let hexadecimal = |value: &str| value.starts_with("0x") || value.starts_with("0X");
    let readable = asked.keys.get("CHAP_A") == Some("5")
        && asked.keys.get("CHAP_I").is_some()
        && asked.keys.get("CHAP_C").is_some_and(hexadecimal);
    if !readable {
        return Err(refused(
            "answer what the target asks (CHAP other than MD5, in hexadecimal)",
        ));
    }
    secured(stepped(ChapAnswer.step(login).await, login)?)?;
    Ok(first.keys)
}

/// What the target answered to one request.
struct Answer {
    keys: Keys,
    /// The stage that it goes on to.
    goes_to: Option<u8>,
}

fn stepped(step: LoginStepOut, login: &LoginCtx<'static>) -> Result<Answer> {
    match step {
        Transition::Done(Err(error)) | Transition::Next(_, Err(error)) => Err(failed(&error)),
        _ => answer(login),
    }
}

/// Sends one request.
async fn ask(
    login: &mut LoginCtx<'static>,
    request: LoginRequestBuilder,
    text: &[u8],
) -> Result<Answer> {
    let mut request = request
        .initiator_task_tag(login.itt)
        .connection_id(login.cid);
    if let Ok(last) = login.validate_last_response_header() {
        request = request
            .cmd_sn(last.exp_cmd_sn.get())
            .exp_stat_sn(last.stat_sn.get().wrapping_add(1));
    }
    let mut header = [0; HEADER];
    let filled = request.header.to_bhs_bytes(&mut header);
    filled.map_err(|error| failed(&error))?;
    let mut pdu = PduRequest::<LoginRequest>::new_request(header, &login.conn.cfg);
    pdu.append_data(text);
    let sent = login.conn.send_request(login.itt, pdu).await;
    sent.map_err(|error| failed(&error))?;
    let response = login.conn.read_response::<LoginResponse>(login.itt).await;
    login.last_response = Some(response.map_err(|error| failed(&error))?);
    answer(login)
}

/// The last response.
fn answer(login: &LoginCtx<'static>) -> Result<Answer> {
    let none = || Error::new(ErrorKind::Lost, "the target does not answer a login");
    let last = login.last_response.as_ref().ok_or_else(none)?;
    let text = last.data().map_err(|error| failed(&error))?;
    if text.len() > LONGEST {
        let reason = format!("an answer to a login of more than {LONGEST} bytes");
        return Err(Error::new(ErrorKind::Protocol, reason));
    }
    let keys = Keys::parse(text)?;
    let header = &last.header_buf;
    match u16::from_be_bytes([header[36], header[37]]) {
        0 if header[1] & CONTINUED != 0 => Err(refused("take answers of several PDUs at login")),
        0 => Ok(Answer {
            keys,
            goes_to: (header[1] & TRANSIT != 0).then_some(header[1] & 3),
        }),
        status => Err(refusal(status, &keys)),
    }
}

/// What a status says (RFC 7143 section 11.13.5).
fn refusal(status: u16, keys: &Keys) -> Error {
    let (kind, reason) = match status {
        0x0100..=0x01ff => {
            let to = keys.get("TargetAddress").unwrap_or("elsewhere");
            return refused(&format!("follow the target to another portal ({to:?})"));
        }
        0x0201 => (
            ErrorKind::Unauthenticated,
            "the target does not take name and secret",
        ),
        0x0202 => (ErrorKind::Refused, "this initiator may not use the target"),
        0x0203 => (ErrorKind::NotFound, "the portal has no such target"),
        0x0204 => (ErrorKind::NotFound, "the target was removed"),
        0x0300..=0x03ff => (ErrorKind::Lost, "the target can't serve now"),
        _ => (ErrorKind::Refused, "the target refuses the login"),
    };
    Error::new(kind, format!("{reason} (login status {status:04x})"))
}
