//! CHAP (RFC 1994, RFC 7143 section 12.1.3).

use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;

use crate::error::{Error, ErrorKind, Result};
use crate::options::{ChapAlgorithm, Credentials};
use crate::text::{Keys, binary, hex, number};

/// A challenge has at most so many bytes.
const LONGEST: usize = 1024;

/// As `CHAP_A` says it.
pub fn offer(algorithms: &[ChapAlgorithm]) -> String {
    let numbers = algorithms.iter().map(|one| (*one as u32).to_string());
    numbers.collect::<Vec<_>>().join(",")
}

impl ChapAlgorithm {
    fn response(self, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        fn over<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let mut digest = D::new();
            for part in parts {
                digest.update(part);
            }
            digest.finalize().to_vec()
        }
        let parts = [&[id][..], secret, challenge];
        match self {
            ChapAlgorithm::Md5 => over::<Md5>(parts),
            ChapAlgorithm::Sha1 => over::<Sha1>(parts),
            ChapAlgorithm::Sha256 => over::<Sha256>(parts),
        }
    }

    /// Bytes of a challenge of ours: as many as the digest has.
    fn challenge(self) -> usize {
        match self {
            ChapAlgorithm::Md5 => 16,
            ChapAlgorithm::Sha1 => 20,
            ChapAlgorithm::Sha256 => 32,
        }
    }
}

/// What the target has to answer.
#[derive(Debug)]
pub struct Asked {
    algorithm: ChapAlgorithm,
    id: u8,
    challenge: Vec<u8>,
}

/// The answer to the target's challenge, and a challenge of our own if the target is to prove itself.
pub fn answer(
    asked: &Keys,
    offered: &[ChapAlgorithm],
    own: &Credentials,
    mutual: Option<&Credentials>,
) -> Result<(Keys, Option<Asked>)> {
    let wrong = |key: &str| Error::protocol(format!("the target's challenge has no good {key}"));
    let value = |key: &str| asked.get(key).ok_or_else(|| wrong(key));
    let chosen = number(value("CHAP_A")?);
    let algorithm = offered.iter().find(|one| chosen == Some(**one as u32));
    let algorithm = *algorithm.ok_or_else(|| wrong("CHAP_A"))?;
    let id = number(value("CHAP_I")?).and_then(|id| u8::try_from(id).ok());
    let id = id.ok_or_else(|| wrong("CHAP_I"))?;
    let challenge = binary(value("CHAP_C")?, LONGEST).ok_or_else(|| wrong("CHAP_C"))?;
    let mut keys = Keys::default();
    keys.add("CHAP_N", &own.name);
    keys.add(
        "CHAP_R",
        hex(&algorithm.response(id, &own.secret, &challenge)),
    );
    if mutual.is_none() {
        return Ok((keys, None));
    }
    let mut random = [0; 33];
    getrandom::fill(&mut random)
        .map_err(|error| Error::new(ErrorKind::Refused, format!("no random numbers: {error}")))?;
    let asked = Asked {
        algorithm,
        id: random[32],
        challenge: random[..algorithm.challenge()].to_vec(),
    };
    keys.add("CHAP_I", asked.id.to_string());
    keys.add("CHAP_C", hex(&asked.challenge));
    Ok((keys, Some(asked)))
}

impl Asked {
    /// Fails with `Unauthenticated` unless the target proved that it is who it should be.
    pub fn check(&self, answered: &Keys, mutual: &Credentials) -> Result<()> {
        let failed = |reason: &str| Err(Error::new(ErrorKind::Unauthenticated, reason));
        let (name, response) = (answered.get("CHAP_N"), answered.get("CHAP_R"));
        let (Some(name), Some(response)) = (name, response) else {
            return failed("the target did not prove who it is (no mutual CHAP)");
        };
        let due = self
            .algorithm
            .response(self.id, &mutual.secret, &self.challenge);
        if binary(response, LONGEST).is_none_or(|found| found != due) {
            return failed("the target does not know the secret of mutual CHAP");
        }
        if name != mutual.name {
            return failed("the target has another name for mutual CHAP");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[ChapAlgorithm] = &[
        ChapAlgorithm::Md5,
        ChapAlgorithm::Sha1,
        ChapAlgorithm::Sha256,
    ];

    fn keys(pairs: &[(&str, &str)]) -> Keys {
        let mut keys = Keys::default();
        for (key, value) in pairs {
            keys.add(key, *value);
        }
        keys
    }

    #[test]
    fn answers_are_right() {
        // MD5 of 0x07 "secret" 0x01020304, by md5sum.
        let challenge = keys(&[("CHAP_A", "5"), ("CHAP_I", "7"), ("CHAP_C", "0x01020304")]);
        let own = Credentials::new("me", "secret");
        let (answer, asked) = answer(&challenge, ALL, &own, None).expect("an answer");
        assert_eq!(answer.get("CHAP_N"), Some("me"));
        assert_eq!(
            answer.get("CHAP_R"),
            Some("0x7e701d826207fc8a56b695a4c89be246")
        );
        assert!(asked.is_none());
    }

    #[test]
    fn a_target_has_to_know_the_secret() {
        let own = Credentials::new("me", "secret");
        let mutual = Credentials::new("it", "another");
        for (a, algorithm) in [
            ("5", ChapAlgorithm::Md5),
            ("6", ChapAlgorithm::Sha1),
            ("7", ChapAlgorithm::Sha256),
        ] {
            let challenge = keys(&[("CHAP_A", a), ("CHAP_I", "0"), ("CHAP_C", "0xff")]);
            let (sent, asked) = answer(&challenge, ALL, &own, Some(&mutual)).expect("an answer");
            let asked = asked.expect("a challenge");
            let id = number(sent.get("CHAP_I").expect("an id")).expect("a number") as u8;
            let sent = binary(sent.get("CHAP_C").expect("a challenge"), 64).expect("binary");
            let response = |secret: &[u8]| hex(&algorithm.response(id, secret, &sent));
            let good = response(b"another");
            let good = [("CHAP_N", "it"), ("CHAP_R", good.as_str())];
            asked.check(&keys(&good), &mutual).expect("it knows");
            let bad = response(b"secret");
            for wrong in [
                &[("CHAP_N", "it"), ("CHAP_R", bad.as_str())][..],
                &[("CHAP_N", "me"), good[1]],
                &good[..1],
                &good[1..],
                &[],
            ] {
                let error = asked.check(&keys(wrong), &mutual).expect_err("refused");
                assert_eq!(error.kind(), ErrorKind::Unauthenticated);
            }
        }
    }

    #[test]
    fn bad_challenges_are_refused() {
        let own = Credentials::new("me", "secret");
        for wrong in [
            &[("CHAP_A", "4"), ("CHAP_I", "7"), ("CHAP_C", "0x01")][..],
            &[("CHAP_A", "7"), ("CHAP_I", "7"), ("CHAP_C", "0x01")],
            &[("CHAP_A", "5"), ("CHAP_I", "256"), ("CHAP_C", "0x01")],
            &[("CHAP_A", "5"), ("CHAP_I", "7"), ("CHAP_C", "0x")],
            &[("CHAP_A", "5"), ("CHAP_I", "7")],
        ] {
            let error = answer(&keys(wrong), &ALL[..2], &own, None).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Protocol);
        }
    }
}
