//! How a new node gets in: with a token it asks any member for a number and a certificate.
//!
//! A token is made by an operator, opens once and expires. It carries the fingerprint of the cluster's authority, so that
//! the new node knows that it talks to the right cluster before it says the secret.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, version};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::command::{Command, Outcome};
use crate::network::authority::{NodeKey, PUBLIC_KEY_BYTES, hex, vouch};
use crate::network::frame;
use crate::network::message::{
    Channel, Hello, Join, Joined, PROTOCOL, PROTOCOL_OLDEST, Request, Response, Unwelcome, Welcome,
};
use crate::network::server::Host;
use crate::network::socket;
use crate::network::tls::{Papers, provider};
use crate::store::identity::Home;
use crate::store::{OpenError, codec};

const PREFIX: &str = "og1-";
const SECRET_BYTES: usize = 16;
const FINGERPRINT_BYTES: usize = 32;
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// What the operator carries from a member to the new node, as `og1-` and 96 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    fingerprint: [u8; FINGERPRINT_BYTES],
    secret: [u8; SECRET_BYTES],
}

#[derive(thiserror::Error, Debug)]
pub enum JoinError {
    #[error("this is not a token: give what `outgate cluster token` printed, beginning with og1-")]
    NotAToken,
    #[error("cannot reach {0}: {1}: give host:port of a member's cluster listener")]
    Unreachable(String, io::Error),
    #[error("{0} does not belong to the cluster that made the token")]
    OtherCluster(String),
    #[error("{0} refused: {1}")]
    Refused(String, String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Certificate(#[from] crate::network::authority::CertificateError),
    #[error("the random number generator does not work")]
    Random,
}

impl Token {
    pub(crate) fn new(authority: &CertificateDer<'_>) -> Result<Self, JoinError> {
        let mut secret = [0; SECRET_BYTES];
        provider().secure_random.fill(&mut secret).map_err(|_| JoinError::Random)?;
        Ok(Self { fingerprint: fingerprint(authority), secret })
    }

    /// Under which the state knows it.
    pub(crate) fn hash(&self) -> [u8; 32] {
        hash_of(&self.secret)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}{}", hex(&self.fingerprint), hex(&self.secret))
    }
}

impl FromStr for Token {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(JoinError::NotAToken)?;
        let bytes = unhex(digits).ok_or(JoinError::NotAToken)?;
        let (fingerprint, secret) = bytes.split_at_checked(FINGERPRINT_BYTES).ok_or(JoinError::NotAToken)?;
        let wrong = |_| JoinError::NotAToken;
        Ok(Self { fingerprint: fingerprint.try_into().map_err(wrong)?, secret: secret.try_into().map_err(wrong)? })
    }
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        digits.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn hash_of(bytes: &[u8]) -> [u8; 32] {
    blake3::hash(bytes).into()
}

fn fingerprint(authority: &CertificateDer<'_>) -> [u8; FINGERPRINT_BYTES] {
    hash_of(authority)
}

/// A member's side: one question, one answer.
pub(crate) async fn answer(host: &Host, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let frame = timeout(QUESTION_TIMEOUT, frame::read(stream, Channel::Join.bytes_max())).await??;
    let frame = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
    let request: Request = codec::decode("question", &frame.body).map_err(io::Error::other)?;
    let response = match request {
        Request::Join(join) => admit(host, join).await.map_or_else(Response::Refused, Response::Joined),
        Request::Append(_)
        | Request::Vote(_)
        | Request::Forward { .. }
        | Request::ReadIndex
        | Request::Ping
        | Request::Lease => Response::Refused(Unwelcome::Certificate.to_string()),
    };
    frame::write(stream, frame.number, &codec::encode(&response)).await?;
    stream.flush().await
}

/// The refusal in words, where there is one.
async fn admit(host: &Host, join: Join) -> Result<Joined, String> {
    if join.public_key.len() != PUBLIC_KEY_BYTES {
        return Err("the key of the new node is none of this kind".to_owned());
    }
    let command =
        Command::Join { token: hash_of(&join.secret), key: hash_of(&join.public_key), address: join.address.clone() };
    let applied = host.proposer.propose(command).await.map_err(|error| error.to_string())?;
    if let Outcome::Refused(refusal) = applied.outcome {
        return Err(refusal.to_string());
    }
    let Outcome::Joined(node) = applied.outcome else {
        return Err("joining was answered with another outcome".to_owned());
    };
    let authority = host.replica.read(|state| state.authority().cloned());
    let authority = authority.ok_or("this node does not know the cluster's authority yet: ask another")?;
    let cluster = host.credentials.cluster;
    let certificate = vouch(&authority, cluster, node, &join.public_key).map_err(|error| error.to_string())?;
    tracing::info!(node, address = join.address, "a node joined");
    Ok(Joined { cluster, node, certificate, authority: authority.certificate })
}

/// The new node's side: asks the member at `member` and makes the home of the new node. Returns the node's id.
pub(crate) async fn ask(home: &std::path::Path, member: &str, token: &Token, address: &str) -> Result<u64, JoinError> {
    Home::must_be_new(home)?;
    let key = NodeKey::generate()?;
    let join = Join { secret: token.secret.to_vec(), public_key: key.public().to_vec(), address: address.to_owned() };
    let question = timeout(QUESTION_TIMEOUT, put_question(member, token, join));
    let response = question.await.unwrap_or_else(|elapsed| Err(elapsed.into()));
    let joined = match response {
        Ok(Response::Joined(joined)) => joined,
        Ok(Response::Refused(why)) => return Err(JoinError::Refused(member.to_owned(), why)),
        Ok(other) => return Err(JoinError::Refused(member.to_owned(), format!("{other:?}"))),
        Err(error) if is_other_cluster(&error) => return Err(JoinError::OtherCluster(member.to_owned())),
        Err(error) => return Err(JoinError::Unreachable(member.to_owned(), error)),
    };
    let papers =
        Papers { authority: joined.authority, certificate: joined.certificate, key: key.pem(), founding: None };
    Home::join(home, joined.cluster, joined.node, &papers)?;
    Ok(joined.node)
}

async fn put_question(member: &str, token: &Token, join: Join) -> io::Result<Response> {
    let tcp = socket::connect(member).await?;
    let connector = TlsConnector::from(Arc::new(stranger(token)?));
    // Which node it is does not matter: the authority is what the token names.
    let name = ServerName::try_from("member").map_err(io::Error::other)?;
    let mut stream = connector.connect(name, tcp).await?;
    let hello =
        Hello { protocol: PROTOCOL, oldest: PROTOCOL_OLDEST, cluster: [0; 16], node: 0, channel: Channel::Join };
    if let Welcome::Refused(why) = crate::network::peers::greet(&mut stream, &hello).await? {
        return Ok(Response::Refused(why.to_string()));
    }
    frame::write(&mut stream, 0, &codec::encode(&Request::Join(join))).await?;
    stream.flush().await?;
    let frame = frame::read(&mut stream, Channel::Join.bytes_max()).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    codec::decode("answer", &frame.body).map_err(io::Error::other)
}

fn is_other_cluster(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

fn stranger(token: &Token) -> io::Result<ClientConfig> {
    let verifier = Pinned { fingerprint: token.fingerprint, provider: provider() };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}

/// Believes any certificate of the authority with this fingerprint.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; FINGERPRINT_BYTES],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|shown| fingerprint(shown) == self.fingerprint);
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_token_is_read_back_and_anything_else_is_none() {
        let token = Token { fingerprint: [7; 32], secret: [255; 16] };
        let text = token.to_string();
        assert!(text.parse::<Token>().unwrap() == token);
        assert!(format!(" {text}\n").parse::<Token>().unwrap() == token);
        for wrong in ["", "og1-", &text[1..], &text[..text.len() - 1], &text[..text.len() - 2], "og1-zz", "og1-é"] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
        assert!(format!("{text}00").parse::<Token>().is_err());
    }
}
