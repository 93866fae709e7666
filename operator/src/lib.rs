//! Controllers: the training operator and the cluster's own housekeeping

pub mod shell;
pub mod training;
