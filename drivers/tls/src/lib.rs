//! TLS 1.3 over another driver's connections: what passes between the nodes of a pair is hidden, and cannot be changed unnoticed.
//!
//! There are no certificates. The end that accepts shows a raw public key (RFC 7250) that it has made for this life of the process, and the
//! other end takes any. So TLS alone says nothing of who is there: that is what [`Network::binding`] is for. Both ends prove to each other
//! over it that they know a common key, and somebody in the middle has two connections with two bindings (RFC 9266).
//!
//! # Life of a connection
//!
//! ```text
//! accept() --------------------------------> Open: what is sent waits for the end of the handshake
//! connect() --> Connecting --both hands----> Open --close_notify, or the end--> InputEnded
//!                   +-----what arrives is no TLS, or damaged--------------------> Failed
//! ```
//!
//! # Invariants
//!
//! 1. No byte of the caller goes out, and none comes in, before the handshake is over; none ever in the clear.
//! 2. What waits decrypted is bounded by what the caller asked for, and one TLS record.
//! 3. A connection whose bytes were damaged has failed; what was decrypted before stays readable.
//! 4. An end that cannot shake hands is told so by an alert, however the connection is closed.

use ring::{rand::SystemRandom, signature::Ed25519KeyPair};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    ServerConfig, ServerConnection, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::AlwaysResolvesServerRawPublicKeys,
    sign::CertifiedKey,
    version::TLS13,
};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    ops::Range,
    sync::Arc,
};
use thiserror::Error as ThisError;
use twinlog_device::{
    Accepted, ConnectionFailure, ConnectionId, ConnectionState, NetAddress, Network, SharedBlock, net::INPUT_BYTES_MAX,
};

/// Decrypted input of one connection that waits, unless the caller asks for more.
const INPUT_BYTES: usize = 128 << 10;

/// Why there is no encryption on this machine.
#[derive(Debug, ThisError)]
#[error("encryption cannot be set up: {0}")]
pub struct TlsError(String);

/// Takes every key: who is there is proved over the binding.
#[derive(Debug)]
struct AnyKey(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(cert.as_ref()), dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

/// What every connection of a process begins with.
#[derive(Clone, Debug)]
struct Setup {
    connecting: Arc<ClientConfig>,
    accepting: Arc<ServerConfig>,
    name: ServerName<'static>,
}

impl Setup {
    fn new() -> Result<Self, TlsError> {
        let failed = |error: Error| TlsError(error.to_string());
        let provider: Arc<CryptoProvider> = Arc::new(provider::default_provider());
        let verifier = AnyKey(provider.signature_verification_algorithms);
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| TlsError("the machine has no random numbers".to_owned()))?;
        let private = PrivatePkcs8KeyDer::from(document.as_ref().to_vec());
        let signing = provider.key_provider.load_private_key(private.into()).map_err(failed)?;
        let public = signing.public_key().ok_or_else(|| TlsError("a key without its public half".to_owned()))?;
        let shown = CertificateDer::from(public.as_ref().to_vec());
        let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::new(CertifiedKey::new(vec![shown], signing)));
        let mut accepting = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        // Each connection has a handshake of its own: sessions of a pair are few and long.
        accepting.send_tls13_tickets = 0;
        let mut connecting = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        connecting.resumption = Resumption::disabled();
        connecting.enable_sni = false;
        let name = ServerName::try_from("twinlog").map_err(|error| TlsError(error.to_string()))?;
        Ok(Self { connecting: Arc::new(connecting), accepting: Arc::new(accepting), name })
    }
}

/// One connection: TLS's own state, and what was decrypted.
struct Tls {
    session: Connection,
    input: Vec<u8>,
    consumed: usize,
    input_bytes_max: usize,
    has_ended: bool,
    failure: Option<ConnectionFailure>,
    /// We have asked for it.
    is_ours: bool,
    scratch: Vec<u8>,
}

impl Tls {
    fn new(session: Connection, is_ours: bool) -> Self {
        let mut tls = Self {
            session,
            input: Vec::new(),
            consumed: 0,
            input_bytes_max: INPUT_BYTES,
            has_ended: false,
            failure: None,
            is_ours,
            scratch: Vec::new(),
        };
        // What is sent is handed on at once, but for what waits for the handshake, which the caller bounds.
        tls.session.set_buffer_limit(None);
        tls
    }

    fn waiting_bytes(&self) -> usize {
        self.input.len() - self.consumed
    }

    /// Hands what TLS has to say to the driver below.
    fn speak<N: Network>(&mut self, net: &mut N, connection: ConnectionId) {
        self.scratch.clear();
        while self.session.wants_write() {
            self.session.write_tls(&mut self.scratch).expect("memory takes everything");
        }
        if !self.scratch.is_empty() {
            net.send(connection, &self.scratch);
        }
    }

    /// Decrypts what has arrived, as far as there is room. Returns whether anything came of it.
    fn hear<N: Network>(&mut self, net: &mut N, connection: ConnectionId) -> bool {
        let mut has_moved = false;
        while self.failure.is_none() && !self.has_ended && self.waiting_bytes() < self.input_bytes_max {
            let mut arrived = net.input(connection);
            let before = arrived.len();
            if before == 0 {
                break;
            }
            let taken = self.session.read_tls(&mut arrived);
            let count = before - arrived.len();
            if taken.is_err() || count == 0 {
                self.failure = Some(ConnectionFailure::Insecure);
                break;
            }
            net.consume(connection, count);
            has_moved = true;
            self.decrypt();
        }
        if has_moved {
            // A handshake's answer, or why there is none.
            self.speak(net, connection);
        }
        has_moved
    }

