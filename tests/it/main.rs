//! Integration tests, one binary.

mod arch_golden;
