//! Transcripts of every format, cut at every point.
