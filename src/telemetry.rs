//! Every metric by its name.
