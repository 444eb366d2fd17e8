//! TLS of the OTLP client: rustls with ring; the system's roots, or the file that the user named.

use std::path::Path;

use anyhow::{Context as _, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::options::TlsFiles;

/// Makes the client's configuration. Without TLS the roots are not read: they take time and memory.
pub(super) fn client_config(files: &TlsFiles, is_tls: bool) -> anyhow::Result<ClientConfig> {
    let provider = rustls::crypto::ring::default_provider();
    let roots = if is_tls { roots(files)? } else { RootCertStore::empty() };
    let builder = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((certificate, key)) = files.client.as_ref().filter(|_| is_tls) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("no private key in {}", key.display()))?;
    builder.with_client_auth_cert(chain, private).with_context(|| {
        format!("{} and {} do not go together", certificate.display(), key.display())
    })
}

fn roots(files: &TlsFiles) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &files.roots else {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        ensure!(
            !roots.is_empty(),
            "the system has no trusted certificates: install ca-certificates, or name a file with export.certificate"
        );
        return Ok(roots);
    };
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .with_context(|| format!("a certificate in {} cannot be used", path.display()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read certificates from {}", path.display()))?;
    ensure!(!certificates.is_empty(), "no certificate in {}: a PEM file is needed", path.display());
    Ok(certificates)
}
