//! The data-parallel training runtime on libtorch
