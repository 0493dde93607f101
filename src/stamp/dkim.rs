//! DKIM signatures (RFC 6376, RFC 8463), relaxed/relaxed.
//!
//! mail-auth canonicalises and signs, but it gets the message in pieces that we cut, for two reasons:
//! * Its relaxed body hash is wrong where a body ends in lines of white space alone. RFC 6376 section 3.4.4 makes such
//!   lines empty and then ignores them, so the body is handed over without them: the hash of what leaves is the same,
//!   and the message is not touched.
//! * It ends the header section at a line that is no field, as some receivers do and others do not: it gets the fields alone.
//!
//! Keys are parsed once and kept by their content, so a key that was exchanged is never used again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use mail_auth::common::crypto::{DkimKey as SigningKey, Ed25519Key, RsaKey, Sha256};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::{DkimSigner, Done};
use outgate_cluster::command::DkimAlgorithm;
use outgate_cluster::state::DkimKey;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::mail::{Header, Message};

/// Signed where present. What stands twice here is signed once more than it occurs, so that nobody can add another
/// (RFC 6376 section 8.15).
const SIGNED: [&str; 22] = [
    "From",
    "From",
    "To",
    "To",
    "Cc",
    "Cc",
    "Subject",
    "Subject",
    "Date",
    "Date",
    "Message-ID",
    "Message-ID",
    "Reply-To",
    "Reply-To",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "Sender",
    "In-Reply-To",
    "References",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
];
/// Parsed keys that are kept.
const KEYS_MAX: usize = 4_096;

type Signer = DkimSigner<SigningKey, Done>;

/// A key that cannot sign; the message leaves with the signatures of the other keys.
#[derive(thiserror::Error, Debug)]
pub enum DkimError {
    #[error("DKIM key {selector} of {domain} cannot be used: {reason}")]
    Key { domain: String, selector: String, reason: String },
}

/// Puts one signature for each key before the message. RSA costs up to a millisecond: call it where blocking is allowed.
pub fn sign(message: &Message, keys: &[DkimKey]) -> Message {
    let mut signatures = BytesMut::new();
    for key in keys {
        match signature(message, key) {
            Ok(field) => signatures.extend_from_slice(field.as_bytes()),
            Err(error) => tracing::warn!(%error, "message leaves without this signature"),
        }
    }
    if signatures.is_empty() {
        return message.clone();
    }
    signatures.extend_from_slice(message.bytes());
    Message::new(signatures.freeze())
}

fn signature(message: &Message, key: &DkimKey) -> Result<String, DkimError> {
    let signer = signer(key)?;
    let fields: Vec<Bytes> = message.headers().filter(is_signed).map(|header| signable(message, &header)).collect();
    let pieces = fields.iter().map(AsRef::as_ref).chain([body_without_blank_tail(message)]);
    let signature = signer.sign_chained(pieces).map_err(|error| wrong(key, error))?;
    Ok(signature.to_header())
}

fn is_signed(header: &Header<'_>) -> bool {
    SIGNED.iter().any(|name| name.eq_ignore_ascii_case(header.name))
}

/// The field as it stands; without space before the colon, which mail-auth takes for a part of the name.
fn signable(message: &Message, header: &Header<'_>) -> Bytes {
    if header.raw.get(header.name.len()) == Some(&b':') && header.raw.ends_with(b"\r\n") {
        return message.bytes().slice_ref(header.raw);
    }
    Bytes::from([header.name.as_bytes(), b":", header.value, b"\r\n"].concat())
}

/// The empty line before the body, and the body up to its last visible octet: relaxed canonicalisation ends it with one
/// CRLF, whatever white space was there.
fn body_without_blank_tail(message: &Message) -> &[u8] {
    const EMPTY_LINE: &[u8] = b"\r\n";
    let bytes = message.bytes();
    let start = message.size() - message.body().len();
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    match message.body().iter().rposition(|byte| !blank(byte)) {
        Some(last) => &bytes[start - EMPTY_LINE.len()..=start + last],
        None => EMPTY_LINE,
    }
}

fn signer(key: &DkimKey) -> Result<Arc<Signer>, DkimError> {
    static PARSED: Mutex<Option<HashMap<blake3::Hash, Arc<Signer>>>> = Mutex::new(None);
    let content = content_hash(key);
    let known = {
        let parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
        parsed.as_ref().and_then(|parsed| parsed.get(&content).cloned())
    };
    if let Some(signer) = known {
        return Ok(signer);
    }
    let signer = Arc::new(parse(key)?);
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    let parsed = parsed.get_or_insert_default();
    if parsed.len() >= KEYS_MAX {
        parsed.clear();
    }
    parsed.insert(content, Arc::clone(&signer));
    Ok(signer)
}

fn content_hash(key: &DkimKey) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for part in [key.domain.as_str(), &key.selector, algorithm_name(key.algorithm), &key.private_key] {
        hasher.update(part.as_bytes());
        hasher.update(&[0]);
    }
    hasher.finalize()
}

const fn algorithm_name(algorithm: DkimAlgorithm) -> &'static str {
    match algorithm {
        DkimAlgorithm::RsaSha256 => "rsa",
        DkimAlgorithm::Ed25519Sha256 => "ed25519",
    }
}

fn parse(key: &DkimKey) -> Result<Signer, DkimError> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(key.private_key.as_bytes()).map_err(|error| wrong(key, error))?;
    let signing = match key.algorithm {
        DkimAlgorithm::RsaSha256 => RsaKey::<Sha256>::from_key_der(PrivateKeyDer::Pkcs8(der)).map(SigningKey::from),
        DkimAlgorithm::Ed25519Sha256 => {
            Ed25519Key::from_pkcs8_maybe_unchecked_der(der.secret_pkcs8_der()).map(SigningKey::from)
        }
    };
    let signing = signing.map_err(|error| wrong(key, error))?;
    Ok(DkimSigner::from_key(signing).domain(key.domain.as_str()).selector(&key.selector).headers(SIGNED))
}

fn wrong(key: &DkimKey, error: impl std::fmt::Display) -> DkimError {
    DkimError::Key { domain: key.domain.as_str().to_owned(), selector: key.selector.clone(), reason: error.to_string() }
}
