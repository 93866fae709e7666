//! The identity in a client certificate: the common name is the user, the organizations are the groups.
//!
//! Reads only the subject; that the certificate is genuine has been checked by TLS.

use super::Identity;

/// One DER element: tag, contents, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        length = rest[..count].iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
        rest = &rest[count..];
    }
    (rest.len() >= length).then(|| (tag, &rest[..length], &rest[length..]))
}

fn skip(der: &[u8]) -> Option<&[u8]> {
    element(der).map(|(_, _, rest)| rest)
}

fn subject(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut body, _) = element(certificate)?;
    if element(body)?.0 == 0xa0 {
        body = skip(body)?; // version
    }
    // serial number, signature algorithm, issuer, validity
    for _ in 0..4 {
        body = skip(body)?;
    }
    element(body).map(|(_, subject, _)| subject)
}

/// The identity that the certificate's subject names; nothing where it has no common name.
pub fn identity(certificate: &[u8]) -> Option<Identity> {
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
    let mut user = None;
    let mut groups = Vec::new();
    let mut names = subject(certificate)?;
    while !names.is_empty() {
        let (_, mut set, rest) = element(names)?;
        names = rest;
        while !set.is_empty() {
            let (_, pair, rest) = element(set)?;
            set = rest;
            let (_, oid, value) = element(pair)?;
            let text = element(value).and_then(|(_, text, _)| std::str::from_utf8(text).ok()).map(str::to_owned);
            match (oid, text) {
                (COMMON_NAME, Some(text)) => user = Some(text),
                (ORGANIZATION, Some(text)) => groups.push(text),
                _ => {}
            }
        }
    }
    user.filter(|user| !user.is_empty()).map(|user| Identity::new(user, groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_names_user_and_groups() {
        let authority = crate::tls::Authority::generate().expect("an authority");
        let pair = authority.client("alice", &["dev", "ops"]).expect("a certificate");
        let der = rustls_pki_types::pem::PemObject::from_pem_slice(pair.certificate.as_bytes());
        let der: rustls_pki_types::CertificateDer<'_> = der.expect("is PEM");
        let identity = identity(&der).expect("has a subject");
        assert_eq!(identity.user, "alice");
        assert_eq!(identity.groups, ["dev", "ops", "system:authenticated"]);
        for cut in 0..der.len() {
            let _ = super::identity(&der[..cut]);
        }
    }
}
