//! Lets the built programs find libtorch where they were built; LD_LIBRARY_PATH, which the node sets for the
//! workers that it starts, comes before.
#[expect(clippy::disallowed_methods, reason = "a build script is told its paths by the environment")]
fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(libtorch) = std::env::var_os("LIBTORCH") {
        let folder = std::path::PathBuf::from(libtorch).join("lib");
        let folder = folder.canonicalize().unwrap_or(folder);
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
