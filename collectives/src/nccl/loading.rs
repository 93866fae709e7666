//! Looking for a shared library and its functions.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::path::PathBuf;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::nccl::error::LoadError;

/// Where to look for a library.
///
/// With an exact path only that is tried: another library than the one asked for would be a surprise. Otherwise the
/// system's loader is asked for each known name (it looks in the run path, `LD_LIBRARY_PATH`, its cache and the
/// system's folders, and gives a library of that name that the process has already loaded), then each folder.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Search {
    pub exactly: Option<PathBuf>,
    /// As `site-packages/nvidia/nccl/lib` of a Python environment with PyTorch.
    pub folders: Vec<PathBuf>,
}

impl Search {
    /// This file and no other.
    pub fn exactly(path: impl Into<PathBuf>) -> Search {
        Search { exactly: Some(path.into()), folders: Vec::new() }
    }

    /// What the loader finds, and then these folders.
    pub fn also_in(folders: impl IntoIterator<Item = PathBuf>) -> Search {
        Search { exactly: None, folders: folders.into_iter().collect() }
    }

    fn candidates(&self, names: &[&str]) -> Vec<PathBuf> {
        if let Some(path) = &self.exactly {
            return vec![path.clone()];
        }
        let by_loader = names.iter().map(PathBuf::from);
        let in_folders = self.folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
        by_loader.chain(in_folders).collect()
    }

    /// Loads the first of the candidates that can be. It is never unloaded: both libraries keep threads running.
    pub(super) fn open(&self, names: &[&str], advice: &'static str) -> Result<Opened, LoadError> {
        let mut tried = Vec::new();
        for candidate in self.candidates(names) {
            // SAFETY: loading runs the library's constructors. Those of NCCL and CUDA have no preconditions, and
            // what else the names find is what the machine's owner put there under these names.
            match unsafe { Library::open(Some(&candidate), RTLD_NOW | RTLD_LOCAL) } {
                Ok(library) => {
                    let handle = library.into_raw();
                    // SAFETY: the handle comes from `into_raw` just above, and this wrapper is never dropped.
                    let library = std::mem::ManuallyDrop::new(unsafe { Library::from_raw(handle) });
                    return Ok(Opened { library, asked: candidate });
                }
                Err(error) => tried.push((candidate, describe(&error))),
            }
        }
        Err(LoadError::NotFound { tried, advice })
    }
}

/// The loader's own words, which name the missing dependency where the file itself is there.
fn describe(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// A library that is loaded for good.
pub(super) struct Opened {
    library: std::mem::ManuallyDrop<Library>,
    asked: PathBuf,
}

impl Opened {
    /// # Safety
    /// `T` is a pointer to a function of the symbol's type, or one to nothing in particular.
    pub(super) unsafe fn optional<T: Copy>(&self, symbol: &str) -> Option<T> {
        // SAFETY: the caller's; the library is never unloaded, so the copied pointer stays valid.
        unsafe { self.library.get::<T>(symbol) }.ok().map(|symbol| *symbol)
    }

    /// # Safety
    /// As for [`Opened::optional`].
    pub(super) unsafe fn required<T: Copy>(&self, symbol: &'static str) -> Result<T, LoadError> {
        // SAFETY: the caller's.
        unsafe { self.optional(symbol) }.ok_or_else(|| LoadError::Symbol { path: self.path(symbol), symbol })
    }

    /// The file that the library was loaded from, asked of the loader by the address of one of its functions.
    pub(super) fn path(&self, symbol: &str) -> PathBuf {
        // SAFETY: a pointer to nothing in particular: the address is only looked up, never called.
        let Some(address) = (unsafe { self.optional::<*const c_void>(symbol) }) else { return self.asked.clone() };
        let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: dladdr fills the structure, which zeroes initialise as well, and keeps nothing of it.
        let (found, info) = unsafe { (libc::dladdr(address, info.as_mut_ptr()), info.assume_init()) };
        if found == 0 || info.dli_fname.is_null() {
            return self.asked.clone();
        }
        // SAFETY: the name is the loader's own, and stays as long as the library is loaded, which is for good.
        let name = unsafe { std::ffi::CStr::from_ptr(info.dli_fname) };
        PathBuf::from(&*name.to_string_lossy())
    }
}

/// Declares a table of a library's functions, the required ones before the semicolon, and how it is filled.
macro_rules! functions {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $name:ident {
            $($required:ident: $required_symbol:literal = fn($($required_argument:ty),*) -> $required_result:ty),* $(,)?;
            $($optional:ident: $optional_symbol:literal = fn($($optional_argument:ty),*) -> $optional_result:ty),* $(,)?
        }
    ) => {
        $(#[$meta])*
        $visibility struct $name {
            $(pub(super) $required: unsafe extern "C" fn($($required_argument),*) -> $required_result,)*
            $(pub(super) $optional: Option<unsafe extern "C" fn($($optional_argument),*) -> $optional_result>,)*
        }

        impl $name {
            pub(super) fn load(
                opened: &$crate::nccl::loading::Opened,
            ) -> Result<$name, $crate::nccl::error::LoadError> {
                // SAFETY: the types are those of the functions in the libraries' headers.
                unsafe {
                    Ok($name {
                        $($required: opened.required($required_symbol)?,)*
                        $($optional: opened.optional($optional_symbol),)*
                    })
                }
            }

            /// The symbols that are required.
            #[cfg(test)]
            pub(super) const REQUIRED: &[&str] = &[$($required_symbol),*];
        }
    };
}
pub(super) use functions;
