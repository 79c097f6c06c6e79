//! One-time enrolment secrets: how a fresh guest proves to the base domain that it is the guest that was just started.
//!
//! The guest gets an [`Enrolment`] by a way that only the hypervisor has (fw_cfg, XenStore, a file in the lab). It proves
//! the secret by an HMAC over its new key and a nonce of the server, under a key derived from the secret; the secret itself
//! never leaves the guest, and the base domain keeps the derived key only. The one file of this crate that imports `ring`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::hmac;
use strongroom_contracts::{Application, PublicKey, keys};

use crate::failure::Failure;

const HEADER: &str = "STRONGROOM ENROLMENT 1";
const DERIVE: &[u8] = b"strongroom enrolment secret 1\0";
const PROVE: &[u8] = b"strongroom enrolment proof 1\0";

/// What the hypervisor hands to a fresh guest. Secret.
pub struct Enrolment {
    /// The incident that it belongs to.
    pub incident: u64,
    /// The application that it is for.
    pub application: Application,
    /// The key of the enrolment server, which the guest insists on.
    pub server: PublicKey,
    secret: [u8; 32],
}

/// What is derived from a secret and proves it. Kept by the base domain for as long as the secret is good.
#[derive(Clone, PartialEq, Eq)]
pub struct ProofKey([u8; 32]);

impl Enrolment {
    /// A fresh one.
    ///
    /// # Errors
    /// If the system's random source fails.
    pub fn new(incident: u64, application: Application, server: PublicKey) -> Result<Enrolment, Failure> {
        let secret = keys::random().map_err(Failure::other)?;
        Ok(Enrolment { incident, application, server, secret })
    }

    /// What proves it.
    pub fn proof_key(&self) -> ProofKey {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, &[DERIVE, &self.secret].concat()).as_ref());
        ProofKey(out)
    }

    /// The form in which it is handed over. Secret.
    pub fn to_text(&self) -> String {
        format!(
            "{HEADER}\nincident {}\napplication {}\nserver {}\nsecret {}\n",
            self.incident,
            self.application,
            self.server,
            URL_SAFE_NO_PAD.encode(self.secret)
        )
    }

    /// Reads that form; fw_cfg and XenStore may add a NUL or a line feed.
    ///
    /// # Errors
    /// If it is something else. The message never holds the secret.
    pub fn from_text(text: &str) -> Result<Enrolment, Failure> {
        let bad = |what: &str| Failure::bad(format!("the enrolment secret is damaged: {what}"));
        let mut lines = text.trim_end_matches(['\0', '\n', '\r', ' ']).lines().map(str::trim_end);
        if lines.next() != Some(HEADER) {
            return Err(bad(&format!("its first line is not `{HEADER}`"))
                .hint("it is handed over when recovery restarts the guest; at other times there is none"));
        }
        let mut value = |name: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix(name)).map(str::trim);
            line.ok_or_else(|| bad(&format!("it has no line `{name}`")))
        };
        let incident = value("incident")?.parse().map_err(|_| bad("its incident is no number"))?;
        let application = value("application")?.parse().map_err(|_| bad("its application is no name"))?;
        let server = value("server")?.parse().map_err(|_| bad("its server is no public key"))?;
        let secret = URL_SAFE_NO_PAD.decode(value("secret")?).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(Enrolment { incident, application, server, secret: secret.ok_or_else(|| bad("its last line"))? })
    }
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Enrolment(incident {}, {})", self.incident, self.application)
    }
}

impl ProofKey {
    /// The proof for a new key, an incident and a nonce of the server.
    pub fn prove(
        &self,
        incident: u64,
        application: &Application,
        key: &PublicKey,
        nonce: &[u8; 32],
    ) -> [u8; 32] {
        let tag = hmac::sign(&self.key(), &message(incident, application, key, nonce));
        let mut out = [0; 32];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Whether a proof is right; takes the same time whatever is wrong with it.
    pub fn check(
        &self,
        incident: u64,
        application: &Application,
        key: &PublicKey,
        nonce: &[u8; 32],
        proof: &[u8; 32],
    ) -> bool {
        hmac::verify(&self.key(), &message(incident, application, key, nonce), proof).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }

    /// The form in which it is kept.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads that form.
    pub fn from_hex(text: &str) -> Option<ProofKey> {
        let mut out = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (n, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
        }
        Some(ProofKey(out))
    }
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofKey(…)")
    }
}

fn message(incident: u64, application: &Application, key: &PublicKey, nonce: &[u8; 32]) -> Vec<u8> {
    // Every part but the last has a fixed length.
    [PROVE, &incident.to_le_bytes(), key.as_bytes(), nonce, application.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_contracts::SecretKey;

    fn fresh() -> (Enrolment, PublicKey) {
        let key = || SecretKey::generate().unwrap().public();
        (Enrolment::new(7, "mail".parse().unwrap(), key()).unwrap(), key())
    }

    #[test]
    fn it_comes_through_the_hypervisor_whole() {
        let (enrolment, _) = fresh();
        for end in ["", "\n", "\0", "\n\0"] {
            let again = Enrolment::from_text(&format!("{}{end}", enrolment.to_text())).unwrap();
            assert_eq!(again.proof_key(), enrolment.proof_key());
            assert_eq!((again.incident, &again.application), (7, &enrolment.application));
        }
        assert!(!format!("{enrolment:?}").contains(enrolment.to_text().rsplit(' ').next().unwrap().trim()));
        for damaged in ["", "x", &enrolment.to_text()[..60], &enrolment.to_text().replace("mail", "..")] {
            assert!(Enrolment::from_text(damaged).is_err(), "{damaged}");
        }
        assert_eq!(ProofKey::from_hex(&enrolment.proof_key().to_hex()), Some(enrolment.proof_key()));
    }

    #[test]
    fn a_proof_serves_one_key_one_incident_one_application_and_one_nonce() {
        let (enrolment, key) = fresh();
        let (proof_key, mail) = (enrolment.proof_key(), &enrolment.application);
        let proof = proof_key.prove(7, mail, &key, &[1; 32]);
        assert!(proof_key.check(7, mail, &key, &[1; 32], &proof));
        assert!(!proof_key.check(8, mail, &key, &[1; 32], &proof));
        assert!(!proof_key.check(7, &"editor".parse().unwrap(), &key, &[1; 32], &proof));
        assert!(!proof_key.check(7, mail, &enrolment.server, &[1; 32], &proof));
        assert!(!proof_key.check(7, mail, &key, &[2; 32], &proof));
        let other = fresh().0.proof_key();
        assert!(!other.check(7, mail, &key, &[1; 32], &proof));
    }
}
