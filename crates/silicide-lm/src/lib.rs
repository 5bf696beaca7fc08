//! From a checkpoint to streamed text.
