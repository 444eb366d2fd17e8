//! TLS, against a server with certificates made for the test.

use std::{fs, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{
    super::{
        generate,
        options::{Protocol, TlsFiles},
        tls,
    },
    Setup, ids,
    server::{Reply, Server},
    until,
};

/// Certificates for tests: an authority, and what it has signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server that shows a certificate of this authority, and asks for one if told so.
    fn acceptor(&self, asks: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (certificate, key) = self.sign("localhost");
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions();
        let builder = builder.unwrap();
        let builder = if asks {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

#[tokio::test]
async fn tls_is_checked_and_a_mended_certificate_file_needs_no_restart() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let (ours, other) = (Authority::new(), Authority::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::on(listener, Some(ours.acceptor(true)), |_| Reply::Ok);
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name);
        fs::write(path("roots.pem"), other.issuer.pem()).unwrap();
        let (certificate, key) = ours.sign("agent");
        fs::write(path("client.pem"), certificate.pem()).unwrap();
        fs::write(path("client.key"), key.serialize_pem()).unwrap();

        let mut setup = Setup::at(format!("https://localhost:{}", server.address.port()), protocol);
        setup.tls = TlsFiles {
            roots: Some(path("roots.pem")),
            client: Some((path("client.pem"), path("client.key"))),
        };
        let running = setup.start();
        running.handle.offer(Arc::new(generate::spans(1, 3)));
        until("the wrong authority is shown", || {
            let row = running.row();
            row.state == "held" && row.reason.contains("invalid peer certificate")
        })
        .await;
        assert!(server.got().is_empty());
        fs::write(path("roots.pem"), ours.issuer.pem()).unwrap();
        running.delivered(3).await;
        assert_eq!(ids(&server.taken()), [1, 2, 3]);
    }
}

#[test]
fn certificate_files_that_cannot_be_used_say_so() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("x.pem");
    let check = |content: Option<&str>, client: bool, want: &str| {
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let roots = Some(path.clone()).filter(|_| !client);
        let client = client.then(|| (path.clone(), path.clone()));
        if client.is_some()
            && roots.is_none()
            && rustls_native_certs::load_native_certs().certs.is_empty()
        {
            return;
        }
        let error = tls::client_config(&TlsFiles { roots, client }, true).unwrap_err();
        assert!(format!("{error:#}").contains(want), "{error:#}");
    };
    check(None, false, "cannot read certificates from");
    check(Some("nonsense"), false, "no certificate in");
    check(Some("nonsense"), true, "no certificate in");
    check(Some(&Authority::new().issuer.pem()), true, "no private key in");
}
