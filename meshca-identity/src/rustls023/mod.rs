//! Configurations for rustls 0.23.
