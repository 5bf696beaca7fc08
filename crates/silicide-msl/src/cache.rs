//! Compiled kernels on disk, shared by processes: a reader sees a whole file or none.

use std::fs;
use std::io::Write;
use std::path::Path;

/// The bytes that `make` gives, kept in `directory` by the parts of `key` and made again only where they are not there
/// whole.
///
/// # Errors
/// What `make` returns, or what the system says where the directory cannot be written.
pub fn get_or_make(
    directory: Option<&Path>,
    extension: &str,
    key: &[&[u8]],
    make: impl FnOnce() -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, String> {
    let Some(directory) = directory else { return make() };
    let path = directory.join(format!("{:032x}.{extension}", digest(key)));
    if let Some(bytes) = sealed(&path) {
        return Ok(bytes);
    }
    let bytes = make()?;
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    fs::create_dir_all(directory).map_err(failed)?;
    // A temporary name in the same folder, then a rename.
    let temporary = tempfile::Builder::new().prefix(".building-").tempfile_in(directory);
    let mut temporary = temporary.map_err(failed)?;
    temporary.write_all(&bytes).map_err(failed)?;
    temporary.write_all(&digest(&[&bytes]).to_le_bytes()).map_err(failed)?;
    temporary.persist(&path).map_err(|e| failed(e.error))?;
    Ok(bytes)
}

/// A file's bytes without its check sum, where that is right.
fn sealed(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let (rest, sum) = bytes.split_last_chunk::<16>()?;
    let (len, whole) = (rest.len(), digest(&[rest]) == u128::from_le_bytes(*sum));
    bytes.truncate(len);
    whole.then_some(bytes)
}

/// FNV-1a of 128 bits over the parts and their lengths: names files, and finds damage, not malice.
pub(crate) fn digest(parts: &[&[u8]]) -> u128 {
    let mut state = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    let mut add = |byte: u8| state = (state ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
    for part in parts {
        (part.len() as u64).to_le_bytes().into_iter().for_each(&mut add);
        part.iter().copied().for_each(&mut add);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_made_again() {
        let directory = tempfile::tempdir().expect("a folder");
        let get = |made: &'static str| {
            get_or_make(Some(directory.path()), "k", &[b"key"], || Ok(made.into())).expect("makes")
        };
        assert_eq!(get("first"), b"first");
        assert_eq!(get("second"), b"first");
        let file = directory.path().read_dir().expect("reads").next().expect("one file").expect("an entry").path();
        for damage in [b"first".to_vec(), Vec::new(), [fs::read(&file).expect("reads"), vec![0]].concat()] {
            fs::write(&file, damage).expect("writes");
            assert_eq!(get("third"), b"third");
            fs::remove_file(&file).expect("removes");
            get("first");
        }
        let failed = get_or_make(Some(directory.path()), "k", &[b"other"], || Err("no".into()));
        assert_eq!(failed, Err("no".into()));
        assert_eq!(directory.path().read_dir().expect("reads").count(), 1, "nothing partial is left behind");
    }
}
