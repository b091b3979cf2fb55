//! What is read from a certificate beside what the handshake does with it: when it ends, and whose it
//! is.
//!
//! None of it decides anything about trust, so what cannot be read is merely not known.

use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// When the certificate ends, in seconds since 1970.
pub(super) fn not_after(der: &[u8]) -> Option<u64> {
    let certificate = parse(der)?;
    Some(certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs())
}

/// The subject's common name, else its first alternative name that is a text: a host, a mail address or
/// a URI.
pub(super) fn name(der: &[u8]) -> Option<String> {
    let certificate = parse(der)?;
    let certificate = certificate.tbs_certificate();
    let common = certificate.subject().common_name().ok().flatten().map(|name| name.value().into_owned());
    common.filter(|name| !name.is_empty()).or_else(|| {
        let (_, SubjectAltName(names)) = certificate.get_extension::<SubjectAltName>().ok()??;
        names.into_iter().find_map(|name| match name {
            GeneralName::DnsName(text)
            | GeneralName::Rfc822Name(text)
            | GeneralName::UniformResourceIdentifier(text) => Some(text.to_string()),
            _ => None,
        })
    })
}

/// Parses more leniently than RFC 5280 asks for, for instance of serial numbers: certificates that are
/// in use break it, and the handshake has checked what matters.
fn parse(der: &[u8]) -> Option<CertificateInner<Raw>> {
    CertificateInner::from_der(der).ok()
}
