//! Controllers: the training operator and the cluster's own housekeeping

pub mod cluster;
pub mod shell;
pub mod training;
