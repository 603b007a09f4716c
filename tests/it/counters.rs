//! What tests have counted, for people.

/// For `cargo xtask test`, which shows it at its end.
pub(crate) fn report(name: &str, line: &str) {
    eprintln!("{line}");
    let Some(folder) = std::env::var_os("MESHCA_COUNTERS") else {
        return;
    };
    let folder = std::path::PathBuf::from(folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name.replace(' ', "-")), line).unwrap();
}
