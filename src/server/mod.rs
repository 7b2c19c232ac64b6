//! The faces: gRPC, health, reflection, metrics, on one listener.
