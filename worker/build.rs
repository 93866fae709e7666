//! Compiles the shim over libtorch, and lets the built programs find libtorch where they were built; LD_LIBRARY_PATH,
//! which the node sets for the workers that it starts, comes before.

use std::path::PathBuf;

#[expect(clippy::disallowed_methods, reason = "a build script is told its paths by the environment")]
fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=shim");
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else { return };
    let folder = libtorch.join("lib");
    let folder = folder.canonicalize().unwrap_or(folder);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .file("shim/autograd.cpp")
        .file("shim/script.cpp")
        .compile("muster_shim");
}
