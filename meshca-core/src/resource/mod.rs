//! Mesh resources: reading, checking and writing them.

mod datasource;

pub use datasource::{DataSource, SecureDataSource};
