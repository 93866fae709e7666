//! What makes the ranks train one model: who they are, and the sums over them.

pub mod group;
pub mod membership;
pub mod reduction;
