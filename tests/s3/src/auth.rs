//! Signatures (AWS Signature Version 4), checked if a key is configured.

use std::fmt;

use aws_lc_rs::{digest, hmac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::http::{Request, Response};

/// All but the unreserved characters of RFC 3986.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The one access key that the server knows.
#[derive(Clone)]
pub struct Keys {
    /// Its identifier.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What S3 answers to a request that is not signed with `keys`; `None` if it is.
/// The hash of the body is taken as the request names it.
pub(crate) fn refuse(
    keys: &Keys,
    request: &Request,
    query: &[(String, String)],
) -> Option<Response> {
    let denied = |code, message| Some(Response::error(403, code, message));
    let Some(claim) = request.header("authorization").and_then(Claim::parse) else {
        return denied("AccessDenied", "The request is not signed");
    };
    if claim.id != keys.id {
        return denied("InvalidAccessKeyId", "There is no such access key");
    }
    if signature(&keys.secret, request, query, &claim).as_deref() != Some(claim.signature) {
        return denied("SignatureDoesNotMatch", "The signature is wrong");
    }
    None
}

/// What an Authorization header says.
struct Claim<'a> {
    id: &'a str,
    /// date/region/service/aws4_request
    scope: &'a str,
    signed: &'a str,
    signature: &'a str,
}

impl<'a> Claim<'a> {
    fn parse(header: &'a str) -> Option<Self> {
        let fields = header.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let field = |name: &str| {
            let mut fields = fields.split(',').map(str::trim);
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let (id, scope) = field("Credential")?.split_once('/')?;
        Some(Claim {
            id,
            scope,
            signed: field("SignedHeaders")?,
            signature: field("Signature")?,
        })
    }
}

fn signature(
    secret: &str,
    request: &Request,
    query: &[(String, String)],
    claim: &Claim<'_>,
) -> Option<String> {
    let encode = |text: &str| utf8_percent_encode(text, STRICT).to_string();
    let mut query: Vec<(String, String)> = query
        .iter()
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    query.sort();
    let query: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut canonical = format!(
        "{}\n{}\n{}\n",
        request.method,
        request.path(),
        query.join("&")
    );
    for name in claim.signed.split(';') {
        let value = request.header(name)?;
        let value: Vec<&str> = value.split_ascii_whitespace().collect();
        canonical.push_str(&format!("{name}:{}\n", value.join(" ")));
    }
    let body = request.header("x-amz-content-sha256")?;
    canonical.push_str(&format!("\n{}\n{body}", claim.signed));
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{}\n{}\n{}",
        request.header("x-amz-date")?,
        claim.scope,
        hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref())
    );
    let sign = |key: &[u8], text: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
    };
    let first = format!("AWS4{secret}").into_bytes();
    let key = claim
        .scope
        .split('/')
        .fold(first, |key, part| sign(&key, part));
    Some(hex(&sign(&key, &to_sign)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
