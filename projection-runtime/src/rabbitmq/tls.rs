//! The files for TLS to the broker: the certificates that are trusted, and the client's own.

use std::io;
use std::path::Path;

use lapin::tcp::OwnedIdentity;

use crate::error::Error;

/// The setting of the file of trusted certificates.
pub(super) const CA: &str = "AMQP_CA (or --amqp-ca)";
/// The setting of the file of the client's certificate.
pub(super) const CERT: &str = "AMQP_CERT (or --amqp-cert)";
/// The setting of the file of the client's key.
const KEY: &str = "AMQP_KEY (or --amqp-key)";

/// Reads the certificates that are trusted.
pub(super) fn trusted(file: &Path) -> Result<String, Error> {
    read(CA, file, certificates)
}

/// Reads the client's certificate, with those between it and one that the broker trusts, and its key.
pub(super) fn identity(cert: &Path, key: &Path) -> Result<OwnedIdentity, Error> {
    let pem = read(CERT, cert, certificates)?.into_bytes();
    let key = read(KEY, key, private_key)?.into_bytes();
    Ok(OwnedIdentity::PKCS8 { pem, key })
}

/// Reads a file, in which `fault` finds none.
fn read(setting: &'static str, file: &Path, fault: fn(&str) -> Option<&'static str>) -> Result<String, Error> {
    let read = std::fs::read_to_string(file);
    let read = read.and_then(|pem| match fault(&pem) {
        Some(fault) => Err(io::Error::other(fault)),
        None => Ok(pem),
    });
    read.map_err(|source| Error::AmqpFile { setting, file: file.to_owned(), source })
}

fn certificates(pem: &str) -> Option<&'static str> {
    let missing = !pem.contains("-----BEGIN CERTIFICATE-----");
    missing.then_some("there is no certificate in it (PEM: -----BEGIN CERTIFICATE-----)")
}

fn private_key(pem: &str) -> Option<&'static str> {
    if !pem.contains("PRIVATE KEY-----") {
        return Some("there is no private key in it (PEM: -----BEGIN PRIVATE KEY-----)");
    }
    // PKCS #8, and OpenSSL's older form.
    let is_encrypted = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"].iter().any(|mark| pem.contains(mark));
    is_encrypted.then_some("the key in it is encrypted; decrypt it, like `openssl pkey -in FILE -out DECRYPTED`")
}
