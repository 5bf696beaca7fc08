//! The readers of checkpoint files, against other libraries' files and against hostile ones.

mod folder;
mod hostile;
mod make;
mod oracle;
mod properties;
mod walk;
