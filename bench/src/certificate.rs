//! A certificate that signs itself, and who trusts it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::Failed;

/// The name that it is for.
pub(crate) const NAME: &str = "localhost";

/// A certificate and its key, as files. Removed when dropped.
pub(crate) struct Certificate {
    directory: PathBuf,
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
    der: CertificateDer<'static>,
}

impl Certificate {
    pub(crate) fn make(parent: &Path) -> Result<Certificate, Failed> {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
        let directory = parent.join(format!("taskyard-bench-{}-tls", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let certificate = Certificate {
            cert_file: directory.join("cert.pem"),
            key_file: directory.join("key.pem"),
            der: made.cert.der().clone(),
            directory,
        };
        std::fs::write(&certificate.cert_file, made.cert.pem())?;
        std::fs::write(&certificate.key_file, made.signing_key.serialize_pem())?;
        Ok(certificate)
    }

    /// Of a client that trusts it. One that resumes keeps its tickets for itself.
    pub(crate) fn client(&self, resumes: bool) -> Result<Arc<ClientConfig>, Failed> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = if resumes { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        Ok(Arc::new(config))
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