    fn decrypt(&mut self) {
        match self.session.process_new_packets() {
            Ok(state) => self.has_ended = state.peer_has_closed(),
            Err(_) => self.failure = Some(ConnectionFailure::Insecure),
        }
        if self.consumed > 0 && self.consumed >= self.waiting_bytes() {
            self.input.drain(..self.consumed);
            self.consumed = 0;
        }
        // Also what came before a damaged record. At the end of what is there the reader says that it would block.
        let _would_block = self.session.reader().read_to_end(&mut self.input);
    }
}

/// Connections of `N`, encrypted.
pub struct TlsNetwork<N> {
    inner: N,
    setup: Setup,
    connections: BTreeMap<ConnectionId, Tls>,
}

impl<N: Network> TlsNetwork<N> {
    /// Encrypts every connection of `inner`, under a key that is made for the occasion.
    ///
    /// # Errors
    /// When the machine has no random numbers.
    pub fn new(inner: N) -> Result<Self, TlsError> {
        Ok(Self { inner, setup: Setup::new()?, connections: BTreeMap::new() })
    }

    fn get(&self, connection: ConnectionId) -> &Tls {
        self.connections.get(&connection).expect("the caller names a connection that it has not closed")
    }

    fn split(&mut self, connection: ConnectionId) -> (&mut N, &mut Tls) {
        let tls = self.connections.get_mut(&connection);
        (&mut self.inner, tls.expect("the caller names a connection that it has not closed"))
    }
}

impl<N: Network> Network for TlsNetwork<N> {
    fn accept(&mut self) -> Option<Accepted> {
        let accepted = self.inner.accept()?;
        let session = ServerConnection::new(Arc::clone(&self.setup.accepting)).expect("the configuration is sound");
        self.connections.insert(accepted.connection, Tls::new(Connection::Server(session), false));
        let (inner, tls) = self.split(accepted.connection);
        tls.hear(inner, accepted.connection);
        Some(accepted)
    }

    fn connect(&mut self, address: &NetAddress) -> ConnectionId {
        let connection = self.inner.connect(address);
        let session = ClientConnection::new(Arc::clone(&self.setup.connecting), self.setup.name.clone());
        let session = Connection::Client(session.expect("the configuration is sound"));
        self.connections.insert(connection, Tls::new(session, true));
        let (inner, tls) = self.split(connection);
        tls.speak(inner, connection);
        connection
    }

    fn poll(&mut self, ready: &mut Vec<ConnectionId>) {
        let first = ready.len();
        self.inner.poll(ready);
        for &connection in &ready[first..] {
            if let Some(tls) = self.connections.get_mut(&connection) {
                tls.hear(&mut self.inner, connection);
            }
        }
    }

    fn state(&self, connection: ConnectionId) -> ConnectionState {
        let (below, tls) = (self.inner.state(connection), self.get(connection));
        match below {
            _ if tls.failure.is_some() => ConnectionState::Failed,
            ConnectionState::Open | ConnectionState::InputEnded if tls.has_ended => ConnectionState::InputEnded,
            ConnectionState::Open if tls.is_ours && tls.session.is_handshaking() => ConnectionState::Connecting,
            // What has arrived below and was not decrypted yet comes first.
            ConnectionState::InputEnded if !self.inner.input(connection).is_empty() => ConnectionState::Open,
            other => other,
        }
    }

    fn failure(&self, connection: ConnectionId) -> Option<ConnectionFailure> {
        self.get(connection).failure.or_else(|| self.inner.failure(connection))
    }

    fn input(&self, connection: ConnectionId) -> &[u8] {
        let tls = self.get(connection);
        &tls.input[tls.consumed..]
    }

    fn widen_input(&mut self, connection: ConnectionId, count_bytes: usize) {
        assert!(count_bytes <= INPUT_BYTES_MAX, "input that waits is bounded");
        let (inner, tls) = self.split(connection);
        tls.input_bytes_max = tls.input_bytes_max.max(count_bytes);
        // Below, whole records are enough, but few of them would make many turns.
        inner.widen_input(connection, count_bytes);
        tls.hear(inner, connection);
    }

    fn consume(&mut self, connection: ConnectionId, count_bytes: usize) {
        let (inner, tls) = self.split(connection);
        assert!(count_bytes <= tls.waiting_bytes(), "only what has arrived can be consumed");
        tls.consumed += count_bytes;
        tls.hear(inner, connection);
    }

    fn send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let (inner, tls) = self.split(connection);
        if tls.failure.is_none() {
            tls.session.writer().write_all(bytes).expect("TLS takes everything");
            tls.speak(inner, connection);
        }
    }

    fn send_block(&mut self, connection: ConnectionId, block: &SharedBlock, range: Range<usize>) {
        self.send(connection, &block[range]);
    }

    fn unsent_bytes(&self, connection: ConnectionId) -> usize {
        self.inner.unsent_bytes(connection)
    }

    fn close(&mut self, connection: ConnectionId, abort: bool) {
        let mut tls = self.connections.remove(&connection).expect("the caller closes a connection once");
        if !abort && tls.failure.is_none() {
            tls.session.send_close_notify();
            tls.speak(&mut self.inner, connection);
        }
        // Why there was no handshake, an alert, is on its way: an end that does not encrypt knows by it what it has met.
        let explains = tls.failure.is_some() && tls.session.is_handshaking();
        self.inner.close(connection, abort && !explains);
    }

    fn binding(&self, connection: ConnectionId) -> Option<[u8; 32]> {
        // RFC 9266, section 4: the label, and no context.
        self.get(connection).session.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", None).ok()
    }
}

#[cfg(test)]
mod tests;
