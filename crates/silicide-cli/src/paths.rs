//! Where this platform keeps files of which kind.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// A home directory is needed and there is none.
#[derive(Debug, thiserror::Error)]
#[error("there is no home directory to keep files in; set HOME, or SILICIDE_CACHE and HF_HOME")]
pub struct NoHome;

/// The value of an environment variable, where it is set to something.
pub fn env_value(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// A directory that an environment variable names, with a leading `~` understood.
pub fn env_dir(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env_value(name)?);
    match (path.strip_prefix("~"), env::home_dir()) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(path),
    }
}

/// The user's home directory.
pub fn home() -> Result<PathBuf, NoHome> {
    env::home_dir().filter(|home| !home.as_os_str().is_empty()).ok_or(NoHome)
}

/// What can be fetched again: `$SILICIDE_CACHE`, or `silicide` in the platform's cache directory.
pub fn cache_dir() -> Result<PathBuf, NoHome> {
    match env_dir("SILICIDE_CACHE") {
        Some(dir) => Ok(dir),
        None => Ok(platform_dir("XDG_CACHE_HOME", ".cache", "Library/Caches")?.join("silicide")),
    }
}

/// What a user would miss a little, such as the history of the line editor.
pub fn state_dir() -> Result<PathBuf, NoHome> {
    Ok(platform_dir("XDG_STATE_HOME", ".local/state", "Library/Application Support")?.join("silicide"))
}

fn platform_dir(xdg: &str, linux: &str, macos: &str) -> Result<PathBuf, NoHome> {
    if cfg!(windows) {
        return env_dir("LOCALAPPDATA").ok_or(NoHome);
    }
    match env_dir(xdg) {
        Some(dir) => Ok(dir),
        None => Ok(home()?.join(if cfg!(target_os = "macos") { macos } else { linux })),
    }
}
