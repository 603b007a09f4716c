//! Development tasks of the meshca workspace; run `cargo xtask help`.
fn main() {}
