//! Lets the program find libtorch where it was built, as muster-worker does.
#[expect(clippy::disallowed_methods, reason = "a build script is told its paths by the environment")]
fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(folder) = std::env::var_os("LIBTORCH") {
        let folder = std::path::Path::new(&folder).join("lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.canonicalize().unwrap_or(folder).display());
    }
}
