//! The integration tests, one binary so that the crate is linked once.

mod hostile_files;
mod hub;
mod model_files;
mod text_vectors;
