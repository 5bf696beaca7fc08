//! The hashes that files are checked with.

use std::fmt::Write;
use std::io::{self, Read};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// A hash of a file in the making.
#[derive(Clone)]
pub(crate) struct Digest(Context);

impl Digest {
    /// SHA-256.
    pub(crate) fn sha256() -> Self {
        Self(Context::new(&SHA256))
    }

    /// The hash that git names a file of `size` bytes by.
    pub(crate) fn git_blob(size: u64) -> Self {
        let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        context.update(format!("blob {size}\0").as_bytes());
        Self(context)
    }

    /// The one that an entity tag of the hub is made with: git's for small files, SHA-256 for large ones.
    pub(crate) fn for_etag(etag: &str, size: u64) -> Self {
        if etag.len() == 40 { Self::git_blob(size) } else { Self::sha256() }
    }

    /// Takes in more of the file.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Takes in the rest of a reader.
    pub(crate) fn update_from(&mut self, reader: &mut impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 17];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => self.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The hash in lower-case hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        self.0.finish().as_ref().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        let of = |mut digest: Digest, bytes: &[u8]| {
            digest.update(bytes);
            digest.finish()
        };
        assert_eq!(of(Digest::sha256(), b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        // `printf 'hello\n' | git hash-object --stdin`
        assert_eq!(of(Digest::git_blob(6), b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
