//! Encrypted connections: who is trusted, what is spoken, and how a certificate changes while the server runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use candlewick::{
    config::TlsArgs,
    engine::{ModelText, fake::FakeOptions},
    proto::candlewick::v1::generation_client::GenerationClient,
    server::{ServeOptions, tls::Tls},
};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};
use tonic::transport::Endpoint;

use crate::grpc::{Server, config, expected, fakes, ids, info, read, request, soon};

/// An authority that signs whatever it is asked to.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
struct Signed {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, usage: ExtendedKeyUsagePurpose) -> Signed {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Signed { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn server(&self) -> Signed {
        self.sign(ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn client(&self) -> Signed {
        self.sign(ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A client that trusts it, and shows a certificate of its own if it has one.
    fn trusting(&self, own: Option<&Signed>, protocols: &[&str]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.0.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let chain = vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()];
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap())
                    .unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

/// The server's files.
struct Files(TempDir);

impl Files {
    fn of(signed: &Signed) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write(signed);
        files
    }

    fn write(&self, signed: &Signed) {
        std::fs::write(self.path("cert.pem"), &signed.certificate).unwrap();
        std::fs::write(self.path("key.pem"), &signed.key).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn args(&self) -> TlsArgs {
        TlsArgs {
            ssl_certfile: Some(self.path("cert.pem")),
            ssl_keyfile: Some(self.path("key.pem")),
            ..TlsArgs::default()
        }
    }

    /// Asks clients for certificates of that authority.
    fn asking(&self, authority: &Authority, ssl_cert_reqs: usize) -> TlsArgs {
        std::fs::write(self.path("ca.pem"), authority.0.pem()).unwrap();
        TlsArgs { ssl_ca_certs: Some(self.path("ca.pem")), ssl_cert_reqs, ..self.args() }
    }
}

async fn server(args: &TlsArgs) -> (Server, Tls) {
    let tls = Tls::load(args).unwrap().unwrap();
    let options = ServeOptions { tls: Some(tls.clone()), drain_grace: Duration::ZERO, ..ServeOptions::default() };
    let factory = fakes(&config(), |_| FakeOptions::default());
    (Server::with(info(), ModelText::default(), config(), factory, options).await, tls)
}

/// A server with a certificate, the authority that signed it, and another that did not, as PEM.
pub(crate) async fn served() -> (Server, String, String) {
    let (authority, another) = (Authority::new(), Authority::new());
    let (server, _) = server(&Files::of(&authority.server()).args()).await;
    (server, authority.0.pem(), another.0.pem())
}

async fn connect(server: &Server, connector: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    soon("a handshake", connector.connect(ServerName::try_from("localhost").unwrap(), stream)).await
}

/// Asks for a page and reads so much of the answer that its status is known.
async fn ask(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"serving\n") {
        let mut byte = [0];
        soon("a byte", stream.read_exact(&mut byte)).await?;
        answer.push(byte[0]);
    }
    Ok(String::from_utf8(answer).unwrap())
}

/// The certificate that a server shows.
fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn der(signed: &Signed) -> Vec<u8> {
    CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_speaks_grpc_and_http_encrypted_to_who_trusts_its_authority() {
    let authority = Authority::new();
    let (server, _) = server(&Files::of(&authority.server()).args()).await;
    let mut page = connect(&server, &authority.trusting(None, &["http/1.1"])).await.unwrap();
    assert!(ask(&mut page).await.unwrap().starts_with("HTTP/1.1 200"));
    let both = connect(&server, &authority.trusting(None, &["http/1.1", "h2"])).await.unwrap();
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));

    let (connector, address) = (authority.trusting(None, &["h2"]), server.address);
    let dial = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(dial).await.unwrap();
    let prompt = ids(1, 20);
    let stream = GenerationClient::new(channel).generate_stream(request(&prompt, 40)).await.unwrap();
    assert_eq!(read(stream.into_inner()).await.token_ids(), expected(&prompt, 40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_trusts_another_authority_or_speaks_plainly_gets_nothing() {
    let (authority, another) = (Authority::new(), Authority::new());
    let (server, _) = server(&Files::of(&authority.server()).args()).await;
    let error = connect(&server, &another.trusting(None, &["h2"])).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert, or a connection that is reset.
    let _ended = soon("the end", plain.read_to_end(&mut answer)).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let authority = Authority::new();
    let (first, second) = (authority.server(), authority.server());
    let files = Files::of(&first);
    let (server, tls) = server(&files.args()).await;
    let connector = authority.trusting(None, &["http/1.1"]);
    let mut old = connect(&server, &connector).await.unwrap();
    ask(&mut old).await.unwrap();
    assert!(!tls.reload().unwrap(), "nothing has changed");

    files.write(&second);
    assert!(tls.reload().unwrap());
    let mut new = connect(&server, &connector).await.unwrap();
    assert_eq!((shown(&old), shown(&new)), (der(&first), der(&second)));
    ask(&mut new).await.unwrap();
    ask(&mut old).await.unwrap();

    // Half of a change, and nonsense: what was there stays.
    std::fs::write(files.path("key.pem"), &first.key).unwrap();
    assert!(tls.reload().unwrap_err().message.contains("cert.pem"), "the key is another's");
    std::fs::write(files.path("cert.pem"), "nonsense").unwrap();
    assert!(tls.reload().unwrap_err().message.contains("cert.pem"));
    std::fs::remove_file(files.path("cert.pem")).unwrap();
    assert!(tls.reload().unwrap_err().message.contains("cert.pem"));
    assert_eq!(shown(&connect(&server, &connector).await.unwrap()), der(&second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_asked_for_certificates_where_the_server_is_told_to() {
    let (authority, another) = (Authority::new(), Authority::new());
    let files = Files::of(&authority.server());
    // (what is required, none shown, a right one, a wrong one)
    for (required, none, right, wrong) in [(0, true, true, true), (1, true, true, false), (2, false, true, false)] {
        let (server, _) = server(&files.asking(&authority, required)).await;
        for (shown, served) in [(None, none), (Some(authority.client()), right), (Some(another.client()), wrong)] {
            let connector = authority.trusting(shown.as_ref(), &["http/1.1"]);
            // A client of TLS 1.3 is through before the server has looked at what it showed.
            let answered = match connect(&server, &connector).await {
                Ok(mut stream) => ask(&mut stream).await.is_ok(),
                Err(_) => false,
            };
            assert_eq!(answered, served, "{required} {}", shown.is_some());
        }
    }
}

#[test]
fn files_that_are_no_good_are_named() {
    let authority = Authority::new();
    let (one, other) = (authority.server(), authority.server());
    let files = Files::of(&Signed { certificate: one.certificate, key: other.key });
    assert!(Tls::load(&files.args()).unwrap_err().message.contains("cert.pem"));
    let nowhere = TlsArgs { ssl_keyfile: Some(Path::new("/nowhere/key.pem").into()), ..files.args() };
    assert!(Tls::load(&nowhere).unwrap_err().message.contains("/nowhere/key.pem"));
    assert!(Tls::load(&TlsArgs::default()).unwrap().is_none());
}
