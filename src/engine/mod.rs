//! THE API: an [`Engine`](self) takes requests and gives streams of tokens.

pub mod executor;
