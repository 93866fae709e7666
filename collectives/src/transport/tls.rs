//! TLS inside a [`Stream`](crate::transport::stream::Stream), where a job wants its data encrypted.
//!
//! Certificates say nothing here: each rank makes one of its own, and any is taken. Who is at the other end is proved
//! by the handshake that runs inside, with the job's secret; its proofs cover bytes that only the two ends of one TLS
//! session share. Somebody in the middle has two sessions, hence two such values, and cannot pass a proof on.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, ServerConfig, ServerConnection, SignatureScheme,
};

use crate::transport::stream::{receive, send};

/// What a rank needs to begin sessions, at either end.
#[derive(Clone)]
pub(crate) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// Bytes shared by the two ends of a session and by nobody else.
pub(crate) const BINDING: usize = 32;

/// What the shared bytes are for, so that no other use of the session's keys gives the same.
const LABEL: &[u8] = b"EXPORTER-muster-collectives";

/// Names are not looked at either.
const NAME: &str = "muster.invalid";

impl Tls {
    pub(crate) fn new() -> Result<Tls, Box<dyn std::error::Error>> {
        let certified = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der())?;
        let provider = Arc::new(ring::default_provider());
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)?;
        // Sessions are not resumed.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Tls { client: Arc::new(client), server: Arc::new(server) })
    }

    /// The dialing end of a new session.
    pub(crate) fn dial(&self) -> io::Result<Session> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let connection = ClientConnection::new(Arc::clone(&self.client), name).map_err(io::Error::other)?;
        Ok(Session { connection: connection.into() })
    }

    /// The accepting end.
    pub(crate) fn accept(&self) -> io::Result<Session> {
        let connection = ServerConnection::new(Arc::clone(&self.server)).map_err(io::Error::other)?;
        Ok(Session { connection: connection.into() })
    }
}

/// Takes every certificate, but not one whose key the other end does not hold.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A session over a socket that does not block.
pub(crate) struct Session {
    connection: Connection,
}

impl Session {
    /// Reads what is there: `None` if nothing is yet, 0 bytes at the end. Sends what the protocol has to say.
    pub(crate) fn read(&mut self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            self.flush(fd)?;
            match self.connection.reader().read(buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            match self.connection.read_tls(&mut Socket(fd)) {
                Ok(0) => return Ok(Some(0)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            self.connection.process_new_packets().map_err(io::Error::other)?;
        }
    }

    /// Takes over what there is room for: `None` if there is none. It may not all be on its way; see
    /// [`Session::flush`].
    pub(crate) fn write(&mut self, fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        if !self.flush(fd)? {
            return Ok(None);
        }
        let mut taken = 0;
        for slice in slices {
            let length = self.connection.writer().write(slice)?;
            taken += length;
            if length < slice.len() {
                break;
            }
        }
        self.flush(fd)?;
        Ok(Some(taken))
    }

    /// Sends what was taken over; whether all of it is on its way.
    pub(crate) fn flush(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Socket(fd)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The bytes that the two ends share, once the session is established.
    pub(crate) fn binding(&self) -> io::Result<[u8; BINDING]> {
        self.connection.export_keying_material([0; BINDING], LABEL, None).map_err(io::Error::other)
    }
}

struct Socket<'a>(BorrowedFd<'a>);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        receive(self.0, buffer)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send(self.0, &[IoSlice::new(bytes)])?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self.0, slices)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
