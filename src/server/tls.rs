//! The certificate that connections begin with, and how it is changed while the server runs: connections that are there
//! keep what they began with, new ones get the new one. A file that is no good changes nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    },
    server::TlsStream,
};

use crate::{
    config::{ClientCertificates, TlsArgs},
    error::{Error, Result},
};

/// What is spoken on the port, the better first: gRPC needs the first, curl and browsers take either.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Bytes of the largest file of certificates.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The certificate as it stands. Cheap to clone; all clones change together.
#[derive(Clone, Debug)]
pub struct Tls {
    files: Arc<Files>,
    current: Arc<RwLock<Loaded>>,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    authorities: Option<PathBuf>,
    clients: ClientCertificates,
}

#[derive(Debug)]
struct Loaded {
    /// Of the files' bytes.
    hash: blake3::Hash,
    config: Arc<ServerConfig>,
}

/// The files' bytes.
struct Read {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Option<Vec<u8>>,
}

impl Tls {
    /// What the flags ask for; none for plain text.
    ///
    /// # Errors
    /// `InvalidArgument` where flags are missing, `FailedPrecondition` for a file that is no good, by its name.
    pub fn load(args: &TlsArgs) -> Result<Option<Self>> {
        let (true, Some(certificate), Some(key)) = (args.is_on()?, &args.ssl_certfile, &args.ssl_keyfile) else {
            return Ok(None);
        };
        let clients = args.clients();
        let authorities = args.ssl_ca_certs.clone();
        let files = Files { certificate: certificate.clone(), key: key.clone(), authorities, clients };
        let read = files.read()?;
        let loaded = Loaded { hash: read.hash(), config: files.config(&read)? };
        Ok(Some(Self { files: Arc::new(files), current: Arc::new(RwLock::new(loaded)) }))
    }

    /// Reads the files again; whether they have changed. New connections get what they have now.
    ///
    /// # Errors
    /// As [`load`](Self::load); then what was there stays.
    pub fn reload(&self) -> Result<bool> {
        let read = self.files.read()?;
        let hash = read.hash();
        if self.current.read().unwrap_or_else(PoisonError::into_inner).hash == hash {
            return Ok(false);
        }
        let config = self.files.config(&read)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Loaded { hash, config };
        Ok(true)
    }

    /// Begins a connection.
    ///
    /// # Errors
    /// Where the client speaks no TLS, or does not like our certificate, or has none that we like.
    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).config.clone();
        TlsAcceptor::from(config).accept(stream).await
    }
}

impl Files {
    fn read(&self) -> Result<Read> {
        Ok(Read {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            authorities: self.authorities.as_deref().map(read).transpose()?,
        })
    }

    fn config(&self, read: &Read) -> Result<Arc<ServerConfig>> {
        let wrong = |path: &Path, error: &dyn std::fmt::Display| Error::bad_file(path, "PEM", error);
        let provider = Arc::new(default_provider());
        let chain = certificates(&self.certificate, &read.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read.key).map_err(|error| wrong(&self.key, &error))?;
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Error::internal(format!("TLS: {error}")))?;
        let builder = match (&self.authorities, &read.authorities) {
            (Some(path), Some(authorities)) if self.clients != ClientCertificates::None => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path, authorities)? {
                    roots.add(authority).map_err(|error| wrong(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match self.clients {
                    ClientCertificates::Optional => verifier.allow_unauthenticated(),
                    _ => verifier,
                };
                let verifier: Arc<dyn ClientCertVerifier> = verifier.build().map_err(|error| wrong(path, &error))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        // Also where the key is not the certificate's.
        let mut config = builder.with_single_cert(chain, key).map_err(|error| wrong(&self.certificate, &error))?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Arc::new(config))
    }
}

impl Read {
    fn hash(&self) -> blake3::Hash {
        let mut hash = blake3::Hasher::new();
        let authorities = self.authorities.as_deref().unwrap_or_default();
        for bytes in [&self.certificate, &self.key, authorities] {
            hash.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        hash.finalize()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| Error::bad_file(path, "file", error);
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(Error::bad_file(path, "file", format!("has {bytes} bytes, at most {MAX_FILE_BYTES} are read")));
    }
    fs::read(path).map_err(failed)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read.map_err(|error| Error::bad_file(path, "PEM", error))? {
        none if none.is_empty() => Err(Error::bad_file(path, "PEM", "has no certificate")),
        certificates => Ok(certificates),
    }
}
