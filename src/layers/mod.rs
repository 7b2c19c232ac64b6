//! What the blocks of an architecture are made of.
