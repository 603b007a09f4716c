//! What other people's code says of the certificates, IDs and bundles that we write, and of the
//! templates that we read.
//!
//! Tests that need a program live in the module of its name; without it they say so and end.

mod emit;
pub(crate) mod go;
mod openssl;
